//! Task.Delete: frees everything of a process, a container, or, with the sandbox's container, the
//! pod. A guest that is gone is not asked.

use std::sync::Arc;

use slog::warn;

use crate::error::{Code, Error, Result};
use crate::failpoint::{Step, hit};
use crate::ids::{ContainerId, ProcessId};
use crate::lifecycle::process::{Input, Phase};
use crate::limits;
use crate::pod::event::Event;
use crate::pod::request::{Deleted, Exit};
use crate::pod::scheduling;
use crate::pod::{Pod, no_process, stop};

impl Pod {
    /// Deletes a finished or never started process.
    pub(crate) async fn delete(self: &Arc<Self>, id: &ProcessId) -> Result<Deleted> {
        self.cancel_create(&id.container).await?;
        self.await_delete(&id.container).await;
        let pid = self.lock().vm.pid();
        let exit = self.advance_with(id, Input::DeleteAsked, |p| p.exit())?;
        if let Some(exec) = &id.exec {
            let mut state = self.lock();
            let container = state.containers.get_mut(&id.container).ok_or_else(|| no_process(id))?;
            container.execs.remove(exec);
            return Ok(Deleted { pid, exit });
        }
        self.note_deleting(&id.container, true);
        if let Err(e) = self.free(&id.container).await {
            // The container stays known: Delete may be asked again.
            drop(self.advance(id, Input::DeleteFailed));
            self.note_deleting(&id.container, false);
            return Err(e.context(format!("delete {id}")));
        }
        let Exit { status, at } = exit.unwrap_or(Exit { status: 0, at: std::time::SystemTime::UNIX_EPOCH });
        {
            let mut state = self.lock();
            state.containers.remove(&id.container);
            self.container_removed.notify_one();
            self.events.push(Event::Delete { id: id.container.clone(), pid, status, at });
        }
        scheduling::update_affinity(self);
        Ok(Deleted { pid, exit })
    }

    /// A Create still at work is cancelled and its undo waited for; then there is no container.
    async fn cancel_create(&self, id: &ContainerId) -> Result<()> {
        let mut created = {
            let state = self.lock();
            let container = state.container(id)?;
            if container.init.phase() != Phase::Creating {
                return Ok(());
            }
            container.cancel.send_replace(true);
            container.created.subscribe()
        };
        drop(created.wait_for(|done| *done).await);
        Err(Error::not_found(format!("container {id}: its creation was cancelled")))
    }

    /// A containerd that was killed while it waited for Delete asks again after its start, and leaves a shim
    /// for ever that refuses: the one at work is waited for. When it has succeeded there is no container.
    async fn await_delete(&self, id: &ContainerId) {
        let deleting = self.lock().container(id).map(|container| container.deleting.subscribe());
        if let Ok(mut deleting) = deleting {
            drop(deleting.wait_for(|at_work| !*at_work).await);
        }
    }

    fn note_deleting(&self, id: &ContainerId, at_work: bool) {
        if let Ok(container) = self.lock().container(id) {
            container.deleting.send_replace(at_work);
        }
    }

    async fn free(&self, id: &ContainerId) -> Result<()> {
        if self.parts.sandbox.is(id) {
            return stop::stop(self).await;
        }
        let Ok(guest) = self.guest() else { return Ok(()) };
        if guest.vm.gone().borrow().is_some() {
            return Ok(());
        }
        match guest.agent.remove_container(id, limits::REMOVE_CONTAINER).await {
            Err(e) if e.code() == Code::Unavailable => warn!(self.log(), "remove container {}: {}", id, e),
            other => other?,
        }
        hit(Step::ContainerRemoved)?;
        let own_disk = self.lock().container(id)?.own_disk;
        if let Some(devno) = own_disk {
            if let Err(e) = guest.vm.unplug(devno).await {
                warn!(self.log(), "container {}: {}", id, e);
            }
        }
        Ok(())
    }

    /// Shutdown: `now` ends what still runs. True: the shim may exit.
    pub(crate) async fn shutdown(self: &Arc<Self>, now: bool) -> Result<bool> {
        {
            let mut state = self.lock();
            // A sandbox lives without containers, too: it has a Shutdown of its own.
            if !now && (!state.containers.is_empty() || state.sandbox.is_some()) {
                return Ok(false);
            }
            state.closing = true;
        }
        let creating: Vec<ContainerId> = {
            let state = self.lock();
            state
                .containers
                .iter()
                .filter(|(_, c)| c.init.phase() == Phase::Creating)
                .map(|(id, _)| id.clone())
                .collect()
        };
        for id in creating {
            drop(self.cancel_create(&id).await);
        }
        self.end_start().await;
        if let Err(e) = stop::stop(self).await {
            warn!(self.log(), "shutdown: {}", e);
        }
        self.end_sandbox(0);
        self.lock().containers.clear();
        Ok(true)
    }
}
