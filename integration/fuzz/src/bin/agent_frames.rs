//! Any bytes from an agent.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kata_se::test_api::fuzz::agent_frames(bytes);
});
