//! Keeps copied volumes up to date while their container lives, paused or not: each is looked at again when the host
//! says that something in it has changed.
//!
//! An update that fails is told once and tried again at the next change. One volume of a pod is updated at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use slog::{debug, info, warn};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::error::{Code, Error, Result};
use crate::host::begun::Begun;
use crate::host::log::ms;
use crate::host::tasks::{Group, Stop};
use crate::host::watch::Watch;
use crate::ids::ContainerId;
use crate::limits;
use crate::pod::Pod;
use crate::pod::guest::Guest;
use crate::task::publish::{Courier, Outcome, Published};
use crate::task::volumes::Copied;

impl Pod {
    /// From now on the container's volumes follow those of the host.
    pub(super) fn keep_volumes(
        self: &Arc<Self>,
        guest: &Arc<Guest>,
        id: &ContainerId,
        copied: Vec<Copied>,
    ) -> Result<()> {
        let mut updates = Group::default();
        for Copied { published, watch } in copied {
            let Some(watch) = watch else { continue };
            let (pod, guest, of) = (Arc::clone(self), Arc::clone(guest), id.clone());
            updates.start(|stop| async move {
                let mut stopped = stop.clone();
                let mut kept = Kept { pod, guest, of, published, watch, failed: false, told: false };
                while kept.follow(&mut stopped, &stop).await {}
            });
        }
        let mut state = self.lock();
        let container =
            state.containers.get_mut(id).ok_or_else(|| Error::internal("its container is gone"))?;
        container.updates = Some(updates);
        Ok(())
    }

    /// Ends the updates of a container; one that runs ends between two files.
    pub(super) async fn end_updates(&self, id: &ContainerId) {
        let updates = self.lock().containers.get_mut(id).and_then(|container| container.updates.take());
        let Some(updates) = updates else { return };
        if timeout(limits::host::BEGUN_WORK, updates.end()).await.is_err() {
            warn!(self.log(), "an update of a volume of {} does not end", id);
        }
    }
}

/// One volume of a container.
struct Kept {
    pod: Arc<Pod>,
    guest: Arc<Guest>,
    of: ContainerId,
    published: Published,
    watch: Watch,
    /// The last update failed, which was told.
    failed: bool,
    /// It was told that a sealed secret stays as it was.
    told: bool,
}

impl Kept {
    /// Waits for a change and publishes it. False: there will be no other.
    async fn follow(&mut self, stopped: &mut Stop, stop: &Stop) -> bool {
        let changed = async {
            let more = self.watch.changed().await;
            more && settled(&mut self.watch).await
        };
        let more = tokio::select! {
            () = stopped.asked() => return false,
            more = changed => more,
        };
        // What was replaced is watched in its new place, before that is read.
        if self.published.is_file() || !more {
            match self.pod.watches.add(self.published.source()) {
                Ok(watch) => self.watch = watch,
                Err(e) => {
                    debug!(self.pod.log(), "no more updates of a volume of {}: {}", self.of, e);
                    return false;
                }
            }
        }
        let (pod, guest) = (Arc::clone(&self.pod), Arc::clone(&self.guest));
        let turn = tokio::select! {
            () = stopped.asked() => return false,
            turn = pod.publishing.lock() => turn,
        };
        let began = Instant::now();
        let done = {
            let _begun = Begun::new("update a volume");
            let limit = guest.config.agent.create_timeout + guest.config.agent.call_timeout;
            let mut courier = Courier::until(&guest.agent, guest.config.volumes, stop.clone());
            timeout(limit, self.published.publish(&mut courier)).await
        };
        drop(turn);
        let done = done.unwrap_or_else(|_| Err(Error::deadline("its update took too long")));
        let more = match done {
            Ok(outcome) => {
                self.succeeded(&outcome, began);
                true
            }
            Err(_) if stop.is_asked() || guest.vm.gone().borrow().is_some() => false,
            Err(e) => self.has_failed(&e),
        };
        let (least, times) = limits::volumes::UPDATE_PAUSE;
        let pause = least.max(began.elapsed() * times);
        tokio::select! {
            () = stopped.asked() => false,
            () = sleep(pause) => more,
        }
    }

    fn succeeded(&mut self, outcome: &Outcome, began: Instant) {
        if outcome.sent == 0 {
            return;
        }
        let source = self.published.source().display();
        if self.failed {
            self.failed = false;
            info!(self.pod.log(), "volume {} of {} is up to date again", source, self.of);
        }
        debug!(self.pod.log(), "volume {} of {} is updated", source, self.of; "sent" => outcome.sent, "ms" => ms(began.elapsed()));
        if !outcome.sealed.is_empty() && !self.told {
            self.told = true;
            let keys = outcome.sealed.join(", ");
            warn!(self.pod.log(), "volume {} of {}: sealed secrets stay as they were until a restart of the container",
                source, self.of; "keys" => keys);
        }
    }

    /// Whether another try makes sense.
    fn has_failed(&mut self, e: &Error) -> bool {
        if matches!(e.code(), Code::PermissionDenied | Code::Unimplemented) {
            if !self.guest.refused.files.swap(true, Ordering::Relaxed) {
                warn!(
                    self.pod.log(),
                    "this guest takes no files for running containers: their volumes stay as they are: {}", e
                );
            }
            return false;
        }
        if !self.failed {
            self.failed = true;
            warn!(self.pod.log(), "a change of the host is not seen in {}: {}", self.of, e);
        }
        true
    }
}

/// Returns when nothing has changed for a moment, or at the end of a longer one. False: what was watched is gone.
async fn settled(watch: &mut Watch) -> bool {
    let (quiet, longest) = limits::volumes::SETTLING;
    let end = Instant::now() + longest;
    loop {
        let until = (Instant::now() + quiet).min(end);
        match timeout_at(until, watch.changed()).await {
            Ok(true) if Instant::now() < end => {}
            Ok(more) => return more,
            Err(_) => return true,
        }
    }
}
