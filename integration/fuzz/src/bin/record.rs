//! Any bytes as a sandbox record.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kata_se::test_api::fuzz::record(bytes);
});
