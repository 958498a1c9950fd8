//! The pod: the state of one sandbox, how its VM starts and ends, and what happens to it in between.
//!
//! The state is behind one small mutex, held for microseconds and never across an await. An
//! operation locks, asks the state table for its transition, unlocks, does the slow thing, and
//! locks again to record the result; the transitional phases are what excludes two operations
//! from each other. Events are queued under the same lock, so their order is that of the
//! transitions. What containerd asks for is in `task`.

mod boot_disks;
mod cgroup;
pub(crate) mod cleanup;
pub(crate) mod dir;
pub(crate) mod disks;
pub(crate) mod etc_files;
pub(crate) mod event;
pub(crate) mod guest;
pub(crate) mod journal;
pub(crate) mod launch;
mod network;
mod oom;
mod port_forward;
mod preflight;
pub(crate) mod prepare;
pub(crate) mod record;
pub(crate) mod request;
pub(crate) mod scheduling;
pub(crate) mod state;
pub(crate) mod stop;
mod supervise;
pub(crate) mod taps;
mod vsock;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use slog::Logger;
use tokio::sync::Notify;

use crate::error::{Error, Result};
use crate::host::log::LevelSwitch;
use crate::host::shim_cgroup::OriginalCgroup;
use crate::host::watch::Watches;
use crate::ids::{Namespace, PodKey, ProcessId, SandboxId};
use crate::lifecycle::process::{Emit, Input, Phase};
use crate::lifecycle::vm::VmPhase;
use crate::mutex;
use crate::pod::event::{Event, EventQueue};
use crate::pod::guest::Guest;
use crate::pod::journal::Journal;
use crate::pod::request::Exit;
use crate::pod::state::{Process, State};

/// What makes a pod this pod; fixed for the shim's life.
#[derive(Debug)]
pub(crate) struct PodParts {
    pub key: PodKey,
    pub namespace: Namespace,
    pub sandbox: SandboxId,
    /// The pod's own directory (`/run/kata-se/<key>`), existing, mode 0700.
    pub dir: PathBuf,
    pub log: Logger,
    /// containerd wants that no two pods share a CPU core at a time (its option `SCHED_CORE`).
    pub core_scheduling: bool,
    /// Lets the configuration set the log's level.
    pub level: LevelSwitch,
}

/// One sandbox with its VM and its containers.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) parts: PodParts,
    pub(crate) journal: Journal,
    /// What the sender in `shim::events` takes to containerd.
    pub events: EventQueue,
    /// Notified when a container is no longer known.
    pub(crate) container_removed: Notify,
    /// Watches of its containers' volumes.
    pub(crate) watches: Watches,
    /// Held while one of them is updated.
    pub(crate) publishing: tokio::sync::Mutex<()>,
    /// The way out of the shim's own cgroup, while it is in it.
    pub(crate) original_cgroup: Arc<Mutex<Option<OriginalCgroup>>>,
    state: Mutex<State>,
}

impl Pod {
    /// Opens the pod's journal in its directory; nothing else is made yet.
    pub(crate) fn new(parts: PodParts) -> Result<Arc<Self>> {
        let journal = Journal::open(&parts.dir)?;
        Ok(Arc::new(Self {
            parts,
            journal,
            events: EventQueue::default(),
            container_removed: Notify::new(),
            watches: Watches::default(),
            publishing: tokio::sync::Mutex::default(),
            original_cgroup: Arc::default(),
            state: Mutex::default(),
        }))
    }

    pub(crate) fn log(&self) -> &Logger {
        &self.parts.log
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        mutex::lock(&self.state)
    }

    /// The guest, or why there is none. Calls to one whose VM has ended by itself fail with the cause.
    pub(crate) fn guest(&self) -> Result<Arc<Guest>> {
        let state = self.lock();
        if let Some(guest) = state.vm.guest() {
            return Ok(Arc::clone(guest));
        }
        let why = match state.vm.phase() {
            VmPhase::Absent | VmPhase::Booting | VmPhase::Up => "its VM is not running yet",
            VmPhase::Stopping | VmPhase::Gone => "its VM has ended",
        };
        Err(Error::precondition(format!("sandbox {}: {why}", self.parts.sandbox)))
    }

