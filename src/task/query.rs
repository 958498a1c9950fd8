//! What only asks: Task.State, Wait, Pids and Connect.

use crate::error::{Error, Result};
use crate::ids::{ContainerId, ProcessId};
use crate::pod::Pod;
use crate::pod::request::{Exit, ProcessState};
use crate::pod::state::no_container;

impl Pod {
    pub(crate) fn state(&self, id: &ProcessId) -> Result<ProcessState> {
        let state = self.lock();
        let bundle = state.container(&id.container)?.bundle.clone();
        let process = state.process(id)?;
        Ok(ProcessState {
            bundle,
            status: process.status(),
            pid: state.vm.pid(),
            stdio: process.stdio.clone(),
            exit: process.exit(),
        })
    }

    /// Waits for a process' end; any number of callers, also after it.
    pub(crate) async fn wait(&self, id: &ProcessId) -> Result<Exit> {
        let mut exit = self.lock().process(id)?.exit_watch();
        let ended = exit.wait_for(Option::is_some).await.map(|exit| *exit);
        ended.ok().flatten().ok_or_else(|| Error::not_found(format!("{id}: was deleted")))
    }

    /// The VM's process: what a monitoring tool can find on the host.
    pub(crate) fn pids(&self, id: &ContainerId) -> Result<Vec<u32>> {
        let state = self.lock();
        state.container(id)?;
        Ok(Some(state.vm.pid()).filter(|pid| *pid > 0).into_iter().collect())
    }

    /// The VM's process id, for Connect; 0 when there is none.
    ///
    /// A containerd that was killed between its call of `start` and its Create finds a shim after its own
    /// start that knows nothing: on this error it cleans it up. One that has had a container may still have
    /// events to send, and must not be cleaned up.
    pub(crate) fn connect(&self, id: &ContainerId) -> Result<u32> {
        let state = self.lock();
        if state.used { Ok(state.vm.pid()) } else { Err(no_container(id)) }
    }
}
