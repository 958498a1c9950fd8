//! Host keys from files: host key documents or bare public keys. Signatures are not checked here.

use std::path::Path;

use p521::PublicKey;
use p521::pkcs8::DecodePublicKey;

use crate::{Result, certificates, read_file};

/// The P-521 key of a file: an X.509 certificate or a public key, each as PEM or DER.
pub fn host_key(path: &Path) -> Result<PublicKey> {
    let bytes = read_file(path)?;
    let pem = std::str::from_utf8(&bytes).ok().and_then(|text| PublicKey::from_public_key_pem(text).ok());
    certificates::key_of(&bytes)
        .or(pem)
        .or_else(|| PublicKey::from_public_key_der(&bytes).ok())
        .ok_or_else(|| format!("{}: neither a certificate nor a public key of P-521", path.display()))
}