    /// Waits until the process is in another phase than `phase`, or no longer known.
    pub(crate) async fn wait_while(&self, id: &ProcessId, phase: Phase) {
        let phases = self.lock().process(id).map(Process::phases);
        if let Ok(mut phases) = phases {
            phases.wait_for(|now| *now != phase).await.ok();
        }
    }

    /// Applies `input` to a process by the table and queues what it emits, under one lock.
    pub(crate) fn advance(&self, id: &ProcessId, input: Input) -> Result<()> {
        self.advance_with(id, input, |_| ())
    }

    /// As [`Self::advance`]; `also` changes the process in the same moment, before the events.
    pub(crate) fn advance_with<T>(
        &self,
        id: &ProcessId,
        input: Input,
        also: impl FnOnce(&mut Process) -> T,
    ) -> Result<T> {
        self.advance_in(&mut self.lock(), id, input, also)
    }

    /// The same in the moment of a decision that was made by `state`, the pod's own.
    pub(crate) fn advance_in<T>(
        &self,
        state: &mut State,
        id: &ProcessId,
        input: Input,
        also: impl FnOnce(&mut Process) -> T,
    ) -> Result<T> {
        let pid = state.vm.pid();
        let process = state.process_mut(id)?;
        let emits = process.advance(id, input)?;
        let result = also(process);
        let exit = process.exit();
        for emit in emits {
            if let Some(event) = event_of(state, id, *emit, pid, exit) {
                self.events.push(event);
            }
        }
        Ok(result)
    }

    /// Records the end of a process and queues its event; the first end wins.
    pub(crate) fn end_process(&self, id: &ProcessId, input: Input, status: u32, at: SystemTime) {
        let mut state = self.lock();
        let pid = state.vm.pid();
        let Ok(process) = state.process_mut(id) else { return };
        let before = process.phase();
        let emits = match process.advance(id, input) {
            Ok(emits) => emits,
            Err(e) => return slog::error!(self.log(), "{}", e),
        };
        if process.phase() != before {
            for emit in emits {
                if let Some(event) = event_of(&state, id, *emit, pid, Some(Exit { status, at })) {
                    self.events.push(event);
                }
            }
            // After the event: a caller that waits for the end may delete at once.
            if let Ok(process) = state.process_mut(id) {
                process.set_exit(Exit { status, at });
            }
            if id.exec.is_none() {
                state.end_updates(&id.container);
            }
        }
    }
}

fn event_of(state: &State, id: &ProcessId, emit: Emit, pid: u32, exit: Option<Exit>) -> Option<Event> {
    let container = id.container.clone();
    match (emit, &id.exec) {
        (Emit::Create, _) => {
            let known = state.containers.get(&id.container)?;
            let (bundle, rootfs, stdio) =
                (known.bundle.clone(), known.rootfs.clone(), known.init.stdio.clone());
            Some(Event::Create { id: container, bundle, rootfs, stdio, pid })
        }
        (Emit::Start, None) => Some(Event::Start { id: container, pid }),
        (Emit::Start, Some(exec)) => Some(Event::ExecStarted { id: container, exec: exec.clone(), pid }),
        (Emit::Pause, _) => Some(Event::Paused { id: container }),
        (Emit::Resume, _) => Some(Event::Resumed { id: container }),
        (Emit::Exit, exec) => {
            let Exit { status, at } = exit?;
            Some(Event::Exit { id: container, exec: exec.clone(), pid, status, at })
        }
    }
}

#[cfg(test)]
impl Pod {
    /// The pod `s1` without a VM, with its files in `dir`.
    pub(crate) fn in_dir(dir: &std::path::Path) -> Arc<Self> {
        let namespace = Namespace::parse("tests").expect("namespace");
        let sandbox = SandboxId::parse("s1").expect("id");
        let (log, level) = crate::host::log::open(&dir.join("log"), &dir.join("fifo"), &sandbox, true);
        let key = PodKey::new("/c.sock", &namespace, &sandbox);
        let parts =
            PodParts { key, namespace, sandbox, dir: dir.to_path_buf(), log, core_scheduling: false, level };
        Self::new(parts).expect("pod")
    }
}
