//! The state of a pod, as its lock guards it: the VM, the sandbox, the containers and their processes.
//!
//! Each life cycle is a table (`lifecycle`), and its phase is watched: code that has to wait for the end of a
//! phase waits for the watch, and no flag beside it says the same. The flags that are here say what was asked for
//! (`cancel`, `close_stdin`, `kill_asked`) or seen (`oom`, `killed`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::host::layer_room::Room;
use crate::host::tasks::Group;
use crate::ids::{ContainerId, ExecId, ProcessId, SandboxId};
use crate::lifecycle::process::{self, Emit, Input, Kind, Phase};
use crate::lifecycle::vm::{self, VmInput, VmPhase};
use crate::oci::guest_spec::GuestProcess;
use crate::oci::pod_spec::PodSpec;
use crate::plan::cpus::CpuList;
use crate::plan::rootfs::RootfsMount;
use crate::pod::guest::Guest;
use crate::pod::request::{CreateRequest, Exit, Service, Status, StdioPaths};
use crate::qemu::hotplug::DiskAddress;

/// Exit status of a process that ended with its VM: 128 + SIGKILL.
pub(crate) const KILLED: u32 = 137;

/// The signal that no process survives.
pub(crate) const SIGKILL: u32 = 9;

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) vm: VmState,
    /// None: the pod begins with its first container.
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    /// Whether a sandbox or a container was ever created here.
    pub(crate) used: bool,
    pub(crate) service: watch::Sender<Service>,
}

/// The VM as the pod sees it.
#[derive(Debug, Default)]
pub(crate) struct VmState {
    phase: watch::Sender<VmPhase>,
    /// From BootDone until it is stopped. Kept when its VM ends by itself: calls to it fail with the cause.
    guest: Option<Arc<Guest>>,
}

/// The sandbox of containerd's Sandbox API.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: SandboxId,
    pub(crate) spec: Arc<PodSpec>,
    pub(crate) created_at: SystemTime,
    /// Set once; every waiter watches it.
    pub(crate) exit: watch::Sender<Option<Exit>>,
    /// True asks a running Start to stop and undo itself, and keeps another from beginning.
    pub(crate) cancel: watch::Sender<bool>,
}

/// What the pod knows of one container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Vec<RootfsMount>,
    /// The pod's sandbox container, which only represents the pod.
    pub(crate) is_sandbox: bool,
    pub(crate) init: Process,
    pub(crate) execs: BTreeMap<ExecId, Process>,
    /// Disks that no other container uses: of its root file system, and of volumes until it is made.
    pub(crate) own_disks: Vec<OwnDisk>,
    /// What its root file system takes of the node's disk.
    pub(crate) room: Option<Room>,
    /// The host's CPUs that it may use; empty: none are named.
    pub(crate) cpus: CpuList,
    /// A caller asked for its end by KILL.
    pub(crate) kill_asked: bool,
    /// Paths in the guest of its copied volumes, from the moment at which their copying begins.
    pub(crate) copied: Vec<String>,
    /// The host's file for its termination message.
    pub(crate) message: Option<PathBuf>,
    /// What keeps its volumes up to date.
    pub(crate) updates: Option<Group>,
    /// How often the guest's OOM killer hit it.
    pub(crate) oom: watch::Sender<u64>,
    /// True asks a running Create to stop and undo itself.
    pub(crate) cancel: watch::Sender<bool>,
}

/// A disk that goes with its container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnDisk {
    pub(crate) address: DiskAddress,
    /// The file behind it, if that goes as well.
    pub(crate) file: Option<PathBuf>,
}

/// What the pod knows of one process.
#[derive(Debug)]
pub(crate) struct Process {
    kind: Kind,
    phase: watch::Sender<Phase>,
    pub(crate) stdio: StdioPaths,
    /// Set once; every waiter watches it.
    exit: watch::Sender<Option<Exit>>,
    /// True asks the stdin pump to pass the end of input on.
    pub(crate) close_stdin: watch::Sender<bool>,
    /// True when the guest has taken a KILL for it.
    pub(crate) killed: watch::Sender<bool>,
    /// What an exec is to run, until it is started.
    pub(crate) spec: Option<GuestProcess>,
}

impl State {
    pub(crate) fn container(&self, id: &ContainerId) -> Result<&Container> {
        self.containers.get(id).ok_or_else(|| no_container(id))
    }

    pub(crate) fn process(&self, id: &ProcessId) -> Result<&Process> {
        let container = self.container(&id.container)?;
        match &id.exec {
            None => Ok(&container.init),
            Some(exec) => container.execs.get(exec).ok_or_else(|| no_process(id)),
        }
    }

    /// Every process of every container.
    pub(crate) fn processes(&self) -> impl Iterator<Item = (ProcessId, &Process)> {
        self.containers.iter().flat_map(|(id, container)| {
            let of = |exec: &ExecId| ProcessId { container: id.clone(), exec: Some(exec.clone()) };
            let execs = container.execs.iter().map(move |(exec, process)| (of(exec), process));
            execs.chain([(ProcessId::init(id.clone()), &container.init)])
        })
    }

    pub(crate) fn process_mut(&mut self, id: &ProcessId) -> Result<&mut Process> {
        let container = self.containers.get_mut(&id.container).ok_or_else(|| no_container(&id.container))?;
        match &id.exec {
            None => Ok(&mut container.init),
            Some(exec) => container.execs.get_mut(exec).ok_or_else(|| no_process(id)),
        }
    }

