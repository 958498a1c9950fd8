//! Any bytes as a container's specification.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kata_se::test_api::fuzz::oci_spec(bytes);
});
