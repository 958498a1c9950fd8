//! The one place that waits for children, so that no exit status is taken by the wrong waiter.
//!
//! As process 1 of a guest the agent inherits every orphan. A container's process may exit before
//! its pid is known (crun writes it to a file), so the statuses of unknown pids are kept for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How long the exit status of an unknown pid is kept.
const KEPT: Duration = Duration::from_secs(10);

/// How a process ended: its exit code, or 128 + signal.
#[derive(Clone, Debug)]
pub(crate) struct Exit(watch::Receiver<Option<i32>>);

impl Exit {
    pub(crate) fn now(&self) -> Option<i32> {
        *self.0.borrow()
    }

    pub(crate) async fn wait(&self) -> i32 {
        let mut end = self.0.clone();
        let status = end.wait_for(Option::is_some).await.map(|status| status.unwrap_or_default());
        status.unwrap_or(255)
    }
}

enum Entry {
    Watched(watch::Sender<Option<i32>>),
    Ended(i32, Instant),
}

#[derive(Default)]
pub(crate) struct Reaper(Mutex<HashMap<i32, Entry>>);

impl Reaper {
    /// Starts waiting for all children of this process.
    pub(crate) fn start() -> std::io::Result<Arc<Self>> {
        let reaper = Arc::new(Self::default());
        let mut children = signal(SignalKind::child())?;
        let kept = reaper.clone();
        tokio::spawn(async move {
            while children.recv().await.is_some() {
                kept.reap();
            }
        });
        Ok(reaper)
    }

    /// The end of `pid`, which was started after `since`.
    pub(crate) fn watch(&self, pid: i32, since: Instant) -> Exit {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.remove(&pid) {
            Some(Entry::Ended(status, at)) if at >= since => Exit(watch::channel(Some(status)).1),
            _ => {
                let (sender, receiver) = watch::channel(None);
                known.insert(pid, Entry::Watched(sender));
                Exit(receiver)
            }
        }
    }

    fn reap(&self) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, entry| !matches!(entry, Entry::Ended(_, at) if at.elapsed() > KEPT));
        loop {
            let (pid, status) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            match known.remove(&pid) {
                Some(Entry::Watched(sender)) => {
                    sender.send_replace(Some(status));
                }
                _ => {
                    known.insert(pid, Entry::Ended(status, Instant::now()));
                }
            }
        }
    }
}