    /// Nobody reads the container's volumes any more. Who frees it waits for an update that runs.
    pub(crate) fn end_updates(&self, id: &ContainerId) {
        if let Some(updates) = self.containers.get(id).and_then(|container| container.updates.as_ref()) {
            updates.stop();
        }
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> Result<&Sandbox> {
        let known = self.sandbox.as_ref().filter(|known| known.id == *id);
        known.ok_or_else(|| no_sandbox(id))
    }

    /// Whether new containers and sandboxes are accepted.
    pub(crate) fn is_serving(&self) -> bool {
        *self.service.borrow() == Service::Serving
    }
}

impl VmState {
    /// One step of the table.
    pub(crate) fn advance(&mut self, input: VmInput) -> Result<()> {
        let phase = self.phase();
        let next = vm::next(phase, input).ok_or_else(|| {
            Error::internal(format!("the VM is {phase:?} and met {input:?} (a bug in the shim)"))
        })?;
        self.phase.send_replace(next);
        Ok(())
    }

    pub(crate) fn phase(&self) -> VmPhase {
        *self.phase.borrow()
    }

    /// A watch of the phase.
    pub(crate) fn phases(&self) -> watch::Receiver<VmPhase> {
        self.phase.subscribe()
    }

    /// There is none, and nothing is left of an earlier one.
    pub(crate) fn is_free(&self) -> bool {
        self.guest.is_none() && matches!(self.phase(), VmPhase::Absent | VmPhase::Gone)
    }

    /// The guest is up.
    pub(crate) fn publish(&mut self, guest: Arc<Guest>) -> Result<()> {
        self.advance(VmInput::BootDone)?;
        self.guest = Some(guest);
        Ok(())
    }

    /// Begins its end; the guest, if there is one, is the caller's to stop.
    pub(crate) fn begin_stop(&mut self) -> Result<Option<Arc<Guest>>> {
        self.advance(VmInput::StopAsked)?;
        Ok(self.guest.take())
    }

    /// The guest, also one whose VM has ended by itself.
    pub(crate) fn guest(&self) -> Option<&Arc<Guest>> {
        self.guest.as_ref()
    }

    /// QEMU's process id on the host; 0 when there is none.
    pub(crate) fn pid(&self) -> u32 {
        self.guest.as_ref().map_or(0, |guest| guest.vm.pid())
    }
}

impl Sandbox {
    pub(crate) fn new(id: SandboxId, spec: PodSpec) -> Self {
        Self {
            id,
            spec: Arc::new(spec),
            created_at: SystemTime::now(),
            exit: watch::Sender::new(None),
            cancel: watch::Sender::new(false),
        }
    }
}

impl Container {
    pub(crate) fn creating(request: &CreateRequest, is_sandbox: bool, cpus: CpuList) -> Self {
        Self {
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            is_sandbox,
            init: Process::new(Kind::Init, request.stdio.clone(), None),
            execs: BTreeMap::new(),
            own_disks: Vec::new(),
            room: None,
            cpus,
            kill_asked: false,
            copied: Vec::new(),
            message: None,
            updates: None,
            oom: watch::Sender::new(0),
            cancel: watch::Sender::new(false),
        }
    }
}

impl Process {
    fn new(kind: Kind, stdio: StdioPaths, spec: Option<GuestProcess>) -> Self {
        Self {
            kind,
            phase: watch::Sender::new(kind.first_phase()),
            stdio,
            exit: watch::Sender::new(None),
            close_stdin: watch::Sender::new(false),
            killed: watch::Sender::new(false),
            spec,
        }
    }

    pub(crate) fn exec(stdio: StdioPaths, spec: GuestProcess) -> Self {
        Self::new(Kind::Exec, stdio, Some(spec))
    }

    /// One step of the table; what it emits is the caller's to queue.
    pub(crate) fn advance(&mut self, id: &ProcessId, input: Input) -> Result<&'static [Emit]> {
        let (phase, emits) =
            process::next(self.kind, self.phase(), input).map_err(|refused| refused.of(id))?;
        self.phase.send_replace(phase);
        Ok(emits)
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// It was started, and its end is not known.
    pub(crate) fn is_running(&self) -> bool {
        use Phase as P;
        matches!(self.phase(), P::Starting | P::Running | P::Pausing | P::Paused | P::Resuming)
    }

    /// A watch of the phase; closed when the process is no longer known.
    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Records the end; the first one wins.
    pub(crate) fn set_exit(&mut self, exit: Exit) {
        exit.publish(&self.exit);
    }

    /// A watch that becomes `Some` when the process has ended.
    pub(crate) fn exit_watch(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    pub(crate) fn status(&self) -> Status {
        match self.phase() {
            Phase::Creating | Phase::Created => Status::Created,
            Phase::Starting | Phase::Running | Phase::Pausing => Status::Running,
            Phase::Paused | Phase::Resuming => Status::Paused,
            Phase::Exited | Phase::Deleting => Status::Stopped,
        }
    }
}

pub(crate) fn no_container(id: &ContainerId) -> Error {
    Error::not_found(format!("container {id}: no such container in this pod"))
}

pub(crate) fn no_process(id: &ProcessId) -> Error {
    Error::not_found(format!("{id}: no such process"))
}

pub(crate) fn no_sandbox(id: &SandboxId) -> Error {
    Error::not_found(format!("sandbox {id}: no such sandbox in this shim"))
}
