//! The tasks of a pod: the only place that spawns on the runtime.
//!
//! An operation that changes anything runs as a task, and the caller's handler only awaits its result:
//! ttrpc drops a handler at the client's deadline, at whatever point it is. A panic in a task becomes
//! an error of its operation, and ends the pod in good order (`shim::serve`).

use std::future::Future;
use std::sync::Arc;

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
pub(crate) fn spawn<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::spawn(work)
}

/// Starts a task whose end no one waits for.
pub(crate) fn detach(work: impl Future<Output = ()> + Send + 'static) {
    drop(spawn(work));
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
