//! A certificate or revocation list with the name it has in messages, and the questions a chain asks it.

use std::time::Duration;

use x509_cert::Certificate as X509;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, BasicConstraints, KeyUsage, SubjectKeyIdentifier};
use x509_cert::name::Name;
use x509_cert::time::Time;

use crate::error::{Error, Result};
use crate::hostkey::pem::{self, blocks};
use crate::hostkey::signature::{self, Signed};
use crate::hostkey::{name, scope};

/// A certificate, as it is in the file.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    /// What it is called in messages: its part in the chain and its file.
    pub name: String,
    pub der: Vec<u8>,
    pub(crate) x509: X509,
}

/// A revocation list, as it is in the file.
#[derive(Clone, Debug)]
pub(crate) struct RevocationList {
    pub name: String,
    pub der: Vec<u8>,
    pub(crate) list: CertificateList,
}

impl Certificate {
    /// All certificates of a file, PEM or DER.
    pub(crate) fn parse_all(name: &str, bytes: &[u8]) -> Result<Vec<Self>> {
        let wrong = |why: String| Error::invalid(format!("{name}: {why}"));
        let read = |der: Vec<u8>| Self::from_der(name, der);
        blocks(bytes, pem::CERTIFICATE).map_err(wrong)?.into_iter().map(read).collect()
    }

    pub(crate) fn from_der(name: &str, der: Vec<u8>) -> Result<Self> {
        let x509 = X509::from_der(&der)
            .map_err(|e| Error::invalid(format!("{name}: not an X.509 certificate: {e}")))?;
        Ok(Self { name: name.to_owned(), der, x509 })
    }

    pub(crate) fn subject(&self) -> &Name {
        &self.x509.tbs_certificate.subject
    }

    pub(crate) fn issuer(&self) -> &Name {
        &self.x509.tbs_certificate.issuer
    }

    /// By its name.
    pub(crate) fn is_signing_key(&self) -> bool {
        name::check_signing_key(self.subject()).is_ok()
    }

    pub(crate) fn serial(&self) -> &[u8] {
        self.x509.tbs_certificate.serial_number.as_bytes()
    }

    /// `now`: since the epoch.
    pub(crate) fn check_dates(&self, now: Duration) -> Result<()> {
        let validity = &self.x509.tbs_certificate.validity;
        check_dates(&self.name, "not before", validity.not_before, "not after", validity.not_after, now)
    }

    /// The key strong enough for a chain?
    pub(crate) fn check_strength(&self) -> Result<()> {
        signature::check_strength(&self.x509.tbs_certificate.subject_public_key_info)
            .map_err(|why| Error::invalid(format!("{}: public key: {why}", self.name)))
    }

    /// An extension that must be understood and is not makes a certificate worthless (RFC 5280, 4.2).
    pub(crate) fn check_extensions(&self) -> Result<()> {
        let extensions = self.x509.tbs_certificate.extensions.as_deref().unwrap_or_default();
        check_extensions(&self.name, extensions, &CERTIFICATE_EXTENSIONS)
    }

    /// Signed by the key of `issuer`?
    pub(crate) fn check_signature(&self, issuer: &Self) -> Result<()> {
        let x509 = &self.x509;
        if x509.signature_algorithm != x509.tbs_certificate.signature {
            return Err(Error::invalid(format!("{}: signature algorithm: it names two", self.name)));
        }
        let signed =
            Signed { whole: &self.der, algorithm: &x509.signature_algorithm, signature: &x509.signature };
        check_signature(&self.name, &signed, issuer)
    }

    /// With a hash that is too weak to be accepted from anyone but a root.
    pub(crate) fn is_signed_with_sha1(&self) -> bool {
        signature::SHA1.contains(&self.x509.signature_algorithm.oid)
    }

    /// Does its authority key identifier, if it has one, name the key of `issuer`?
    pub(crate) fn check_authority(&self, issuer: &Self) -> Result<()> {
        let found = self.x509.tbs_certificate.get::<AuthorityKeyIdentifier>();
        check_authority(&self.name, found, issuer)
    }

