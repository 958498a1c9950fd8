//! Which kernels can be sealed, and how long their command line may be.

use crate::Result;

/// Offset of the mark of a kernel for s390x (Linux, arch/s390/boot/head.S).
const MAGIC_AT: usize = 0x10008;
const MAGIC: &[u8] = b"S390EP";

/// Offset of the maximum length of its command line; 0 is the 896 of older kernels.
const COMMAND_LINE_LIMIT_AT: usize = 0x10430;
const OLD_COMMAND_LINE_LIMIT: u64 = 896;

/// Checks the kernel, and the command line (with its NUL) against the kernel's maximum.
pub fn check(kernel: &[u8], command_line: &[u8]) -> Result<()> {
    if kernel.starts_with(b"\x7fELF") {
        return Err("the kernel is an ELF file: take the raw image, arch/s390/boot/bzImage".into());
    }
    if kernel.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) != Some(MAGIC) {
        return Err(format!("the kernel has no S390EP at {MAGIC_AT:#x}: it is not a kernel for s390x"));
    }
    let limit = kernel.get(COMMAND_LINE_LIMIT_AT..).and_then(|rest| rest.first_chunk());
    let limit = match limit.map_or(0, |bytes| u64::from_be_bytes(*bytes)) {
        0 => OLD_COMMAND_LINE_LIMIT,
        limit => limit,
    };
    if command_line.len() as u64 > limit {
        return Err(format!(
            "the command line has {} bytes with its NUL, this kernel takes {limit}",
            command_line.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_raw_kernel_for_s390x_is_taken() {
        let mut kernel = vec![0; 0x11000];
        assert!(check(&kernel, b"\0").is_err());
        kernel[MAGIC_AT..MAGIC_AT + 6].copy_from_slice(MAGIC);
        assert_eq!(check(&kernel, &[b'a'; 896]), Ok(()));
        assert!(
            check(&kernel, &[b'a'; 897])
                .is_err_and(|e| e.ends_with("897 bytes with its NUL, this kernel takes 896"))
        );
        kernel[COMMAND_LINE_LIMIT_AT..COMMAND_LINE_LIMIT_AT + 8].copy_from_slice(&4096_u64.to_be_bytes());
        assert_eq!(check(&kernel, &[b'a'; 4096]), Ok(()));
        kernel[..4].copy_from_slice(b"\x7fELF");
        assert!(check(&kernel, b"\0").is_err_and(|e| e.contains("ELF")));
    }
}
