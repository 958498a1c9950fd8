//! Any bytes as a sealed image.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kata_se::test_api::fuzz::se_image(bytes);
});
