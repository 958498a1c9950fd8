//! One host key document, PEM or DER, and the hash by which images and machines name its key.

use sha2::{Digest, Sha256};
use x509_cert::der::asn1::{AnyRef, BitStringRef, ObjectIdentifier};
use x509_cert::der::{self, Decode, Reader, SliceReader, Tag, Tagged};

use crate::error::{Error, Result};
use crate::hostkey::certificate::Certificate;
use crate::hostkey::pem::{self, blocks};
use crate::image::{CustomerKey, KeyHash};

/// id-ecPublicKey, RFC 5480, and the curve every host key is on, secp521r1.
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP521R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");

/// A coordinate of a P-521 point: as in a certificate, and padded as in an image's header.
const COORDINATE: usize = 66;
const PADDED: usize = 80;

/// A certificate whose key is a host key's.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub certificate: Certificate,
    /// X and Y, padded.
    pub point: CustomerKey,
    pub key: KeyHash,
}

/// The hash of the key in a document, nothing else of which is looked at: for the shim.
pub(crate) fn key_hash(name: &str, bytes: &[u8]) -> Result<KeyHash> {
    only(name, bytes).and_then(|der| Ok(hash(&point(name, &der)?)))
}

impl Document {
    /// Reads a document, which must be the only one in its file: which of several is meant cannot be known.
    pub(crate) fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        let der = only(name, bytes)?;
        let point = point(name, &der)?;
        let certificate = Certificate::from_der(&format!("host key document {name}"), der)?;
        Ok(Self { certificate, key: hash(&point), point })
    }

    /// The key as in the certificate: 4 ‖ X ‖ Y, without padding.
    pub(crate) fn sec1(&self) -> Vec<u8> {
        let coordinates = self.point.0.chunks_exact(PADDED).flat_map(|c| c.iter().skip(PADDED - COORDINATE));
        std::iter::once(&4).chain(coordinates).copied().collect()
    }
}

fn only(name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut blocks = blocks(bytes, pem::CERTIFICATE).map_err(|why| wrong(name, &why))?;
    match (blocks.pop(), blocks.len()) {
        (Some(der), 0) => Ok(der),
        (_, more) => Err(wrong(
            name,
            &format!("{} certificates are in it: give each host key document its own file", more + 1),
        )),
    }
}

fn wrong(name: &str, why: &str) -> Error {
    Error::invalid(format!("host key document {name}: {why}"))
}

fn hash(point: &CustomerKey) -> KeyHash {
    KeyHash(Sha256::digest(point.0).into())
}

/// The public key's field of a certificate (RFC 5280, section 4.1), reached by skipping what comes before it.
fn public_key(certificate: &[u8]) -> der::Result<(ObjectIdentifier, Option<ObjectIdentifier>, &[u8])> {
    let mut outer = SliceReader::new(AnyRef::from_der(certificate)?.value())?;
    let mut signed = SliceReader::new(AnyRef::decode(&mut outer)?.value())?;
    let first = AnyRef::decode(&mut signed)?;
    // The version may be left out; then serial number, algorithm, issuer, validity, subject.
    let before = if first.tag() == Tag::Integer { 4 } else { 5 };
    for _ in 0..before {
        signed.tlv_bytes()?;
    }
    AnyRef::decode(&mut signed)?.sequence(|reader| {
        let (kind, curve) = AnyRef::decode(reader)?.sequence(|algorithm| {
            let kind = ObjectIdentifier::decode(algorithm)?;
            let parameters = algorithm.tlv_bytes().ok();
            let curve = parameters.and_then(|der| ObjectIdentifier::from_der(der).ok());
            algorithm.read_slice(algorithm.remaining_len())?;
            Ok::<_, der::Error>((kind, curve))
        })?;
        Ok((kind, curve, BitStringRef::decode(reader)?.as_bytes().unwrap_or_default()))
    })
}

