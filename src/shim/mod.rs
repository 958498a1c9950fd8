//! Entry points for containerd: `start`, `delete`, the Task and the Sandbox service, events.

pub(crate) mod command;
mod connections;
mod convert;
mod delete;
mod events;
mod flags;
mod messages;
mod pod_config;
mod pod_service;
mod sandbox_service;
mod serve;
mod start;
mod stats;
mod task_service;

use std::path::{Path, PathBuf};

use crate::error::{Code, Result};
use crate::host::files::read_bounded;
use crate::ids::ContainerId;
use crate::limits;
use crate::oci::role::Role;
use crate::oci::spec;

/// The folder of all pods of this host.
const RUN_DIR: &str = "/run/kata-se";

/// Another folder for all pods' state: for tests, and for hosts that keep /run elsewhere.
const RUN_DIR_ENVIRONMENT: &str = "KATA_SE_RUN_DIR";

/// The lock of a pod's shim and the socket it serves, below the pod's directory.
const LOCK: &str = "lock";
const SOCKET: &str = "s";

/// The place of a bundle's container in a pod. The Sandbox API has no container for the pod itself: that
/// bundle has no config.json, only the folder for a root file system that each one has.
fn role_of(bundle: &Path, id: &ContainerId) -> Result<Role> {
    match read_bounded(&bundle.join("config.json"), limits::SPEC_BYTES) {
        Ok(config) => spec::parse(&config, id).map(|bundle| bundle.role),
        Err(e) if e.code() == Code::NotFound && bundle.join("rootfs").is_dir() => Ok(Role::Sandbox),
        Err(e) => Err(e),
    }
}

pub(crate) fn run_dir() -> PathBuf {
    std::env::var_os(RUN_DIR_ENVIRONMENT).map_or_else(|| RUN_DIR.into(), PathBuf::from)
}

/// Between two looks at a lock, in the commands `start` and `delete`.
#[allow(clippy::disallowed_methods)] // processes of their own, not the server
fn poll_pause() {
    std::thread::sleep(std::time::Duration::from_millis(10));
}
