//! P-521 keys of machines and images, and how a machine's key wraps an image's.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use p521::elliptic_curve::sec1::{FromEncodedPoint, ToEncodedPoint};
use p521::{EncodedPoint, FieldBytes, PublicKey, SecretKey};
use sha2::{Digest, Sha256};

use crate::Result;

/// A private key from its number: at most 521 bits, big-endian.
pub fn private(number: &[u8]) -> Result<SecretKey> {
    let mut bytes = FieldBytes::default();
    let from = bytes.len().checked_sub(number.len()).ok_or("a P-521 key has at most 66 bytes")?;
    bytes[from..].copy_from_slice(number);
    SecretKey::from_bytes(&bytes).map_err(|e| format!("no private key of P-521 has this number: {e}"))
}

/// X and Y as headers have them: 80 bytes each, padded on the left.
pub fn point(key: &PublicKey) -> [u8; 160] {
    let encoded = key.to_encoded_point(false);
    let mut point = [0; 160];
    for (half, coordinate) in point.chunks_exact_mut(80).zip([encoded.x(), encoded.y()]) {
        half[14..].copy_from_slice(coordinate.map_or(&[0; 66], |c| c.as_ref()));
    }
    point
}

/// The key of a point; None when it is not on the curve.
pub fn from_point(point: &[u8; 160]) -> Option<PublicKey> {
    let (x, y) = point.split_at(80);
    if x.iter().chain(y).take(14).any(|byte| *byte != 0) {
        return None;
    }
    let (x, y): (&FieldBytes, &FieldBytes) = (x[14..].into(), y[14..].into());
    PublicKey::from_encoded_point(&EncodedPoint::from_affine_coordinates(x, y, false)).into()
}

/// SHA-256 over the point: the name of a host key.
pub fn hash(key: &PublicKey) -> [u8; 32] {
    Sha256::digest(point(key)).into()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn from_hex(text: &str) -> Result<Vec<u8>> {
    let text = text.trim();
    let pair = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(pair).collect();
    bytes.ok_or_else(|| "not a text of hexadecimal digits".to_owned())
}

/// The key between an image's key and a host's: SHA-256 over the shared X and a counter of 1.
fn wrapping(private: &SecretKey, public: &PublicKey) -> Aes256Gcm {
    let shared = p521::ecdh::diffie_hellman(private.to_nonzero_scalar(), public.as_affine());
    let key = Sha256::new().chain_update(shared.raw_secret_bytes()).chain_update([0, 0, 0, 1]).finalize();
    Aes256Gcm::new(&key)
}

/// A key slot: the host key's name, the wrapped header key, its tag.
pub fn slot(customer: &SecretKey, host: &PublicKey, header_key: &[u8; 32]) -> Result<[u8; 80]> {
    let wrapped = seal(&wrapping(customer, host), [0; 12], &[], header_key)?;
    let mut slot = [0; 80];
    slot[..32].copy_from_slice(&hash(host));
    slot[32..].copy_from_slice(&wrapped);
    Ok(slot)
}

/// The header key in a slot; None when it was wrapped by or for other keys, or damaged.
pub fn unwrap(host: &SecretKey, customer: &PublicKey, slot: &[u8]) -> Option<[u8; 32]> {
    open(&wrapping(host, customer), [0; 12], &[], slot.get(32..80)?)?.try_into().ok()
}

/// AES-256-GCM: the sealed bytes, then the tag.
pub fn seal(key: &Aes256Gcm, iv: [u8; 12], clear: &[u8], secret: &[u8]) -> Result<Vec<u8>> {
    key.encrypt(&Nonce::from(iv), Payload { msg: secret, aad: clear }).map_err(|e| format!("seal: {e}"))
}

/// None if the tag does not match the bytes.
pub fn open(key: &Aes256Gcm, iv: [u8; 12], clear: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    key.decrypt(&Nonce::from(iv), Payload { msg: sealed, aad: clear }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_opened_by_its_host_key_and_no_other() {
        let key = |n: u8| private(&[n; 60]).expect("key");
        let (customer, host, other) = (key(1), key(2), key(3));
        let slot = slot(&customer, &host.public_key(), &[9; 32]).expect("slot");
        let customer = customer.public_key();
        assert_eq!(unwrap(&host, &customer, &slot), Some([9; 32]));
        assert_eq!(unwrap(&other, &customer, &slot), None);
    }

    #[test]
    fn a_point_is_read_back_unless_it_is_none() {
        let key = private(&[5; 64]).expect("key").public_key();
        let mut bytes = point(&key);
        assert_eq!(from_point(&bytes), Some(key));
        bytes[159] ^= 1;
        assert_eq!(from_point(&bytes), None);
        bytes[0] = 1;
        assert_eq!(from_point(&bytes), None);
    }
}
