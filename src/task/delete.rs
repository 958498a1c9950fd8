//! Task.Delete: frees everything of a process, a container, or, with the sandbox's container, the
//! pod. A guest that is gone is not asked.

use std::sync::Arc;

use slog::warn;

use crate::error::{Code, Result};
use crate::failpoint::{Step, hit};
use crate::ids::{ContainerId, ProcessId};
use crate::lifecycle::process::{Input, Phase};
use crate::limits;
use crate::pod::event::Event;
use crate::pod::guest::Guest;
use crate::pod::request::{Deleted, Exit};
use crate::pod::scheduling;
use crate::pod::state::no_process;
use crate::pod::{Pod, stop};
use crate::task::disks;

impl Pod {
    /// Deletes a finished or never started process.
    pub(crate) async fn delete(self: &Arc<Self>, id: &ProcessId) -> Result<Deleted> {
        self.cancel_create(&id.container).await?;
        // A containerd that was killed while it waited for Delete asks again after its start, and leaves a shim that
        // refuses for ever: one that is under way is waited for. When it has succeeded there is no container.
        self.wait_while(&ProcessId::init(id.container.clone()), Phase::Deleting).await;
        let pid = self.lock().vm.pid();
        let exit = self.advance_with(id, Input::DeleteAsked, |p| p.exit())?;
        if let Some(exec) = &id.exec {
            let mut state = self.lock();
            let container = state.containers.get_mut(&id.container).ok_or_else(|| no_process(id))?;
            container.execs.remove(exec);
            return Ok(Deleted { pid, exit });
        }
        if let Err(e) = self.free(&id.container).await {
            // The container stays known: Delete may be asked again.
            self.advance(id, Input::DeleteFailed)?;
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

    async fn free(&self, id: &ContainerId) -> Result<()> {
        if self.parts.sandbox.is(id) {
            return stop::stop(self).await;
        }
        let Ok(guest) = self.guest() else { return Ok(()) };
        self.free_in_guest(&guest, id).await
    }

    /// Removes a container from the guest, whatever of it was made there, with its volumes, and unplugs its disks.
    pub(super) async fn free_in_guest(&self, guest: &Guest, id: &ContainerId) -> Result<()> {
        self.end_updates(id).await;
        if guest.vm.gone().borrow().is_some() {
            return Ok(());
        }
        match guest.agent.remove_container(id, limits::agent::REMOVE_CONTAINER).await {
            Err(e) if e.code() == Code::Unavailable => warn!(self.log(), "remove container {}: {}", id, e),
            other => other?,
        }
        hit(Step::ContainerRemoved)?;
        self.remove_volumes(guest, id).await;
        disks::release(self, guest, id).await;
        Ok(())
    }
}
