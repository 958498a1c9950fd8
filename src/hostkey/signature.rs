//! Signatures of certificates and revocation lists: RSA (PKCS #1 v1.5) and ECDSA on P-384 and P-521,
//! with SHA-256 or better. Only verification, only public data.

use p521::ecdsa::signature::hazmat::PrehashVerifier;
use rsa::traits::PublicKeyParts;
use rsa::{BigUint, Pkcs1v15Sign, RsaPublicKey};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::der::asn1::{AnyRef, BitString, ObjectIdentifier, UintRef};
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::{Decode, Reader, SliceReader};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

/// A signed structure: its DER, and what it says about its signature.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signed<'a> {
    pub(crate) whole: &'a [u8],
    pub(crate) algorithm: &'a AlgorithmIdentifierOwned,
    pub(crate) signature: &'a BitString,
}

type Verdict = Result<(), String>;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");

/// Bits of an RSA modulus: 2048 have the strength of 112 bits, the least that pvimg takes; the upper
/// bound is for time.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A hash, and the padding of an RSA signature over it.
#[derive(Clone, Copy, Debug)]
struct Hash {
    sum: fn(&[u8]) -> Vec<u8>,
    padding: fn() -> Pkcs1v15Sign,
}

const fn hash<D: Digest + AssociatedOid>() -> Hash {
    Hash { sum: |bytes| D::digest(bytes).to_vec(), padding: Pkcs1v15Sign::new::<D> }
}

const SHA256: Hash = hash::<Sha256>();
const SHA384: Hash = hash::<Sha384>();
const SHA512: Hash = hash::<Sha512>();

/// Signature algorithms: identifier, kind of the key, hash.
const ALGORITHMS: [(ObjectIdentifier, ObjectIdentifier, Hash); 6] = [
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11"), RSA, SHA256),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12"), RSA, SHA384),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13"), RSA, SHA512),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2"), EC, SHA256),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3"), EC, SHA384),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4"), EC, SHA512),
];

