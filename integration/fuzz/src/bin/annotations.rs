//! Any text as a pod's annotations.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kata_se::test_api::fuzz::annotations(bytes);
});
