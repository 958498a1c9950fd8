//! The value that implements both services of the shim's socket: `task_service` and `sandbox_service`.

use std::future::Future;
use std::sync::Arc;

use crate::error::Result;
use crate::host::tasks;
use crate::pod::Pod;

/// Serves one pod.
pub(crate) struct PodService {
    pub(super) pod: Arc<Pod>,
}

impl PodService {
    pub(crate) fn new(pod: Arc<Pod>) -> Self {
        Self { pod }
    }

    /// Runs an operation that changes the pod. Its handler is dropped at the caller's deadline; the operation
    /// runs to its end.
    pub(super) async fn run<T, Work>(
        &self,
        what: &'static str,
        operation: impl FnOnce(Arc<Pod>) -> Work,
    ) -> Result<T>
    where
        T: Send + 'static,
        Work: Future<Output = Result<T>> + Send + 'static,
    {
        tasks::run(what, operation(Arc::clone(&self.pod))).await
    }
}
