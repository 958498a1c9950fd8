//! The agent's records of containers and processes.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::AbortHandle;

use crate::failure::{Result, internal};
use crate::messages::oci;
use crate::reaper::{Exit, Reaper};
use crate::stdio::Stdio;

/// A process that was just created; a container's waits until it is started.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) pid: i32,
    pub(crate) stdio: Stdio,
    /// Releases a waiting process.
    pub(crate) gate: Option<OwnedFd>,
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) exit: Exit,
    pub(crate) stdio: Stdio,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Created,
    Running,
    Paused,
}

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) phase: Phase,
    pub(crate) init: Arc<Process>,
    pub(crate) gate: Option<OwnedFd>,
    /// By exec id; the init process under the container's id. Gone once waited for.
    pub(crate) processes: BTreeMap<String, Arc<Process>>,
    /// Mount points this container holds, in the order they were made.
    pub(crate) storages: Vec<String>,
    /// Defaults of an exec.
    pub(crate) capabilities: Option<oci::LinuxCapabilities>,
    pub(crate) oom_watch: Option<AbortHandle>,
    /// The file for its termination message here, or why there is none.
    pub(crate) message: Result<PathBuf>,
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(watch) = &self.oom_watch {
            watch.abort();
        }
    }
}

impl Process {
    /// `since`: a time before the process was created.
    pub(crate) fn new(launched: Launched, reaper: &Reaper, since: Instant) -> (Arc<Self>, Option<OwnedFd>) {
        let Launched { pid, stdio, gate } = launched;
        (Arc::new(Self { pid, exit: reaper.watch(pid, since), stdio }), gate)
    }
}

/// A program's name as the real agent complains about it.
pub(crate) fn not_found<T>(program: &str) -> Result<T> {
    Err(internal(format!("the file {program} was not found")))
}