    /// May it sign certificates, with so many CA certificates between it and the last one?
    pub(crate) fn check_authority_to_sign(&self, between: usize) -> Result<()> {
        let tbs = &self.x509.tbs_certificate;
        let wrong = |why: &str| Err(Error::invalid(format!("{}: {why}", self.name)));
        match tbs.get::<BasicConstraints>() {
            Ok(Some((_, constraints))) if constraints.ca => {
                if constraints.path_len_constraint.is_some_and(|most| usize::from(most) < between) {
                    return wrong("basic constraints: the chain below it is longer than its path length");
                }
            }
            Ok(_) => return wrong("basic constraints: it is not a CA certificate"),
            Err(e) => return wrong(&format!("basic constraints: {e}")),
        }
        match tbs.get::<KeyUsage>() {
            Ok(Some((_, usage))) if !usage.key_cert_sign() => {
                wrong("key usage: it may not sign certificates")
            }
            Ok(_) => Ok(()),
            Err(e) => wrong(&format!("key usage: {e}")),
        }
    }

    /// May it sign revocation lists (RFC 5280, 6.3.3 (f))?
    pub(crate) fn check_authority_to_list(&self) -> Result<()> {
        match self.x509.tbs_certificate.get::<KeyUsage>() {
            Ok(Some((_, usage))) if !usage.crl_sign() => {
                Err(Error::invalid(format!("{}: key usage: it may not sign revocation lists", self.name)))
            }
            Ok(_) => Ok(()),
            Err(e) => Err(Error::invalid(format!("{}: key usage: {e}", self.name))),
        }
    }
}

impl RevocationList {
    /// All lists of a file, PEM or DER.
    pub(crate) fn parse_all(name: &str, bytes: &[u8]) -> Result<Vec<Self>> {
        let wrong = |why: String| Error::invalid(format!("{name}: {why}"));
        let read = |der: Vec<u8>| {
            let list = CertificateList::from_der(&der)
                .map_err(|e| Error::invalid(format!("{name}: not a revocation list: {e}")))?;
            Ok(Self { name: name.to_owned(), der, list })
        };
        blocks(bytes, pem::REVOCATION_LIST).map_err(wrong)?.into_iter().map(read).collect()
    }

    pub(crate) fn issuer(&self) -> &Name {
        &self.list.tbs_cert_list.issuer
    }

    /// Signed by `issuer`, about its key, current, and a list for certificates such as `certificate`?
    pub(crate) fn check(&self, certificate: &Certificate, issuer: &Certificate, now: Duration) -> Result<()> {
        let tbs = &self.list.tbs_cert_list;
        let Some(next) = tbs.next_update else {
            return Err(Error::invalid(format!("{}: next update: not given", self.name)));
        };
        check_extensions(&self.name, tbs.crl_extensions.as_deref().unwrap_or_default(), &LIST_EXTENSIONS)?;
        for entry in tbs.revoked_certificates.as_deref().unwrap_or_default() {
            let extensions = entry.crl_entry_extensions.as_deref().unwrap_or_default();
            if let Some(unknown) = critical_and_unknown(extensions, &[]) {
                return Err(Error::invalid(format!(
                    "{}: extensions of an entry: {unknown} is critical and not known here",
                    self.name
                )));
            }
        }
        scope::check(tbs, &certificate.name, &certificate.x509)
            .map_err(|why| Error::invalid(format!("{}: issuing distribution point: {why}", self.name)))?;
        check_dates(&self.name, "this update", tbs.this_update, "next update", next, now)?;
        check_authority(&self.name, self.authority(), issuer)?;
        if self.list.signature_algorithm != tbs.signature {
            return Err(Error::invalid(format!("{}: signature algorithm: it names two", self.name)));
        }
        let signed = Signed {
            whole: &self.der,
            algorithm: &self.list.signature_algorithm,
            signature: &self.list.signature,
        };
        check_signature(&self.name, &signed, issuer)
    }

    fn authority(
        &self,
    ) -> std::result::Result<Option<(bool, AuthorityKeyIdentifier)>, x509_cert::der::Error> {
        use x509_cert::der::oid::AssociatedOid;
        let extensions = self.list.tbs_cert_list.crl_extensions.as_deref().unwrap_or_default();
        let found = extensions.iter().find(|extension| extension.extn_id == AuthorityKeyIdentifier::OID);
        let Some(found) = found else { return Ok(None) };
        Ok(Some((found.critical, AuthorityKeyIdentifier::from_der(found.extn_value.as_bytes())?)))
    }

