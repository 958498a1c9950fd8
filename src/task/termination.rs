//! A container's termination message on its way back: from the guest's copy to the host's file, after the container's
//! end is known and before it is told.

use std::sync::atomic::Ordering;

use slog::{debug, info, warn};
use tokio::time::timeout;

use crate::error::{Code, Error};
use crate::host::begun::blocking;
use crate::host::files;
use crate::ids::ContainerId;
use crate::limits;
use crate::pod::Pod;
use crate::pod::guest::Guest;

impl Pod {
    /// Asks the guest once. One that does not answer in its time, or whose policy does not allow it, costs the
    /// message.
    pub(super) async fn bring_message(&self, guest: &Guest, id: &ContainerId) {
        let file = self.lock().container(id).ok().and_then(|container| container.message.clone());
        let Some(file) = file.filter(|_| !guest.refused.messages.load(Ordering::Relaxed)) else { return };
        let limit = limits::agent::TERMINATION_MESSAGE;
        let asked = timeout(limit, guest.agent.termination_message(id)).await;
        match asked
            .unwrap_or_else(|_| Err(Error::deadline(format!("no answer within {} s", limit.as_secs()))))
        {
            Ok(message) if message.is_empty() => debug!(self.log(), "{} has no termination message", id),
            Ok(message) => {
                let written =
                    blocking("write message", move || files::overwrite(&file, message.as_bytes())).await;
                if let Err(e) = written {
                    warn!(self.log(), "the termination message of {} is lost: {}", id, e);
                }
            }
            Err(e) if matches!(e.code(), Code::PermissionDenied | Code::Unimplemented) => {
                if !guest.refused.messages.swap(true, Ordering::Relaxed) {
                    info!(
                        self.log(),
                        "this guest tells no termination messages (FallbackToLogsOnError needs none): {}", e
                    );
                }
            }
            Err(e) => warn!(self.log(), "the termination message of {} is lost: {}", id, e),
        }
    }
}
