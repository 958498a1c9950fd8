//! Reports to the host which container the guest's OOM killer hit.

use std::io::Read;
use std::sync::Arc;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;

use crate::failure::{Result, Trying, internal};
use crate::{cgroup, sys};

/// Events that are not reported yet, in order.
#[derive(Debug)]
pub(crate) struct OomEvents {
    sender: mpsc::UnboundedSender<Option<String>>,
    /// One call waits at a time, others queue behind it.
    receiver: Mutex<mpsc::UnboundedReceiver<Option<String>>>,
}

impl OomEvents {
    pub(crate) fn new() -> Arc<Self> {
        let (sender, receiver) = mpsc::unbounded_channel();
        Arc::new(Self { sender, receiver: Mutex::new(receiver) })
    }

    /// The next container; when the sandbox ends, an error without text.
    pub(crate) async fn next(&self) -> Result<String> {
        match self.receiver.lock().await.recv().await {
            Some(Some(container)) => Ok(container),
            _ => {
                // Those behind this call end too.
                self.close();
                Err(internal(""))
            }
        }
    }

    pub(crate) fn close(&self) {
        // Without a receiver the event is dropped.
        self.sender.send(None).ok();
    }

    /// Watches a container until the handle is aborted.
    pub(crate) fn watch(self: &Arc<Self>, id: &str) -> Result<AbortHandle> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).trying("inotify")?;
        inotify
            .add_watch(&cgroup::path(id).join("memory.events"), AddWatchFlags::IN_MODIFY)
            .trying("memory.events")?;
        let changed = sys::awaitable(inotify.into()).trying("inotify")?;
        let (events, id) = (self.clone(), id.to_owned());
        let task = tokio::spawn(async move {
            let mut told = cgroup::oom_kills(&id);
            while let Ok(mut ready) = changed.readable().await {
                // Which event it was does not matter.
                while matches!(changed.get_ref().read(&mut [0; 4096]), Ok(1..)) {}
                ready.clear_ready();
                let kills = cgroup::oom_kills(&id);
                if kills > told {
                    told = kills;
                    events.sender.send(Some(id.clone())).ok();
                }
            }
        });
        Ok(task.abort_handle())
    }
}
