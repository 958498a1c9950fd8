//! Decisions about the host's side of a pod: data in, data out.

pub mod host_key;
pub mod machine;
pub mod network;
pub mod preflight;
pub mod rootfs;
pub mod vm;
