//! A chain of certificates like IBM's and DigiCert's: root, intermediate, signing key, host key
//! documents, and a revocation list of each issuer. All keys are P-521, so that one curve is enough.

use std::str::FromStr;
use std::time::Duration;

use der::asn1::{BitString, GeneralizedTime, OctetString, UtcTime};
use der::{Decode, Encode, EncodePem};
use p521::ecdsa::signature::Signer;
use p521::ecdsa::{Signature, SigningKey};
use p521::{PublicKey, SecretKey};
use sha1::{Digest, Sha1};
use x509_cert::certificate::{Certificate, TbsCertificate, Version};
use x509_cert::crl::{CertificateList, TbsCertList};
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, KeyUsage, KeyUsages, SubjectKeyIdentifier,
};
use x509_cert::ext::{AsExtension, Extension};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, ObjectIdentifier, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

use crate::Result;

const ECDSA_WITH_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4");

/// Names, most general part last, as RFC 4514 writes them.
pub const ROOT: &str = "CN=kata-se Test Root,O=kata-se Test,C=US";
pub const INTERMEDIATE: &str = "CN=kata-se Test Intermediate,O=kata-se Test,C=US";
/// The signing key's subject has exactly these parts, or pvimg and pvattest refuse it.
pub const SIGNING: &str = "OU=IBM Z Host Key Signing Service,ST=New York,L=Poughkeepsie,\
    CN=International Business Machines Corporation,O=International Business Machines Corporation,C=US";
pub const HOST: &str = "OU=IBM Z Host Key,ST=New York,L=Poughkeepsie,\
    CN=International Business Machines Corporation,O=International Business Machines Corporation,C=US";

/// From 2020 to the end of 2049, seconds since 1970.
const VALID: (u64, u64) = (1_577_836_800, 2_524_607_999);

/// Who signs.
#[derive(Clone, Copy)]
pub struct Issuer<'a> {
    pub name: &'a str,
    pub key: &'a SecretKey,
}

impl std::fmt::Debug for Issuer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A certificate as PEM. With `authority` it may sign others.
pub fn certificate(
    issuer: Issuer,
    name: &str,
    key: &PublicKey,
    number: u8,
    authority: bool,
) -> Result<String> {
    let subject = parse(name)?;
    let extension = |made: std::result::Result<Extension, der::Error>| made.map_err(|e| e.to_string());
    let usage =
        if authority { KeyUsages::KeyCertSign | KeyUsages::CRLSign } else { KeyUsages::KeyAgreement.into() };
    let to = |ext: &dyn Fn() -> std::result::Result<Extension, der::Error>| extension(ext());
    let extensions = vec![
        to(&|| BasicConstraints { ca: authority, path_len_constraint: None }.to_extension(&subject, &[]))?,
        to(&|| KeyUsage(usage).to_extension(&subject, &[]))?,
        to(&|| SubjectKeyIdentifier(key_id(key)?).to_extension(&subject, &[]))?,
        to(&|| authority_key(issuer)?.to_extension(&subject, &[]))?,
    ];
    let tbs_certificate = TbsCertificate {
        version: Version::V3,
        serial_number: SerialNumber::new(&[number]).map_err(|e| e.to_string())?,
        signature: algorithm(),
        issuer: parse(issuer.name)?,
        validity: Validity { not_before: time(VALID.0)?, not_after: time(VALID.1)? },
        subject: subject.clone(),
        subject_public_key_info: SubjectPublicKeyInfoOwned::from_key(*key).map_err(|e| e.to_string())?,
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(extensions),
    };
    let signature = sign(issuer.key, &tbs_certificate)?;
    let certificate = Certificate { tbs_certificate, signature_algorithm: algorithm(), signature };
    certificate.to_pem(der::pem::LineEnding::LF).map_err(|e| e.to_string())
}

/// An empty revocation list as PEM.
pub fn revocation_list(issuer: Issuer) -> Result<String> {
    let name = parse(issuer.name)?;
    let authority = authority_key(issuer).and_then(|id| id.to_extension(&name, &[]));
    let tbs_cert_list = TbsCertList {
        version: Version::V2,
        signature: algorithm(),
        issuer: name,
        this_update: time(VALID.0)?,
        next_update: Some(time(VALID.1)?),
        revoked_certificates: None,
        crl_extensions: Some(vec![authority.map_err(|e| e.to_string())?]),
    };
    let signature = sign(issuer.key, &tbs_cert_list)?;
    let list = CertificateList { tbs_cert_list, signature_algorithm: algorithm(), signature };
    let list = list.to_der().map_err(|e| e.to_string())?;
    der::pem::encode_string("X509 CRL", der::pem::LineEnding::LF, &list).map_err(|e| e.to_string())
}

fn parse(name: &str) -> Result<Name> {
    Name::from_str(name).map_err(|e| format!("name {name}: {e}"))
}

fn algorithm() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: ECDSA_WITH_SHA512, parameters: None }
}

fn time(seconds: u64) -> Result<Time> {
    let since = Duration::from_secs(seconds);
    let utc = UtcTime::from_unix_duration(since).map(Time::UtcTime);
    utc.or_else(|_| GeneralizedTime::from_unix_duration(since).map(Time::GeneralTime))
        .map_err(|e| e.to_string())
}

fn key_id(key: &PublicKey) -> std::result::Result<OctetString, der::Error> {
    let info =
        SubjectPublicKeyInfoOwned::from_key(*key).ok().ok_or_else(|| der::Tag::BitString.value_error())?;
    OctetString::new(Sha1::digest(info.subject_public_key.raw_bytes()).to_vec())
}

fn authority_key(issuer: Issuer) -> std::result::Result<AuthorityKeyIdentifier, der::Error> {
    Ok(AuthorityKeyIdentifier {
        key_identifier: Some(key_id(&issuer.key.public_key())?),
        authority_cert_issuer: None,
        authority_cert_serial_number: None,
    })
}

fn sign(key: &SecretKey, document: &impl Encode) -> Result<BitString> {
    let key = SigningKey::from_slice(&key.to_bytes()).map_err(|e| e.to_string())?;
    let bytes = document.to_der().map_err(|e| e.to_string())?;
    let signature: Signature = key.sign(&bytes);
    BitString::from_bytes(signature.to_der().as_bytes()).map_err(|e| e.to_string())
}

/// The key of a certificate, PEM or DER; None if these bytes are no certificate.
pub fn key_of(bytes: &[u8]) -> Option<PublicKey> {
    use der::DecodePem;
    let certificate = Certificate::from_pem(bytes).or_else(|_| Certificate::from_der(bytes)).ok()?;
    PublicKey::from_sec1_bytes(
        certificate.tbs_certificate.subject_public_key_info.subject_public_key.raw_bytes(),
    )
    .ok()
}
