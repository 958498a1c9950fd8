//! Empty: the tests are in `tests/`, and what they share is in the crate `harness`.
