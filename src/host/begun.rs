//! Work that was begun ends: what goes on after its waiter has given up is known here, and is waited for
//! before anything is undone or removed.
//!
//! A future can be dropped at any await; a thread, a started program or a step of several messages cannot. One
//! process serves one pod: all of it is that pod's.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::error::{Context, Error, Result};
use crate::host::tasks;

static UNDER_WAY: LazyLock<watch::Sender<UnderWay>> = LazyLock::new(watch::Sender::default);

#[derive(Debug, Default)]
struct UnderWay {
    begun: u64,
    what: BTreeMap<u64, &'static str>,
}

/// A piece of work, until this is dropped.
#[derive(Debug)]
pub(crate) struct Begun(u64);

impl Begun {
    pub(crate) fn new(what: &'static str) -> Self {
        let mut number = 0;
        UNDER_WAY.send_modify(|all| {
            all.begun += 1;
            number = all.begun;
            all.what.insert(number, what);
        });
        Self(number)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        UNDER_WAY.send_modify(|all| {
            all.what.remove(&self.0);
        });
    }
}

/// Returns when all that is under way now has ended; after `limit` an error names what has not.
pub(crate) async fn ended(limit: Duration) -> Result<()> {
    let last = UNDER_WAY.borrow().begun;
    let mut under_way = UNDER_WAY.subscribe();
    let all = under_way.wait_for(|all| all.what.range(..=last).next().is_none());
    if timeout(limit, all).await.is_ok() {
        return Ok(());
    }
    let what: Vec<&str> = UNDER_WAY.borrow().what.range(..=last).map(|(_, what)| *what).collect();
    Err(Error::deadline(format!("still under way after {} s: {}", limit.as_secs(), what.join(", "))))
}

/// Runs blocking work on a new thread, which ends with it: setns and slow system calls must not touch the
/// executor's thread or stay behind in a pool.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, result) = oneshot::channel();
    let begun = Begun::new(what);
    let work = move || {
        drop(done.send(work())); // a result that no one takes is closed with this, before the work counts as ended
        drop(begun);
    };
    std::thread::Builder::new()
        .name(what.chars().take(15).collect())
        .spawn(work)
        .with_context(|| format!("start a thread to {what}"))?;
    result.await.unwrap_or_else(|_| Err(Error::internal(format!("{what}: the thread panicked"))))
}

/// Runs steps of which none may be left out, whether or not the caller still waits.
pub(crate) async fn whole<T: Send + 'static>(
    what: &'static str,
    steps: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let begun = Begun::new(what);
    let steps = async move {
        let _begun = begun;
        steps.await
    };
    tasks::run(what, steps).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, mpsc};
    use tokio::time::sleep;

    #[tokio::test]
    async fn a_thread_and_steps_whose_waiter_gave_up_are_waited_for() {
        let (release, released) = mpsc::channel();
        let done = Arc::new(AtomicBool::new(false));
        let thread = {
            let done = Arc::clone(&done);
            blocking("test", move || {
                released.recv().ok();
                done.store(true, Ordering::SeqCst);
                Ok(())
            })
        };
        let stepped = Arc::new(AtomicBool::new(false));
        let steps = {
            let stepped = Arc::clone(&stepped);
            whole("steps", async move {
                sleep(Duration::from_millis(20)).await;
                stepped.store(true, Ordering::SeqCst);
                Ok(())
            })
        };
        let given_up = timeout(Duration::from_millis(1), async { tokio::join!(thread, steps) }).await;
        assert!(given_up.is_err());
        let e = ended(Duration::from_millis(50)).await.expect_err("the thread waits");
        assert!(e.to_string().contains("test"), "{e}");
        release.send(()).expect("release");
        ended(Duration::from_secs(30)).await.expect("ended");
        assert!(done.load(Ordering::SeqCst) && stepped.load(Ordering::SeqCst));
    }
}
