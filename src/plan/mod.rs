//! Decisions about the host's side of a pod: data in, data out.

pub(crate) mod agent_version;
pub(crate) mod checks;
pub(crate) mod cpus;
pub(crate) mod empty_dir;
pub(crate) mod finding;
pub(crate) mod host_facts;
pub(crate) mod key_slot;
pub(crate) mod network;
pub(crate) mod oom_score;
pub(crate) mod overhead;
pub(crate) mod pull_error;
pub(crate) mod rootfs;
pub(crate) mod size;
pub(crate) mod stats;
pub(crate) mod vm;
