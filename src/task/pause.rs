//! Task.Pause and Task.Resume: the guest freezes every process of a container, and lets it go on.

use std::sync::Arc;

use slog::warn;

use crate::error::Result;
use crate::host::tasks;
use crate::ids::{ContainerId, ProcessId};
use crate::lifecycle::process::Input;
use crate::pod::Pod;

impl Pod {
    pub(crate) async fn pause(self: &Arc<Self>, container: &ContainerId) -> Result<()> {
        let id = ProcessId::init(container.clone());
        self.advance(&id, Input::PauseAsked)?;
        let asked = match self.guest() {
            Ok(guest) => guest.agent.pause_container(container).await,
            Err(e) => Err(e),
        };
        if let Err(e) = asked {
            self.undo_pause(id);
            return Err(e.context(format!("pause container {container}")));
        }
        self.advance(&id, Input::PauseDone)
    }

    /// Whether it is frozen is not known now. Until it surely is not, it counts as being paused.
    fn undo_pause(self: &Arc<Self>, id: ProcessId) {
        let pod = Arc::clone(self);
        tasks::detach(async move {
            if let Ok(guest) = pod.guest() {
                // An agent that did not freeze it refuses.
                guest.agent.resume_container(&id.container).await.ok();
            }
            if let Err(e) = pod.advance(&id, Input::PauseFailed) {
                warn!(pod.log(), "{}", e);
            }
        });
    }

    pub(crate) async fn resume(self: &Arc<Self>, container: &ContainerId) -> Result<()> {
        let id = ProcessId::init(container.clone());
        self.advance(&id, Input::ResumeAsked)?;
        let asked = match self.guest() {
            Ok(guest) => guest.agent.resume_container(container).await,
            Err(e) => Err(e),
        };
        if let Err(e) = asked {
            // It may be asked again.
            self.advance(&id, Input::ResumeFailed).ok();
            return Err(e.context(format!("resume container {container}")));
        }
        self.advance(&id, Input::ResumeDone)
    }
}
