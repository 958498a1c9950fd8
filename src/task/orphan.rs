//! A shim without a caller. When containerd is killed between Delete's answer and its Shutdown, containerd 1.6
//! keeps a shim for ever that knows no container, and later forgets it. Such a shim exits by itself, once all its
//! events are taken; `delete` and `start` work as after any other end.

use std::sync::Arc;

use slog::warn;
use tokio::time::sleep;

use crate::limits;
use crate::pod::Pod;

impl Pod {
    fn is_empty(&self) -> bool {
        let state = self.lock();
        // A stopped sandbox waits for its own Shutdown, as long as it takes.
        state.sandbox.is_none() && state.containers.is_empty() && state.vm.is_free()
    }

    /// Returns when the pod has had no container for long and has shut itself down.
    pub(crate) async fn orphaned(self: &Arc<Self>) {
        let mut pause = limits::shim::UNUSED_TIMEOUT;
        loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = self.container_removed.notified() => {
                    pause = limits::shim::ORPHAN_TIMEOUT;
                    continue;
                }
            }
            pause = limits::shim::ORPHAN_TIMEOUT;
            if !self.is_empty() {
                self.container_removed.notified().await;
            } else if self.events.is_empty() && matches!(self.shutdown(false).await, Ok(true)) {
                return warn!(self.log(), "no containers left and no Shutdown call: exiting");
            }
        }
    }
}
