//! Any bytes as CRI's messages.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kata_se::test_api::fuzz::cri_messages(bytes);
});
