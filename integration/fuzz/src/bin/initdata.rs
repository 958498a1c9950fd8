//! Any bytes as a pod's initdata.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kata_se::test_api::fuzz::initdata(bytes);
});
