//! Waiting for conditions, with a limit.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// Returns once `holds`; panics with `what` after `seconds`.
pub async fn eventually(what: &str, seconds: u64, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        assert!(Instant::now() < end, "not within {seconds} s: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// The same, blocking the thread.
pub fn until(what: &str, seconds: u64, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        assert!(std::time::Instant::now() < end, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The result of `work`; panics with `what` after `seconds`.
pub async fn within<T>(what: &str, seconds: u64, work: impl Future<Output = T>) -> T {
    let done = timeout(Duration::from_secs(seconds), work).await;
    done.unwrap_or_else(|_| panic!("not within {seconds} s: {what}"))
}
