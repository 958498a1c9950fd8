//! The doors containerd knocks at: `start`, `delete`, the Task service, events.

pub mod delete;
pub mod events;
pub mod main;
pub mod metrics;
pub mod serve;
pub mod start;
pub mod task;

use std::path::PathBuf;

/// The folder of all pods of this host.
const RUN_DIR: &str = "/run/kata-se";

/// Another folder for all pods' state: for tests, and for hosts that keep /run elsewhere.
const RUN_DIR_ENVIRONMENT: &str = "KATA_SE_RUN_DIR";

/// The lock of a pod's shim and the socket it serves, below the pod's directory.
const LOCK: &str = "lock";
const SOCKET: &str = "s";

pub(crate) fn run_dir() -> PathBuf {
    std::env::var_os(RUN_DIR_ENVIRONMENT).map_or_else(|| RUN_DIR.into(), PathBuf::from)
}

/// Between two looks at a lock, in the commands `start` and `delete`.
#[allow(clippy::disallowed_methods)] // processes of their own, not the server
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(10));
}
