//! Task.Update: the limits that a guest keeps are changed in the guest, the CPUs of the host here;
//! `oci::resources` says which.

use crate::error::{Code, Context, Result};
use crate::ids::{ContainerId, ProcessId};
use crate::lifecycle::process::Input;
use crate::oci::resources;
use crate::pod::Pod;
use crate::pod::scheduling;

impl Pod {
    /// `json`: the OCI `LinuxResources`. Finished: NotFound, which callers take for success.
    pub(crate) async fn update(&self, container: &ContainerId, json: &[u8]) -> Result<()> {
        self.advance(&ProcessId::init(container.clone()), Input::UpdateAsked)?;
        let guest = self.guest().map_err(|e| e.with_code(Code::NotFound))?;
        let doing = || format!("update container {container}");
        let (limits, cpus) = resources::parse(json, guest.size).with_context(doing)?;
        guest.agent.update_container(container, &limits).await.with_context(doing)?;
        if !cpus.is_empty() {
            if let Some(known) = self.lock().containers.get_mut(container) {
                known.cpus = cpus;
            }
            scheduling::update_affinity(self);
        }
        Ok(())
    }
}
