//! The host: its kernel interfaces and its files. All `unsafe` of the program is in
//! `bpf`, `child_setup`, `confine` and `sys`.

pub(crate) mod affinity;
pub(crate) mod ask;
pub(crate) mod begun;
pub(crate) mod block_device;
#[allow(unsafe_code)]
mod bpf;
pub(crate) mod cgroup;
pub(crate) mod cgroup_stats;
#[allow(unsafe_code)]
mod child_setup;
pub(crate) mod config;
#[allow(unsafe_code)]
pub(crate) mod confine;
pub(crate) mod digest_cache;
pub(crate) mod empty_dir;
pub(crate) mod facts;
pub(crate) mod files;
pub(crate) mod image_file;
pub(crate) mod layer_cache;
pub(crate) mod layer_pack;
pub(crate) mod layer_room;
pub(crate) mod layer_size;
pub(crate) mod lock;
pub(crate) mod log;
pub(crate) mod loopback;
pub(crate) mod memory_file;
pub(crate) mod netlink;
pub(crate) mod netns;
pub(crate) mod network_scan;
pub(crate) mod network_trial;
pub(crate) mod probe;
pub(crate) mod process;
mod seccomp;
pub(crate) mod shim_cgroup;
#[allow(unsafe_code)]
pub(crate) mod sys;
pub(crate) mod tail;
pub(crate) mod tap;
pub(crate) mod tasks;
pub(crate) mod volume;
pub(crate) mod vsock;
pub(crate) mod watch;
