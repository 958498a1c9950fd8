//! What stands in for QEMU speaks QMP as QEMU does; shared with `softuv`.

pub mod wire;
