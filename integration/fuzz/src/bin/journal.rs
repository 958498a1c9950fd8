//! Any bytes as a pod's journal.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kata_se::test_api::fuzz::journal(bytes);
});
