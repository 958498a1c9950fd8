//! What each certificate of the chain must have beside fitting its issuer: the rules of RFC 5280 that OpenSSL
//! checks with X509_V_FLAG_X509_STRICT (crypto/x509/x509_vfy.c: check_extensions), which pvimg sets
//! (s390-tools: rust/pv/src/verify/helper.rs: store_setup). pvimg does not ask them of host key documents.

use x509_cert::ext::pkix::{AuthorityKeyIdentifier, BasicConstraints, KeyUsage, SubjectKeyIdentifier};
use x509_cert::name::Name;

use crate::error::{Error, Result};
use crate::hostkey::certificate::Certificate;

/// What the rules look at.
struct Parts<'a> {
    issuer: &'a Name,
    subject: &'a Name,
    is_root: bool,
    /// With whether they are critical.
    constraints: Option<(bool, BasicConstraints)>,
    usage: Option<KeyUsage>,
    names_own_key: bool,
    names_issuers_key: bool,
}

impl Parts<'_> {
    fn is_ca(&self) -> bool {
        self.constraints.as_ref().is_some_and(|(_, constraints)| constraints.ca)
    }

    fn has_path_length(&self) -> bool {
        self.constraints.as_ref().is_some_and(|(_, constraints)| constraints.path_len_constraint.is_some())
    }

    fn signs_certificates(&self) -> bool {
        self.usage.as_ref().is_some_and(KeyUsage::key_cert_sign)
    }
}

/// Section of RFC 5280, what must hold, and what is said when it does not.
type Rule = (&'static str, fn(&Parts<'_>) -> bool, &'static str);

const RULES: [Rule; 8] = [
    ("4.1.2.4", |p| !p.issuer.is_empty(), "issuer: it is empty"),
    ("4.1.2.6", |p| !p.subject.is_empty(), "subject: it is empty"),
    ("4.2.1.1", |p| p.is_root || p.names_issuers_key, "authority key identifier: it must name a key"),
    ("4.2.1.2", |p| !p.is_ca() || p.names_own_key, "subject key identifier: a CA must have one"),
    ("4.2.1.3", |p| !p.is_ca() || p.usage.is_some(), "key usage: a CA must have one"),
    ("4.2.1.3", |p| p.is_ca() || !p.signs_certificates(), "key usage: only a CA may sign certificates"),
    (
        "4.2.1.9",
        |p| !p.is_ca() || p.constraints.as_ref().is_some_and(|(critical, _)| *critical),
        "basic constraints: those of a CA must be critical",
    ),
    (
        "4.2.1.9",
        |p| !p.has_path_length() || p.is_ca() && p.signs_certificates(),
        "basic constraints: a path length is for those that sign certificates",
    ),
];

/// Does it obey all of them?
pub(crate) fn check(certificate: &Certificate, is_root: bool) -> Result<()> {
    let parts = parts(certificate, is_root)
        .map_err(|e| Error::invalid(format!("{}: extensions: {e}", certificate.name)))?;
    match RULES.iter().find(|(_, holds, _)| !holds(&parts)) {
        None => Ok(()),
        Some((section, _, text)) => {
            Err(Error::invalid(format!("{}: {text} (RFC 5280, {section})", certificate.name)))
        }
    }
}

fn parts(certificate: &Certificate, is_root: bool) -> x509_cert::der::Result<Parts<'_>> {
    let tbs = &certificate.x509.tbs_certificate;
    let authority = tbs.get::<AuthorityKeyIdentifier>()?;
    Ok(Parts {
        issuer: &tbs.issuer,
        subject: &tbs.subject,
        is_root,
        constraints: tbs.get::<BasicConstraints>()?,
        usage: tbs.get::<KeyUsage>()?.map(|(_, usage)| usage),
        names_own_key: tbs.get::<SubjectKeyIdentifier>()?.is_some(),
        names_issuers_key: authority.is_some_and(|(_, authority)| authority.key_identifier.is_some()),
    })
}
