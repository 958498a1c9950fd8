//! The only user of the qapi crates: QMP over a socketpair, lines bounded.
