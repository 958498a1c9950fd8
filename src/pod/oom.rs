//! The guest's OOM killer hit a container: containerd gets an event before its exit, and CRI-O the file `oom`
//! in the bundle, which it looks for when a container has exited.

use slog::{info, warn};
use tokio::time::timeout;

use crate::host::begun::blocking;
use crate::host::files;
use crate::ids::ContainerId;
use crate::limits;
use crate::pod::Pod;
use crate::pod::event::Event;

/// CRI-O's name for it.
const FILE: &str = "oom";

impl Pod {
    /// False: there is no such container.
    pub(crate) async fn note_oom(&self, id: &ContainerId) -> bool {
        let known = self.lock().container(id).map(|container| container.bundle.join(FILE));
        let Ok(file) = known else { return false };
        if let Err(e) = blocking("record OOM", move || files::mark(&file)).await {
            warn!(self.log(), "container {}: {}", id, e);
        }
        let state = self.lock();
        if let Ok(container) = state.container(id) {
            self.events.push(Event::Oom { id: id.clone() });
            container.oom.send_modify(|count| *count = count.saturating_add(1));
            if *container.oom.borrow() == 1 {
                info!(self.log(), "container {}: the guest's OOM killer ended a process of it", id);
            }
        }
        true
    }

    /// A container was killed: the guest's report of an OOM comes on another call than its exit, and a
    /// moment later. Not waited for when a caller asked for the end.
    pub(crate) async fn await_oom(&self, id: &ContainerId) {
        let mut oom = match self.lock().container(id) {
            Ok(container) if !container.kill_asked => container.oom.subscribe(),
            _ => return,
        };
        timeout(limits::agent::OOM_REPORT, oom.wait_for(|count| *count > 0)).await.ok();
    }
}
