//! PEM text and DER bytes, as leniently as OpenSSL reads them: the text around PEM blocks, its encoding, the
//! length and the ends of their lines do not matter, nor do line ends after DER.

use x509_cert::der::pem::{LineEnding, decode_vec, encode_string};
use x509_cert::der::{Reader, SliceReader};

use crate::error::{Error, Result};
use crate::limits;

/// OpenSSL's labels for a certificate: today's, the one of old programs, and that of a certificate with
/// auxiliary data after it.
pub(crate) const CERTIFICATE: &[&str] = &["CERTIFICATE", "X509 CERTIFICATE", TRUSTED];
const TRUSTED: &str = "TRUSTED CERTIFICATE";

pub(crate) const REVOCATION_LIST: &[&str] = &["X509 CRL"];

type Blocks = std::result::Result<Vec<Vec<u8>>, String>;

/// The DER of a file: that of all PEM blocks with one of these labels, or all of the file itself.
pub(crate) fn blocks(bytes: &[u8], labels: &[&str]) -> Blocks {
    let text = String::from_utf8_lossy(bytes);
    // A comment may begin with the digit 0, which is also the first byte of DER.
    if bytes.first() == Some(&0x30) && begin(&text, labels).is_none() {
        return elements(bytes);
    }
    let mut found = Vec::new();
    let mut rest = text.as_ref();
    while let Some((label, after)) = begin(rest, labels) {
        let end = format!("-----END {label}-----");
        let (body, next) = after.split_once(end.as_str()).ok_or_else(|| format!("PEM without \"{end}\""))?;
        let der = decode(label, body)?;
        // The auxiliary data of a trusted certificate follow it.
        let certificate =
            if label == TRUSTED { element(&der).map(|(first, _)| first.to_vec()) } else { None };
        found.push(certificate.unwrap_or(der));
        bounded(&found)?;
        rest = next;
    }
    if !found.is_empty() {
        return Ok(found);
    }
    std::str::from_utf8(bytes).map_err(|e| format!("neither DER nor PEM text: {e}"))?;
    Err(format!("there is no \"-----BEGIN {}-----\" in it", labels.first().unwrap_or(&"")))
}

/// The label of the first block, and what follows its first line.
fn begin<'t, 'l>(text: &'t str, labels: &[&'l str]) -> Option<(&'l str, &'t str)> {
    let after = |label: &&'l str| Some((*label, text.split_once(&format!("-----BEGIN {label}-----"))?.1));
    labels.iter().filter_map(after).max_by_key(|(_, after)| after.len())
}

/// The decoder insists on lines of equal length, of at most 64 columns.
fn decode(label: &str, body: &str) -> std::result::Result<Vec<u8>, String> {
    let mut lines = String::with_capacity(body.len());
    for (at, c) in body.chars().filter(|c| !c.is_ascii_whitespace()).enumerate() {
        if at > 0 && at % 64 == 0 {
            lines.push('\n');
        }
        lines.push(c);
    }
    let whole = format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n");
    decode_vec(whole.as_bytes()).map(|(_, der)| der).map_err(|e| format!("PEM: {e}"))
}

/// All DER elements of a file. What is cut is left to its reader, who says what it should be.
fn elements(bytes: &[u8]) -> Blocks {
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        match element(rest) {
            Some((first, next)) if first.first() == Some(&0x30) => {
                found.push(first.to_vec());
                rest = next.trim_ascii();
            }
            _ if found.is_empty() => return Ok(vec![bytes.to_vec()]),
            _ => return Err(format!("DER with {} unknown byte(s) after it", rest.len())),
        }
        bounded(&found)?;
    }
    Ok(found)
}

/// The first DER element, and what follows it.
fn element(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let first = SliceReader::new(bytes).ok()?.tlv_bytes().ok()?;
    bytes.split_at_checked(first.len())
}

fn bounded(found: &[Vec<u8>]) -> std::result::Result<(), String> {
    if found.len() > limits::image::PEM_BLOCKS {
        return Err(format!("more than {} PEM blocks", limits::image::PEM_BLOCKS));
    }
    Ok(())
}

/// One PEM block with this label.
pub(crate) fn encode(label: &str, der: &[u8]) -> Result<Vec<u8>> {
    encode_string(label, LineEnding::LF, der)
        .map(String::into_bytes)
        .map_err(|e| Error::internal(format!("encode {label}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_again_among_blocks_of_other_labels() {
        let both = [encode("X509 CRL", b"list"), encode("CERTIFICATE", b"certificate")];
        let text: Vec<u8> = both.into_iter().flat_map(|block| block.expect("encode")).collect();
        assert_eq!(blocks(&text, CERTIFICATE), Ok(vec![b"certificate".to_vec()]));
        assert_eq!(blocks(&text, REVOCATION_LIST), Ok(vec![b"list".to_vec()]));
    }

    #[test]
    fn the_number_of_blocks_is_bounded() {
        let block = encode("CERTIFICATE", b"certificate").expect("encode");
        let most = blocks(&block.repeat(limits::image::PEM_BLOCKS), CERTIFICATE).expect("most");
        assert_eq!(most.len(), limits::image::PEM_BLOCKS);
        assert!(blocks(&block.repeat(limits::image::PEM_BLOCKS + 1), CERTIFICATE).is_err());
    }
}
