//! Can a host key document be trusted? IBM's signing key signed it, a chain of certificates leads from
//! that key to a trusted root, and nothing of it is revoked or out of date.
//!
//! The rules are those of pvimg and pvattest (s390-tools: rust/pv/src/verify.rs and verify/helper.rs), which
//! leave the chain to OpenSSL; without downloads: every list is given. Each refusal names the document and
//! the field.
//!
//! | of | rule | source |
//! | --- | --- | --- |
//! | signing key | its subject is IBM's | helper.rs: is_ibm_signing_cert; here Armonk as well |
//! | chain | at most two certificates between signing key and root | helper.rs: SECURITY_CHAIN_MAX_LEN |
//! | chain | names, signatures, dates, CA, path length, critical extensions | RFC 5280, 6.1 |
//! | chain | keys and signatures of 112 bits, except the root's own | OpenSSL: check_auth_level, level 2 |
//! | chain | the forms that RFC 5280 asks of authorities | `rules` |
//! | chain | on no list of its issuer, who may sign lists | OpenSSL: CRL_CHECK_ALL, check_crl |
//! | all, and lists | an identifier of the issuer's key fits | OpenSSL: X509_check_akid |
//! | document | issuer (with IBM's quirks), signature, dates | helper.rs: verify_hkd_options |
//! | document | on no list of the signing key, whose usage does not name lists | verify.rs: verify |
//!
//! Narrower than OpenSSL: a key on P-256 and a signature by RSA-PSS are refused by name, and a root's file has
//! one certificate. Wider: a root's own signature with SHA-1 is not computed, as it proves nothing.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::hostkey::certificate::{Certificate, RevocationList};
use crate::hostkey::document::Document;
use crate::hostkey::{name, rules, signature};

/// Intermediate certificates between signing key and root, at most: pvimg's depth.
const MOST_INTERMEDIATES: usize = 2;

/// What is trusted, and what leads there.
#[derive(Clone, Debug)]
pub(crate) struct Trust {
    /// IBM's host key signing key.
    pub signing_key: Certificate,
    pub intermediates: Vec<Certificate>,
    pub root: Certificate,
    pub lists: Vec<RevocationList>,
}

/// A chain that holds: signing key, intermediates, root, none of them revoked.
#[derive(Debug)]
pub(crate) struct Chain<'a> {
    trust: &'a Trust,
    /// Names of the certificates from the signing key to the root.
    pub path: Vec<String>,
    now: Duration,
}

impl Trust {
    /// Checks everything above the documents. `now`: since the epoch.
    pub(crate) fn check(&self, now: Duration) -> Result<Chain<'_>> {
        let signing = &self.signing_key;
        name::check_signing_key(signing.subject())
            .map_err(|why| Error::invalid(format!("{}: subject: {why}", signing.name)))?;
        self.check_root(now)?;
        let mut path = vec![signing.name.clone()];
        let mut below = signing;
        let mut left: Vec<&Certificate> = self.intermediates.iter().collect();
        loop {
            below.check_dates(now)?;
            below.check_strength()?;
            rules::check(below, false)?;
            let by_root = name::same(below.issuer(), self.root.subject());
            let issuer = match left.iter().position(|c| name::same(below.issuer(), c.subject())) {
                _ if by_root => &self.root,
                Some(at) => left.swap_remove(at),
                None => return Err(no_issuer(below)),
            };
            check_issued(below, issuer, path.len() - 1)?;
            issuer.check_authority_to_list()?;
            self.check_not_revoked(below, issuer, name::same, now)?;
            path.push(issuer.name.clone());
            if by_root {
                return Ok(Chain { trust: self, path, now });
            }
            if path.len() > 1 + MOST_INTERMEDIATES {
                return Err(Error::invalid(format!(
                    "{}: more than {MOST_INTERMEDIATES} certificates lead to the root",
                    signing.name
                )));
            }
            below = issuer;
        }
    }

    fn check_root(&self, now: Duration) -> Result<()> {
        let root = &self.root;
        if !name::same(root.subject(), root.issuer()) {
            return Err(Error::invalid(format!("{}: issuer: a root certificate issues itself", root.name)));
        }
        root.check_dates(now)?;
        root.check_strength()?;
        rules::check(root, true)?;
        root.check_extensions()?;
        root.check_authority_to_sign(0)?;
        root.check_authority(root)?;
        // Whoever trusts the certificate trusts its key, whatever the key has signed.
        if root.is_signed_with_sha1() { Ok(()) } else { root.check_signature(root) }
    }

    /// There must be a valid list of the issuer, and the certificate must be on none of them.
    fn check_not_revoked(
        &self,
        certificate: &Certificate,
        issuer: &Certificate,
        same: fn(&x509_cert::name::Name, &x509_cert::name::Name) -> bool,
        now: Duration,
    ) -> Result<()> {
        let mut lists = self.lists.iter().filter(|list| same(list.issuer(), issuer.subject())).peekable();
        if lists.peek().is_none() {
            return Err(Error::invalid(format!(
                "{}: revocation: no list of {} is given: it is published at the certificate's CRL distribution \
                 point",
                certificate.name, issuer.name
            )));
        }
        let mut valid = 0;
        let mut wrong = None;
        for list in lists {
            match list.check(certificate, issuer, now) {
                Ok(()) => valid += 1,
                Err(e) => {
                    wrong.get_or_insert(e);
                    continue;
                }
            }
            if list.lists(certificate.serial()) {
                return Err(Error::invalid(format!(
                    "{}: serial number: revoked by {}",
                    certificate.name, list.name
                )));
            }
        }
        match wrong {
            Some(e) if valid == 0 => Err(e),
            _ => Ok(()),
        }
    }
}

impl Chain<'_> {
    /// Checks one document against the chain.
    pub(crate) fn check(&self, document: &Document) -> Result<()> {
        let (certificate, signing) = (&document.certificate, &self.trust.signing_key);
        if !name::same_ibm(certificate.issuer(), signing.subject()) {
            return Err(Error::invalid(format!(
                "{}: issuer: it is {}, {} is {}",
                certificate.name,
                name::show(certificate.issuer()),
                signing.name,
                name::show(signing.subject())
            )));
        }
        certificate.check_extensions()?;
        certificate.check_authority(signing)?;
        certificate.check_dates(self.now)?;
        if !signature::is_on_p521(&document.sec1()) {
            return Err(Error::invalid(format!("{}: public key: not a point of P-521", certificate.name)));
        }
        certificate.check_signature(signing)?;
        self.trust.check_not_revoked(certificate, signing, name::same_ibm, self.now)
    }
}

fn check_issued(certificate: &Certificate, issuer: &Certificate, between: usize) -> Result<()> {
    certificate.check_extensions()?;
    issuer.check_authority_to_sign(between)?;
    certificate.check_authority(issuer)?;
    certificate.check_signature(issuer)
}

fn no_issuer(certificate: &Certificate) -> Error {
    Error::invalid(format!(
        "{}: issuer: no certificate of {} is given (--intermediate, --root)",
        certificate.name,
        name::show(certificate.issuer())
    ))
}

#[cfg(test)]
#[path = "chain_tests.rs"]
pub(crate) mod tests;
