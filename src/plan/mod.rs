//! Decisions about the host's side of a pod: data in, data out.

pub mod cpus;
pub mod figures;
pub mod host_key;
pub mod machine;
pub mod network;
pub mod oom_score;
pub mod overhead;
pub mod preflight;
pub mod rootfs;
pub mod size;
pub mod vm;
