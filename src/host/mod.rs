//! The host's kernel interfaces, one per file; all `unsafe` of the program is in `sys`.

pub(crate) mod affinity;
pub mod capacity;
pub mod cgroup;
pub mod config_files;
pub mod facts;
pub mod figures;
pub mod files;
pub mod image_file;
pub mod log;
pub mod loopback;
pub mod netlink;
pub mod netns;
pub mod oom;
pub mod shim_cgroup;
pub mod spawn;
pub mod survey;
#[allow(unsafe_code)]
pub mod sys;
pub mod tap;
pub mod verified;
pub mod volume;
pub mod vsock;