    pub(crate) fn lists(&self, serial: &[u8]) -> bool {
        let revoked = self.list.tbs_cert_list.revoked_certificates.as_deref().unwrap_or_default();
        revoked.iter().any(|revoked| revoked.serial_number.as_bytes() == serial)
    }
}

/// Understood, or without meaning here: basic constraints, key usage, extended key usage, alternative
/// names, policies.
const CERTIFICATE_EXTENSIONS: [&str; 6] =
    ["2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.17", "2.5.29.18", "2.5.29.32"];

/// The issuing distribution point, which `scope` obeys. A delta list, which does not name everything revoked,
/// is critical and not here.
const LIST_EXTENSIONS: [&str; 1] = ["2.5.29.28"];

fn check_extensions(name: &str, extensions: &[Extension], known: &[&str]) -> Result<()> {
    match critical_and_unknown(extensions, known) {
        None => Ok(()),
        Some(id) => Err(Error::invalid(format!("{name}: extensions: {id} is critical and not known here"))),
    }
}

fn critical_and_unknown(extensions: &[Extension], known: &[&str]) -> Option<ObjectIdentifier> {
    let unknown = |e: &&Extension| e.critical && !known.contains(&e.extn_id.to_string().as_str());
    extensions.iter().find(unknown).map(|extension| extension.extn_id)
}

fn check_signature(name: &str, signed: &Signed<'_>, issuer: &Certificate) -> Result<()> {
    let key = &issuer.x509.tbs_certificate.subject_public_key_info;
    signature::verify(signed, key)
        .map_err(|why| Error::invalid(format!("{name}: signature: {why} (key of {})", issuer.name)))
}

fn check_authority(
    name: &str,
    found: std::result::Result<Option<(bool, AuthorityKeyIdentifier)>, x509_cert::der::Error>,
    issuer: &Certificate,
) -> Result<()> {
    let wrong = |why: String| Err(Error::invalid(format!("{name}: authority key identifier: {why}")));
    let authority = match found {
        Ok(None) => return Ok(()),
        Ok(Some((_, authority))) => authority,
        Err(e) => return wrong(e.to_string()),
    };
    let tbs = &issuer.x509.tbs_certificate;
    if let Some(serial) = &authority.authority_cert_serial_number {
        if serial.as_bytes() != issuer.serial() {
            return wrong(format!("it names another serial number than that of {}", issuer.name));
        }
    }
    // The first name that is one of a directory, as OpenSSL takes it.
    let names = authority.authority_cert_issuer.iter().flatten();
    let directory = |name: &GeneralName| match name {
        GeneralName::DirectoryName(name) => Some(name.clone()),
        _ => None,
    };
    if names.filter_map(directory).next().is_some_and(|named| !name::same(&named, &tbs.issuer)) {
        return wrong(format!("it names another issuer than that of {}", issuer.name));
    }
    let subject = match tbs.get::<SubjectKeyIdentifier>() {
        Ok(found) => found.map(|(_, id)| id.0),
        Err(e) => return wrong(format!("subject key identifier of {}: {e}", issuer.name)),
    };
    match (authority.key_identifier, subject) {
        (Some(wanted), Some(is)) if wanted != is => {
            wrong(format!("it names another key than that of {}", issuer.name))
        }
        _ => Ok(()),
    }
}

fn check_dates(name: &str, from: &str, begin: Time, to: &str, end: Time, now: Duration) -> Result<()> {
    let show = |time: Duration| humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + time);
    let (begin, end) = (begin.to_unix_duration(), end.to_unix_duration());
    if now < begin {
        return Err(Error::invalid(format!(
            "{name}: {from}: {} is still to come, now is {}",
            show(begin),
            show(now)
        )));
    }
    if now >= end {
        return Err(Error::invalid(format!("{name}: {to}: {} has passed, now is {}", show(end), show(now))));
    }
    Ok(())
}
