//! Any bytes as a sealed image: the reader neither panics nor exhausts memory.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kata_se::test_api::image::fuzz_se_image(bytes));
