//! Any bytes as host key documents, certificates and revocation lists.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kata_se::test_api::fuzz::host_key_document(bytes);
});
