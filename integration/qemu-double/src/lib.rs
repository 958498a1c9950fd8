//! What stands in for QEMU takes its options and speaks QMP as QEMU does; shared with `softuv`.

pub mod wire;
pub mod words;
