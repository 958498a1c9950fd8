//! Decisions about the host's side of a pod: data in, data out.

pub mod machine;
pub mod network;
pub mod rootfs;
pub mod vm;
