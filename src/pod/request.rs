//! What the services of `shim` ask of the pod and what it answers, as our own types.

use std::path::PathBuf;
use std::time::SystemTime;

use tokio::sync::watch;

use crate::ids::{ContainerId, SandboxId};
use crate::oci::pod_spec::PodSpec;
use crate::plan::rootfs::RootfsMount;

/// Task.Create.
#[derive(Clone, Debug)]
pub(crate) struct CreateRequest {
    pub id: ContainerId,
    /// Folder with config.json and rootfs/, absolute.
    pub bundle: PathBuf,
    pub rootfs: Vec<RootfsMount>,
    pub stdio: StdioPaths,
    /// `ConfigPath` of the runtime options.
    pub config_path: Option<PathBuf>,
}

/// CreateSandbox of the Sandbox API.
#[derive(Clone, Debug)]
pub(crate) struct SandboxRequest {
    pub id: SandboxId,
    pub spec: PodSpec,
}

/// SandboxStatus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SandboxState {
    /// Its VM runs.
    pub ready: bool,
    /// The VM's process on the host; 0 when there is none.
    pub pid: u32,
    pub created_at: SystemTime,
    /// Its status is 0 when the sandbox was stopped.
    pub exit: Option<Exit>,
}

/// The client's stream paths as given: fifos, `file://` or `binary://`; empty means none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StdioPaths {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// Task.Exec.
#[derive(Clone, Debug)]
pub(crate) struct ExecRequest {
    pub container: ContainerId,
    pub exec: crate::ids::ExecId,
    /// The OCI process as JSON.
    pub process: Vec<u8>,
    pub stdio: StdioPaths,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

/// What the shim still does for its callers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Service {
    #[default]
    Serving,
    /// Shutdown was asked for: nothing new is begun.
    ShuttingDown,
    /// Everything is ended and removed: the shim may exit.
    ShutDown,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code, or 128 + signal number.
    pub status: u32,
    pub at: SystemTime,
}

impl Exit {
    /// Publishes the end to those who watch for it; the first one wins.
    pub(crate) fn publish(self, watched: &watch::Sender<Option<Self>>) {
        watched.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(self);
            }
            first
        });
    }
}

/// Task.State.
#[derive(Clone, Debug)]
pub(crate) struct ProcessState {
    pub bundle: PathBuf,
    pub status: Status,
    /// The VM's process on the host.
    pub pid: u32,
    pub stdio: StdioPaths,
    pub exit: Option<Exit>,
}

/// Task.Delete. `exit` is what State would have said: 0 at the epoch for a process never started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deleted {
    pub pid: u32,
    pub exit: Option<Exit>,
}
