//! A shim that nobody ends. containerd was killed between Delete's answer and its Shutdown: containerd 1.6
//! then keeps a shim for ever that knows no container, and after that forgets it. Such a shim ends by itself, once
//! everything it had to tell was taken; `delete` and `start` work as after any other end.

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
        let mut pause = limits::UNUSED_TIMEOUT;
        loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = self.container_removed.notified() => {
                    pause = limits::ORPHAN_TIMEOUT;
                    continue;
                }
            }
            pause = limits::ORPHAN_TIMEOUT;
            if !self.is_empty() {
                self.container_removed.notified().await;
            } else if self.events.is_empty() && matches!(self.shutdown(false).await, Ok(true)) {
                return warn!(
                    self.log(),
                    "no container is left and nobody ended this shim: it ends by itself"
                );
            }
        }
    }
}