/// The host key in the certificate: an uncompressed point, 4 ‖ X ‖ Y.
fn point(name: &str, certificate: &[u8]) -> Result<CustomerKey> {
    let (kind, curve, bytes) =
        public_key(certificate).map_err(|e| wrong(name, &format!("not an X.509 certificate: {e}")))?;
    if kind != EC_PUBLIC_KEY {
        return Err(wrong(name, &format!("its key is of type {kind}, a host key is an EC key (P-521)")));
    }
    if curve != Some(SECP521R1) {
        let curve = curve.map_or_else(|| "?".to_owned(), |curve| curve.to_string());
        let why = format!("its key is on the curve {curve}, a host key is on P-521 ({SECP521R1})");
        return Err(wrong(name, &why));
    }
    let (Some((4, both)), true) = (bytes.split_first(), bytes.len() == 1 + 2 * COORDINATE) else {
        let why = format!("its key of {} bytes is not an uncompressed P-521 point", bytes.len());
        return Err(wrong(name, &why));
    };
    let mut padded = [0; 2 * PADDED];
    for (to, from) in padded.chunks_exact_mut(PADDED).zip(both.chunks_exact(COORDINATE)) {
        let start = PADDED - COORDINATE;
        to.get_mut(start..).into_iter().for_each(|to| to.copy_from_slice(from));
    }
    Ok(CustomerKey(padded))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with OpenSSL; see testdata/README.
    const PEM: &[u8] = include_bytes!("testdata/host-key.crt");
    const OTHER_CURVE: &[u8] = include_bytes!("testdata/p384.crt");
    /// `openssl x509 -pubkey | openssl pkey -pubin -outform DER | tail -c 132`, each half padded to 80
    /// bytes, through sha256sum.
    const HASH: &str = include_str!("testdata/host-key.sha256");

    #[test]
    fn the_hash_is_that_of_the_padded_coordinates_and_the_same_from_pem_and_der() {
        let document = Document::parse("HKD.crt", PEM).expect("pem");
        assert_eq!(document.key.to_string(), HASH.trim());
        let der = Document::parse("HKD.der", &document.certificate.der).expect("der");
        assert_eq!(der.key, document.key);
        assert_eq!(key_hash("HKD.crt", PEM), Ok(document.key));
        assert!(crate::hostkey::signature::is_on_p521(&document.sec1()));
    }

    #[test]
    fn text_around_a_pem_block_and_other_line_ends_do_no_harm() {
        let text = String::from_utf8(PEM.to_vec()).expect("text");
        let dressed = format!("Machine 8561\r\n{}\r\ntrailer", text.replace('\n', "\r\n"));
        let key = |bytes| Document::parse("x", bytes).expect("document").key;
        assert_eq!(key(dressed.as_bytes()), key(PEM));
    }

    /// Each form is read by `openssl x509`, too.
    #[test]
    fn documents_are_read_in_all_forms_that_openssl_reads() {
        let document = Document::parse("x", PEM).expect("document");
        let der = &document.certificate.der;
        let text = String::from_utf8(PEM.to_vec()).expect("text");
        let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
        let block = |label: &str, body: &str| {
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n").into_bytes()
        };
        let (one, two) = body.split_at(200);
        // An empty sequence stands for the auxiliary data of OpenSSL's trusted certificates.
        let trusted = [der.as_slice(), &[0x30, 0]].concat();
        let trusted = String::from_utf8(pem::encode("TRUSTED CERTIFICATE", &trusted).expect("pem"));
        for (form, bytes) in [
            ("Latin-1", [b"# Schl\xfcssel\n", PEM, b"\xe4\n"].concat()),
            ("a comment that begins like DER", [b"0\x03abc\n", PEM].concat()),
            ("long lines", block("CERTIFICATE", &format!("{one}\n{two}"))),
            ("one line", block("CERTIFICATE", &body)),
            ("label X509", block("X509 CERTIFICATE", &body)),
            ("label TRUSTED", trusted.expect("text").into_bytes()),
            ("DER and a line end", [der.as_slice(), b"\r\n"].concat()),
        ] {
            let read = Document::parse("x", &bytes).map(|document| document.key);
            assert_eq!(read, Ok(document.key), "{form}");
            assert_eq!(key_hash("x", &bytes), Ok(document.key), "{form}");
        }
    }

    #[test]
    fn a_second_document_in_a_file_is_not_passed_over() {
        let der = Document::parse("x", PEM).expect("document").certificate.der;
        let text = String::from_utf8(PEM.to_vec()).expect("text");
        let other = text.replace(" CERT", " X509 CERT");
        let wanted =
            "host key document x: 2 certificates are in it: give each host key document its own file";
        for bytes in [PEM.repeat(2), [PEM, other.as_bytes()].concat(), der.repeat(2)] {
            assert_eq!(Document::parse("x", &bytes).expect_err(wanted).to_string(), wanted);
            assert_eq!(key_hash("x", &bytes).expect_err(wanted).to_string(), wanted);
        }
        let e = Document::parse("x", &[der.as_slice(), b"\nx"].concat()).expect_err("rest").to_string();
        assert_eq!(e, "host key document x: DER with 1 unknown byte(s) after it");
    }

    #[test]
    fn what_is_no_host_key_document_is_told_why() {
        for (bytes, wanted) in [
            (&b""[..], "host key document x: there is no \"-----BEGIN CERTIFICATE-----\" in it"),
            (b"\xff\xfe", "host key document x: neither DER nor PEM text"),
            (b"\x30\x82\x01", "host key document x: not an X.509 certificate"),
            (b"-----BEGIN CERTIFICATE-----\nAAAA", "host key document x: PEM without \"-----END"),
            (b"-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n", "host key document x: PEM: "),
            (
                OTHER_CURVE,
                "host key document x: its key is on the curve 1.3.132.0.34, a host key is on P-521",
            ),
        ] {
            let e = Document::parse("x", bytes).expect_err(wanted).to_string();
            assert!(e.starts_with(wanted), "{e}");
        }
    }

    #[test]
    fn a_document_cut_at_any_byte_is_refused_without_a_panic() {
        let der = Document::parse("x", PEM).expect("document").certificate.der;
        for end in 0..der.len() {
            let cut = der.get(..end).expect("cut");
            assert!(Document::parse("x", cut).is_err() && key_hash("x", cut).is_err(), "{end}");
        }
    }

    proptest::proptest! {
        #[test]
        fn changed_bytes_never_panic(changes in proptest::collection::vec((0_usize..540, 0_u8..=255), 1..8)) {
            let mut der = blocks(PEM, pem::CERTIFICATE).expect("pem").remove(0);
            for (at, value) in changes {
                if let Some(byte) = der.get_mut(at) {
                    *byte = value;
                }
            }
            // Either way, and both readers agree on the key.
            if let Ok(document) = Document::parse("x", &der) {
                proptest::prop_assert_eq!(key_hash("x", &der), Ok(document.key));
            }
        }
    }
}
