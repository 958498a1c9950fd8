//! Task.Start, of a container or of an exec: the agent starts it, the event is queued, then its
//! streams and its end are watched.

use std::sync::Arc;

use slog::debug;

use crate::error::{Code, Result};
use crate::failpoint::{Step, hit};
use crate::host::tasks;
use crate::ids::ProcessId;
use crate::lifecycle::process::{Input, Phase};
use crate::oci::guest_spec::GuestProcess;
use crate::pod::Pod;
use crate::pod::guest::Guest;
use crate::task::exec;
use crate::task::monitor;
use crate::task::unanswered::Call;

impl Pod {
    /// Starts a created container or an added exec; answers the VM's process id.
    pub(crate) async fn start(self: &Arc<Self>, id: &ProcessId) -> Result<u32> {
        self.check_not_paused(id)?;
        let guest = self.guest()?;
        let (stdio, process) =
            self.advance_with(id, Input::StartAsked, |p| (p.stdio.clone(), p.spec.take()))?;
        let streams = monitor::Streams::open(self, id, &stdio).await;
        let started = match streams {
            Ok(streams) => ask_agent(&guest, id, process).await.map(|()| streams),
            Err(e) => Err(e),
        };
        let streams = match started {
            Ok(streams) => streams,
            Err(e) => {
                self.end_process(id, Input::Exited, 128, std::time::SystemTime::now());
                Call::Start.undo(&e, self, &guest, id);
                return Err(if e.code() == Code::Unavailable { e } else { e.context(format!("start {id}")) });
            }
        };
        self.advance(id, Input::Started)?;
        debug!(self.log(), "started {}", id);
        tasks::detach(monitor::watch(Arc::clone(self), guest, id.clone(), streams));
        Ok(self.lock().vm.pid())
    }

    fn check_not_paused(&self, id: &ProcessId) -> Result<()> {
        let state = self.lock();
        state.process(id)?;
        match state.container(&id.container)?.init.phase() {
            Phase::Pausing | Phase::Paused | Phase::Resuming if id.exec.is_some() => Err(exec::paused(id)),
            _ => Ok(()),
        }
    }
}

/// `process`: of an exec.
async fn ask_agent(guest: &Guest, id: &ProcessId, process: Option<GuestProcess>) -> Result<()> {
    let Some(process) = process else {
        guest.agent.start_container(&id.container).await?;
        return hit(Step::ContainerStarted);
    };
    guest.agent.exec_process(id, &process).await?;
    hit(Step::ExecStarted)
}
