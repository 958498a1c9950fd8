//! Bytes in hexadecimal, as digests and keys are written: lower-case digits without separators.

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Exactly `N` bytes of two digits each, in lower or upper case.
pub(crate) fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    // `from_str_radix` alone would accept a sign.
    if text.len() != 2 * N || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_two_digits() {
        assert_eq!((hex(&[]), hex(&[0, 10, 0xff])), (String::new(), "000aff".to_owned()));
        assert_eq!(parse_hex("000aFF"), Some([0, 10, 0xff]));
        for text in ["", "000aff0", "000af", "000a+f", "000agg", "000aé"] {
            assert_eq!(parse_hex::<3>(text), None, "{text:?}");
        }
    }
}
