//! PEM text and DER bytes. The text around PEM blocks and their line ends do not matter.

use x509_cert::der::pem::{LineEnding, decode_vec, encode_string};

use crate::error::{Error, Result};
use crate::limits;

/// The DER of a file: that of all PEM blocks with this label, or the file itself.
pub(crate) fn blocks(bytes: &[u8], label: &str) -> std::result::Result<Vec<Vec<u8>>, String> {
    if bytes.first() == Some(&0x30) {
        return Ok(vec![bytes.to_vec()]);
    }
    let text = std::str::from_utf8(bytes).map_err(|e| format!("neither DER nor PEM text: {e}"))?;
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(begin.as_str()) {
        let (body, next) = after.split_once(end.as_str()).ok_or_else(|| format!("PEM without \"{end}\""))?;
        let whole = format!("{begin}\n{}\n{end}\n", body.trim());
        let (_, der) = decode_vec(whole.as_bytes()).map_err(|e| format!("PEM: {e}"))?;
        found.push(der);
        if found.len() > limits::image::PEM_BLOCKS {
            return Err(format!("more than {} PEM blocks", limits::image::PEM_BLOCKS));
        }
        rest = next;
    }
    if found.is_empty() { Err(format!("there is no \"{begin}\" in it")) } else { Ok(found) }
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
        assert_eq!(blocks(&text, "CERTIFICATE"), Ok(vec![b"certificate".to_vec()]));
        assert_eq!(blocks(&text, "X509 CRL"), Ok(vec![b"list".to_vec()]));
    }

    #[test]
    fn the_number_of_blocks_is_bounded() {
        let block = encode("CERTIFICATE", b"certificate").expect("encode");
        let most = blocks(&block.repeat(limits::image::PEM_BLOCKS), "CERTIFICATE").expect("most");
        assert_eq!(most.len(), limits::image::PEM_BLOCKS);
        assert!(blocks(&block.repeat(limits::image::PEM_BLOCKS + 1), "CERTIFICATE").is_err());
    }
}
