//! What stands in for QEMU takes its options and speaks QMP as QEMU does; shared with `softuv`.

pub mod command_line;
pub mod wire;
