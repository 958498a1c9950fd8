//! Entry points for containerd: `start`, `delete`, the Task and the Sandbox service, events.

pub(crate) mod command;
mod connections;
pub(crate) mod convert;
mod delete;
mod events;
mod flags;
mod messages;
pub(crate) mod pod_config;
mod pod_service;
mod sandbox_service;
mod serve;
mod start;
pub(crate) mod stats;
mod task_service;

use std::fs;
use std::path::Path;

use crate::error::{Code, Result};
use crate::host::files::read_bounded;
use crate::ids::ContainerId;
use crate::limits;
use crate::oci::role::Role;
use crate::oci::spec;

/// The role of a bundle's container in its pod. The Sandbox API has no container for the pod itself: such a
/// bundle has no config.json, only the `rootfs` folder that every bundle has.
fn role_of(bundle: &Path, id: &ContainerId) -> Result<Role> {
    match read_bounded(&bundle.join("config.json"), limits::spec::SPEC_BYTES) {
        Ok(config) => spec::parse(&config, id).map(|bundle| bundle.role),
        Err(e) if e.code() == Code::NotFound && bundle.join("rootfs").is_dir() => Ok(Role::Sandbox),
        Err(e) => Err(e),
    }
}

/// The pause between two attempts to take a lock, in the commands `start` and `delete`.
#[allow(clippy::disallowed_methods)] // these commands have no runtime to block
fn poll_pause() {
    std::thread::sleep(std::time::Duration::from_millis(10));
}

/// Removes the pod's directory, unless its journal has entries that `delete` must clean up.
fn remove_pod_dir(dir: &Path) {
    if crate::pod::journal::read(dir).is_ok_and(|entries| entries.is_empty()) {
        fs::remove_dir_all(dir).ok();
    }
}
