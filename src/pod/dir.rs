//! Where the state of pods is on the host, and every file in a pod's directory.
//!
//! `/run/kata-se/<key>`, mode 0700; the key is a hash of containerd's address, the namespace and the sandbox's id
//! ([`PodKey`]). It is made by the command `start` and goes with the pod, or with `delete`.
//!
//! | name | what it is | made by |
//! | --- | --- | --- |
//! | [`LOCK`] | held by the shim as long as it lives; its content is the shim's process id | `shim::start` |
//! | [`SOCKET`] | where the shim serves the Task and the Sandbox service | `shim::start` |
//! | [`JOURNAL`] | what has to be removed with the pod | `pod::journal` |
//! | [`RECORD`] | which image runs, and why it failed; for people | `pod::record` |
//! | [`LOG`] | the last lines of the shim's log | `host::log` |
//! | [`PACK`] | where mkfs sees the layers that it packs, in its own mount namespace | `host::layer_pack` |
//! | `rooms` | what its packed images take of the disk | `host::layer_room` |
//! | [`VSOCK`] | folder of the vsock program's sockets, on hosts without a vhost driver | `qemu::vsock_device` |
//! | [`ETC`] | files of /etc for the containers of a Sandbox API pod | `pod::etc_files` |
//!
//! Beside the directories of pods there are the notes of `host::digest_cache`.

use std::path::{Path, PathBuf};

use crate::ids::PodKey;

/// The directory of all pods on this host.
const RUN_DIR: &str = "/run/kata-se";

/// Overrides it: for tests, and for hosts with another place for /run.
pub(crate) const ENVIRONMENT: &str = "KATA_SE_RUN_DIR";

pub(crate) const LOCK: &str = "lock";
pub(crate) const SOCKET: &str = "s"; // a socket's whole path has 107 bytes at most
pub(crate) const JOURNAL: &str = "journal";
pub(crate) const RECORD: &str = "state.json";
pub(crate) const LOG: &str = "log";
pub(crate) const PACK: &str = "pack";
pub(crate) const VSOCK: &str = "vsock";
pub(crate) const ETC: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// The directory that holds the directories of all pods.
pub(crate) fn run_dir() -> PathBuf {
    std::env::var_os(ENVIRONMENT).map_or_else(|| RUN_DIR.into(), PathBuf::from)
}

/// The directory of one pod.
pub(crate) fn of(run_dir: &Path, key: &PodKey) -> PathBuf {
    run_dir.join(key.as_str())
}
