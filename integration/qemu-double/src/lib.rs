//! QEMU's options and QMP's transport, for the programs that replace QEMU in tests; shared with `softuv`.

pub mod command_line;
pub mod help;
pub mod wire;