/// RSA and ECDSA with SHA-1, of which nothing is accepted.
pub(crate) const SHA1: [ObjectIdentifier; 2] =
    [ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.5"), ObjectIdentifier::new_unwrap("1.2.840.10045.4.1")];

/// Does the signature fit the key?
pub(crate) fn verify(signed: &Signed<'_>, key: &SubjectPublicKeyInfoOwned) -> Verdict {
    let oid = signed.algorithm.oid;
    let (_, kind, hash) = ALGORITHMS.iter().find(|(known, _, _)| *known == oid).ok_or_else(|| {
        format!("algorithm {oid} is not accepted: known are RSA and ECDSA with SHA-256, SHA-384, SHA-512")
    })?;
    if *kind != key.algorithm.oid {
        return Err("it is of another kind than the key".to_owned());
    }
    let message = content(signed.whole).map_err(|e| e.to_string())?;
    let signature = signed.signature.as_bytes().ok_or("it is not whole bytes")?;
    let sum = (hash.sum)(message);
    if *kind == RSA { rsa(key, hash, &sum, signature) } else { ecdsa(key, &sum, signature) }
}

/// As strong as 112 bits, by which OpenSSL's security level 2 is meant?
pub(crate) fn check_strength(key: &SubjectPublicKeyInfoOwned) -> Verdict {
    if key.algorithm.oid == RSA { rsa_key(key).map(|_| ()) } else { curve(key).map(|_| ()) }
}

/// The first element of the outer sequence, as it is there: what was signed.
fn content(whole: &[u8]) -> x509_cert::der::Result<&[u8]> {
    SliceReader::new(AnyRef::from_der(whole)?.value())?.tlv_bytes()
}

fn curve(key: &SubjectPublicKeyInfoOwned) -> Result<ObjectIdentifier, String> {
    let curve = key.algorithm.parameters.as_ref().and_then(|p| p.decode_as::<ObjectIdentifier>().ok());
    match curve {
        Some(curve) if key.algorithm.oid == EC && [P384, P521].contains(&curve) => Ok(curve),
        _ => Err("neither RSA nor on the curve P-384 or P-521".to_owned()),
    }
}

fn ecdsa(key: &SubjectPublicKeyInfoOwned, sum: &[u8], signature: &[u8]) -> Verdict {
    let point = key.subject_public_key.as_bytes().unwrap_or_default();
    let wrong = |_| "it does not verify".to_owned();
    let no_key = |_| "the key is not a point of its curve".to_owned();
    if curve(key)? == P384 {
        let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(point).map_err(no_key)?;
        let signature = p384::ecdsa::Signature::from_der(signature).map_err(wrong)?;
        return key.verify_prehash(sum, &signature).map_err(wrong);
    }
    let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(point).map_err(no_key)?;
    let signature = p521::ecdsa::Signature::from_der(signature).map_err(wrong)?;
    key.verify_prehash(sum, &signature).map_err(wrong)
}

/// Is it a point of P-521? (A host key that is none would make no key slot.)
pub(crate) fn is_on_p521(sec1: &[u8]) -> bool {
    p521::ecdsa::VerifyingKey::from_sec1_bytes(sec1).is_ok()
}

/// The key, of an acceptable size.
fn rsa_key(key: &SubjectPublicKeyInfoOwned) -> Result<RsaPublicKey, String> {
    let bytes = key.subject_public_key.as_bytes().unwrap_or_default();
    let parts = AnyRef::from_der(bytes).and_then(|any| {
        any.sequence(|reader| {
            Ok::<_, x509_cert::der::Error>((UintRef::decode(reader)?, UintRef::decode(reader)?))
        })
    });
    let (modulus, exponent) = parts.map_err(|e| format!("not an RSA key: {e}"))?;
    let number = |part: UintRef<'_>| BigUint::from_bytes_be(part.as_bytes());
    let bits = number(modulus).bits();
    if !RSA_BITS.contains(&bits) {
        return Err(format!("RSA of {bits} bits, accepted are {} to {}", RSA_BITS.start(), RSA_BITS.end()));
    }
    RsaPublicKey::new_with_max_size(number(modulus), number(exponent), *RSA_BITS.end())
        .map_err(|e| format!("not an RSA key: {e}"))
}

fn rsa(key: &SubjectPublicKeyInfoOwned, hash: &Hash, sum: &[u8], signature: &[u8]) -> Verdict {
    let key = rsa_key(key)?;
    if signature.len() != key.size() {
        return Err("it does not verify".to_owned());
    }
    key.verify((hash.padding)(), sum, signature).map_err(|_no_detail| "it does not verify".to_owned())
}

#[cfg(test)]
mod tests {
    use crate::hostkey::Certificate;

    fn one(bytes: &[u8]) -> Certificate {
        Certificate::parse_all("c", bytes).expect("certificate").remove(0)
    }

    /// Self-signed, made with OpenSSL (testdata/README): RSA with each hash, and both curves.
    const GOOD: [&[u8]; 5] = [
        include_bytes!("testdata/rsa2048-sha256.crt"),
        include_bytes!("testdata/rsa4096-sha384.crt"),
        include_bytes!("testdata/rsa3072-sha512.crt"),
        include_bytes!("testdata/p384.crt"),
        include_bytes!("testdata/host-key.crt"),
    ];

    #[test]
    fn what_openssl_signed_verifies_and_nothing_else_does() {
        for bytes in GOOD {
            let good = one(bytes);
            good.check_signature(&good).expect("its own key");
            good.check_strength().expect("strong");
            // The last bytes are the signature's, those at 200 the names'.
            for at in [200, good.der.len() - 1, good.der.len() - 40] {
                let mut der = good.der.clone();
                *der.get_mut(at).expect("byte") ^= 1;
                let Ok(bad) = Certificate::from_der("bad", der) else { continue };
                let e = bad.check_signature(&good).expect_err("damaged").to_string();
                assert!(e.starts_with("bad: signature: it does not verify (key of c)"), "{e}");
            }
        }
        let (rsa, ec) = (one(GOOD[0]), one(GOOD[3]));
        let e = rsa.check_signature(&ec).expect_err("other kind").to_string();
        assert_eq!(e, "c: signature: it is of another kind than the key (key of c)");
        assert!(rsa.check_signature(&one(GOOD[1])).is_err(), "another key");
    }

    #[test]
    fn weak_keys_and_hashes_are_not_accepted() {
        let weak = one(include_bytes!("testdata/rsa1024.crt"));
        let e = weak.check_strength().expect_err("weak").to_string();
        assert_eq!(e, "c: public key: RSA of 1024 bits, accepted are 2048 to 8192");
        let old = one(include_bytes!("testdata/rsa2048-sha1.crt"));
        let e = old.check_signature(&old).expect_err("SHA-1").to_string();
        assert!(e.starts_with("c: signature: algorithm 1.2.840.113549.1.1.5 is not accepted"), "{e}");
    }
}
