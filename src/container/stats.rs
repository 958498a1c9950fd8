//! Task.Stats: a container's figures come from the guest, those of the sandbox container are the VM's
//! own on the host.

use crate::error::{Code, Context, Result};
use crate::host::figures;
use crate::host::spawn::blocking;
use crate::ids::{ContainerId, ProcessId};
use crate::lifecycle::process::Input;
use crate::plan::figures::Figures;
use crate::pod::Pod;
use crate::pod::guest::Guest;

impl Pod {
    /// Finished: NotFound, which callers pass over in silence.
    pub async fn stats(&self, container: &ContainerId) -> Result<Figures> {
        let id = ProcessId::init(container.clone());
        self.advance(&id, Input::StatsAsked)?;
        let is_sandbox = self.lock().container(container)?.is_sandbox;
        let guest = self.guest().map_err(|e| e.with_code(Code::NotFound))?;
        let doing = || format!("statistics of container {container}");
        if is_sandbox {
            return self.vm_figures(&guest).await.with_context(doing);
        }
        let said = guest.agent.stats_container(container).await.with_context(doing)?;
        Ok(said.believable(guest.size, guest.began.elapsed()))
    }

    /// The VM's own use of the host.
    pub(crate) async fn vm_figures(&self, guest: &Guest) -> Result<Figures> {
        let leaf = guest.leaf.clone();
        blocking("figures of the VM", move || figures::read(&leaf)).await
    }
}
