//! Task.Kill: the table says whether the process can be signalled, the agent does it.

use std::sync::Arc;

use slog::warn;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Code, Error, Result};
use crate::host::tasks;
use crate::ids::{ExecId, ProcessId};
use crate::lifecycle::process::{Input, Phase};
use crate::limits;
use crate::pod::Pod;
use crate::pod::guest::Guest;
use crate::pod::state::Process;
use crate::pod::state::SIGKILL;

impl Pod {
    /// Signals a process, or (`all`) every process of the container. Finished: NotFound. Signal 0 asks whether
    /// the process lives, as kill(2) has it: CRI-O does so before it opens a log again.
    pub(crate) async fn kill(self: &Arc<Self>, id: &ProcessId, signal: u32, all: bool) -> Result<()> {
        if signal > 64 {
            return Err(Error::invalid(format!("signal {signal}: allowed are 0 to 64")));
        }
        self.settled(id).await?;
        self.advance(id, Input::KillAsked)?;
        if signal == 0 {
            return Ok(());
        }
        let guest = self.guest().map_err(|e| e.with_code(Code::NotFound))?;
        let is_kill = signal == SIGKILL;
        if is_kill && id.exec.is_none() {
            if let Some(container) = self.lock().containers.get_mut(&id.container) {
                container.kill_asked = true;
            }
        }
        let asking = guest.agent.signal_process(id, signal, all && is_kill);
        let asked = timeout(limits::agent::KILL_ANSWER, asking).await.unwrap_or_else(|_| {
            let seconds = limits::agent::KILL_ANSWER.as_secs();
            guest.agent.suspect();
            Err(Error::deadline(format!("the guest did not answer within {seconds} s")))
        });
        if is_kill && asked.as_ref().map_or_else(|e| e.code() == Code::NotFound, |()| true) {
            if let Ok(process) = self.lock().process_mut(id) {
                process.killed.send_replace(true);
            }
        }
        if asked.is_ok() && id.exec.is_none() {
            self.watch_unstarted(&guest, id);
            if is_kill {
                self.let_die(&guest, id);
            } else if all {
                self.signal_execs(&guest, id, signal).await;
            }
        }
        match asked {
            // A guest that does not answer cannot hold the pod: the sandbox's KILL kills the VM.
            Err(e)
                if matches!(e.code(), Code::DeadlineExceeded | Code::Unavailable)
                    && is_kill
                    && self.parts.sandbox.is(&id.container)
                    && id.exec.is_none() =>
            {
                guest.kill_because(self.log(), &e);
                Ok(())
            }
            asked => asked.map_err(|e| e.context(format!("signal {signal} to {id}"))),
        }
    }

    /// The agent reaches every process of a container with KILL alone. With another signal those that we
    /// know of get it; what they started does not.
    async fn signal_execs(&self, guest: &Guest, id: &ProcessId, signal: u32) {
        let execs: Vec<ProcessId> = {
            let state = self.lock();
            let Ok(container) = state.container(&id.container) else { return };
            let running = container.execs.iter().filter(|(_, exec)| exec.phase() == Phase::Running);
            let of = |exec: &ExecId| ProcessId { container: id.container.clone(), exec: Some(exec.clone()) };
            running.map(|(exec, _)| of(exec)).collect()
        };
        for exec in execs {
            match timeout(limits::agent::KILL_ANSWER, guest.agent.signal_process(&exec, signal, false)).await
            {
                Ok(Err(e)) if e.code() != Code::NotFound => {
                    warn!(self.log(), "signal {} to {}: {}", signal, exec, e);
                }
                Err(_) => return warn!(self.log(), "signal {} to {}: no answer", signal, exec),
                _ => {}
            }
        }
    }

    /// Frozen by cgroup version 1, a process dies only when it is thawed.
    fn let_die(&self, guest: &Arc<Guest>, id: &ProcessId) {
        let phase = self.lock().process(id).map(Process::phase);
        if matches!(phase, Ok(Phase::Pausing | Phase::Paused)) {
            let (guest, container) = (Arc::clone(guest), id.container.clone());
            tasks::detach(async move {
                guest.agent.resume_container(&container).await.ok();
            });
        }
    }

    /// A container that was never started has no watcher; the signal may have ended it.
    fn watch_unstarted(self: &Arc<Self>, guest: &Arc<Guest>, id: &ProcessId) {
        let (pod, guest, id) = (Arc::clone(self), Arc::clone(guest), id.clone());
        tasks::detach(async move {
            let until = Instant::now() + limits::agent::KILL_ANSWER;
            let unstarted = || pod.lock().process(&id).is_ok_and(|p| p.phase() == Phase::Created);
            while unstarted() && Instant::now() < until {
                match guest.agent.wait_process_shortly(&id).await {
                    Ok(Some(status)) => {
                        return pod.end_process(&id, Input::Exited, status, std::time::SystemTime::now());
                    }
                    Ok(None) => sleep(limits::stdio::EMPTY_READ_PAUSE.0).await,
                    Err(_) => return,
                }
            }
        });
    }

    /// Waits until Create and Start have ended, either way: before, the guest may not know the process yet, and
    /// would run it after a signal that it has not found.
    async fn settled(&self, id: &ProcessId) -> Result<()> {
        let settled = async {
            self.wait_while(&ProcessId::init(id.container.clone()), Phase::Creating).await;
            self.wait_while(id, Phase::Starting).await;
        };
        let waited = timeout(limits::agent::KILL_OF_CREATING, settled).await;
        waited.map_err(|_elapsed| Error::deadline(format!("{id}: is still being created or started")))
    }
}
