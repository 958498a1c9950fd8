//! Task.Stats: a container's stats come from the guest, those of the sandbox container are the VM's
//! own on the host.

use crate::error::{Code, Context, Result};
use crate::host::begun::blocking;
use crate::host::cgroup_stats;
use crate::ids::{ContainerId, ProcessId};
use crate::lifecycle::process::Input;
use crate::plan::stats::Stats;
use crate::pod::Pod;
use crate::pod::guest::Guest;

impl Pod {
    /// Finished: NotFound, which callers pass over in silence.
    pub(crate) async fn stats(&self, container: &ContainerId) -> Result<Stats> {
        let id = ProcessId::init(container.clone());
        self.advance(&id, Input::StatsAsked)?;
        let is_sandbox = self.lock().container(container)?.is_sandbox;
        let guest = self.guest().map_err(|e| e.with_code(Code::NotFound))?;
        let doing = || format!("statistics of container {container}");
        if is_sandbox {
            return self.vm_stats(&guest).await.with_context(doing);
        }
        let mut said = guest.agent.stats_container(container).await.with_context(doing)?;
        // The agent's message has none; its events are counted.
        said.memory.oom_kills = *self.lock().container(container)?.oom.borrow();
        Ok(said.clamp_to_vm(guest.size, guest.began.elapsed()))
    }

    /// The VM's own use of the host.
    pub(crate) async fn vm_stats(&self, guest: &Guest) -> Result<Stats> {
        let leaf = guest.leaf.clone();
        blocking("stats of the VM", move || cgroup_stats::read(&leaf)).await
    }
}
