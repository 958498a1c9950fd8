//! Any bytes from QEMU.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kata_se::test_api::fuzz::qmp_lines(bytes);
});
