//! The events for containerd, in order, and the bounded queue they wait in.
//!
//! Exit events are never dropped; when the queue is full the oldest other event goes, and the
//! number dropped is kept for the log.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::ids::{ContainerId, ExecId};
use crate::limits;
use crate::mutex;
use crate::plan::rootfs::RootfsMount;
use crate::pod::request::StdioPaths;

/// One event; the topic and the message are made in `shim::events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Create {
        id: ContainerId,
        bundle: PathBuf,
        rootfs: Vec<RootfsMount>,
        stdio: StdioPaths,
        pid: u32,
    },
    Start {
        id: ContainerId,
        pid: u32,
    },
    ExecAdded {
        id: ContainerId,
        exec: ExecId,
    },
    ExecStarted {
        id: ContainerId,
        exec: ExecId,
        pid: u32,
    },
    /// `exec` is None for the container's init process.
    Exit {
        id: ContainerId,
        exec: Option<ExecId>,
        pid: u32,
        status: u32,
        at: SystemTime,
    },
    Delete {
        id: ContainerId,
        pid: u32,
        status: u32,
        at: SystemTime,
    },
    Oom {
        id: ContainerId,
    },
    Paused {
        id: ContainerId,
    },
    Resumed {
        id: ContainerId,
    },
}

/// Filled by the pod under its lock, emptied by the one sender.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    dropped: u64,
    closed: bool,
}

impl EventQueue {
    /// Puts an event behind all others; never blocks. An OOM that is waiting already is not queued again.
    pub(crate) fn push(&self, event: Event) {
        let mut waiting = self.lock();
        if matches!(event, Event::Oom { .. }) && waiting.events.contains(&event) {
            return;
        }
        if waiting.events.len() >= limits::shim::EVENT_QUEUE {
            let victim = waiting.events.iter().position(|e| !matches!(e, Event::Exit { .. }));
            if let Some(at) = victim {
                waiting.events.remove(at);
                waiting.dropped += 1;
            }
        }
        waiting.events.push_back(event);
        drop(waiting);
        self.changed.notify_one();
    }

    /// The oldest event, which stays in the queue until [`Self::done`]; None when the queue was
    /// closed and everything was sent.
    pub(crate) async fn head(&self) -> Option<Event> {
        loop {
            {
                let waiting = self.lock();
                if let Some(event) = waiting.events.front() {
                    return Some(event.clone());
                }
                if waiting.closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Takes `event` off the head after it was sent (or given up).
    pub(crate) fn done(&self, event: &Event) {
        let mut waiting = self.lock();
        if waiting.events.front() == Some(event) {
            waiting.events.pop_front();
        }
    }

    /// True as soon as the queue is closed; false after `limit`. For the one that takes from it.
    pub(crate) async fn closes_within(&self, limit: Duration) -> bool {
        let closing = async {
            while !self.lock().closed {
                self.changed.notified().await;
            }
        };
        timeout(limit, closing).await.is_ok()
    }

    /// Everything was taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().events.is_empty()
    }

    /// No event comes after this.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// Events dropped since the last call.
    pub(crate) fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.lock().dropped)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        mutex::lock(&self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(n: u32) -> Event {
        let id = ContainerId::parse("c1").expect("id");
        Event::Exit { id, exec: None, pid: 1, status: n, at: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn an_oom_waits_once() {
        let queue = EventQueue::default();
        for _ in 0..10 {
            queue.push(Event::Oom { id: ContainerId::parse("c1").expect("id") });
            queue.push(Event::Oom { id: ContainerId::parse("c2").expect("id") });
        }
        assert_eq!(queue.lock().events.len(), 2);
    }

    #[test]
    fn a_full_queue_drops_the_oldest_event_that_is_no_exit() {
        let queue = EventQueue::default();
        let id = ContainerId::parse("c1").expect("id");
        queue.push(exit(0));
        for _ in 0..limits::shim::EVENT_QUEUE {
            queue.push(Event::Start { id: id.clone(), pid: 1 });
        }
        queue.push(exit(1));
        let waiting = queue.lock();
        assert_eq!(waiting.events.len(), limits::shim::EVENT_QUEUE);
        assert_eq!((waiting.events.front(), waiting.events.back()), (Some(&exit(0)), Some(&exit(1))));
        drop(waiting);
        assert_eq!(queue.take_dropped(), 2);
    }
}
