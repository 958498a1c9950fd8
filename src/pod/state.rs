//! The state of a pod: its VM, its sandbox, its containers and their processes, as the pod's lock guards it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tokio::sync::watch as channel;

use crate::ccw::DevNo;
use crate::error::Result;
use crate::ids::{ExecId, ProcessId};
use crate::lifecycle::process::{Emit, Input, Kind, Phase};
use crate::plan::cpus::CpuList;
use crate::plan::rootfs::RootfsMount;
use crate::pod::request::{CreateRequest, Exit, Status, StdioPaths};

/// Exit status of a process that ended with its VM: 128 + SIGKILL.
pub(crate) const KILLED: u32 = 137;

/// The signal that no process survives.
pub(crate) const SIGKILL: u32 = 9;

/// What the pod knows of one container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Vec<RootfsMount>,
    /// The pod's sandbox container, which only stands for the pod.
    pub(crate) is_sandbox: bool,
    pub(crate) init: Process,
    pub(crate) execs: BTreeMap<ExecId, Process>,
    /// The disk of its root file system, when no other container uses it.
    pub(crate) own_disk: Option<DevNo>,
    /// The host's CPUs that it may use; empty: none are named.
    pub(crate) cpus: CpuList,
    /// A caller asked for its end by KILL.
    pub(crate) kill_asked: bool,
    /// True when the guest's OOM killer hit it.
    pub(crate) oom: channel::Sender<bool>,
    /// True asks a running Create to stop and undo itself.
    pub(crate) cancel: channel::Sender<bool>,
    /// True when Create has ended, either way, with its undo behind it.
    pub(crate) created: channel::Sender<bool>,
    /// True while Delete is at work; closed when it has succeeded.
    pub(crate) deleting: channel::Sender<bool>,
}

/// What the pod knows of one process.
#[derive(Debug)]
pub(crate) struct Process {
    kind: Kind,
    phase: Phase,
    pub(crate) stdio: StdioPaths,
    /// Set once; every waiter watches it.
    exit: channel::Sender<Option<Exit>>,
    /// True asks the stdin pump to pass the end of input on.
    pub(crate) close_stdin: channel::Sender<bool>,
    /// True when the guest has taken a KILL for it.
    pub(crate) killed: channel::Sender<bool>,
    /// An exec's OCI process as JSON, until it is started.
    pub(crate) spec: Vec<u8>,
}

impl Container {
    pub(crate) fn creating(request: &CreateRequest, is_sandbox: bool, cpus: CpuList) -> Self {
        Self {
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            is_sandbox,
            init: Process::new(Kind::Init, request.stdio.clone(), Vec::new()),
            execs: BTreeMap::new(),
            own_disk: None,
            cpus,
            kill_asked: false,
            oom: channel::Sender::new(false),
            cancel: channel::Sender::new(false),
            created: channel::Sender::new(false),
            deleting: channel::Sender::new(false),
        }
    }
}

impl Process {
    fn new(kind: Kind, stdio: StdioPaths, spec: Vec<u8>) -> Self {
        Self {
            kind,
            phase: kind.first_phase(),
            stdio,
            exit: channel::Sender::new(None),
            close_stdin: channel::Sender::new(false),
            killed: channel::Sender::new(false),
            spec,
        }
    }

    pub(crate) fn exec(stdio: StdioPaths, spec: Vec<u8>) -> Self {
        Self::new(Kind::Exec, stdio, spec)
    }

    /// One step of the table; what it emits is the caller's to queue.
    pub(crate) fn advance(&mut self, id: &ProcessId, input: Input) -> Result<&'static [Emit]> {
        let (phase, emits) = crate::lifecycle::process::next(self.kind, self.phase, input)
            .map_err(|refused| refused.of(id))?;
        self.phase = phase;
        Ok(emits)
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Records the end; the first one wins.
    pub(crate) fn set_exit(&mut self, exit: Exit) {
        exit.tell(&self.exit);
    }

    /// A watch that becomes `Some` when the process has ended.
    pub(crate) fn exit_watch(&self) -> channel::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    pub(crate) fn status(&self) -> Status {
        match self.phase {
            Phase::Creating | Phase::Created => Status::Created,
            Phase::Starting | Phase::Running | Phase::Pausing => Status::Running,
            Phase::Paused | Phase::Resuming => Status::Paused,
            Phase::Exited | Phase::Deleting => Status::Stopped,
        }
    }
}
