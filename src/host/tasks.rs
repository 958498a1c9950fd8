//! The tasks of a pod: the only place that spawns on the runtime.
//!
//! An operation that changes anything runs as a task, and the caller's handler only awaits its result:
//! ttrpc drops a handler at the client's deadline, at whatever point it is. A panic in a task becomes
//! an error of its operation, and ends the pod in good order (`shim::serve`).

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::{Error, Result};
use crate::host::process::Child;

/// Runs `work` to its end whether or not the caller still waits.
pub(crate) async fn run<T: Send + 'static>(
    what: &'static str,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match spawn(work).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => {
            Err(Error::internal(format!("{what}: a bug in the shim (panic); the log has the place")))
        }
        Err(e) => Err(Error::internal(format!("{what}: task ended early: {e}"))),
    }
}

/// Starts a task that runs independently of its caller (a pump, a watcher, the supervisor).
#[allow(clippy::disallowed_methods)] // the one place meant by the lint's reason
pub(crate) fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(work)
}

/// Starts a task whose end no one waits for.
pub(crate) fn detach(work: impl Future<Output = ()> + Send + 'static) {
    drop(spawn(work));
}

/// Tasks that are asked to end together, at the latest when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Group {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Group {
    /// Starts a task, which is to end when it is told so.
    pub(crate) fn start<F: Future<Output = ()> + Send + 'static>(&mut self, work: impl FnOnce(Stop) -> F) {
        self.tasks.push(spawn(work(Stop(self.stop.subscribe()))));
    }

    /// Asks them to end.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Asks them to end and waits until they have.
    pub(crate) async fn end(self) {
        self.stop();
        for task in self.tasks {
            task.await.ok();
        }
    }
}

/// Tells a task of a group to end.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    pub(crate) fn is_asked(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    pub(crate) async fn asked(&mut self) {
        self.0.wait_for(|stop| *stop).await.ok();
    }
}

/// Collects the child's exit status however it ends, also when the operation that started it was given up.
pub(crate) fn reaped(child: Child) -> Arc<Child> {
    let child = Arc::new(child);
    let ending = Arc::clone(&child);
    detach(async move {
        ending.wait().await.ok();
    });
    child
}
