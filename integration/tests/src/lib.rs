//! Nothing here: the tests stand in `tests/`, what they stand on in the crate `harness`.
