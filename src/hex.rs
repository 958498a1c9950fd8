//! Bytes in hexadecimal, as digests and keys are written: small letters, nothing between.

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_two_digits() {
        assert_eq!((hex(&[]), hex(&[0, 10, 0xff])), (String::new(), "000aff".to_owned()));
    }
}
