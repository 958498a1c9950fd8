//! A container's creation while the guest pulls its image: what is said meanwhile, and what of a failure.
//!
//! The guest tells nothing of its progress. What can be seen from here is how long it takes and what has come over
//! the pod's network.

use std::time::Duration;

use slog::{Logger, info, warn};
use tokio::time::{Instant, interval_at};

use crate::error::{Code, Error, Result};
use crate::limits;
use crate::oci::image_name;
use crate::plan::pull_error::{self, Progress};
use crate::pod::guest::Guest;

/// Waits for the container's creation and tells how it goes.
pub(crate) async fn watched(
    log: &Logger,
    guest: &Guest,
    image: &str,
    creating: impl Future<Output = Result<()>>,
) -> Result<()> {
    let pause = limits::agent::PULL_PROGRESS;
    let before = guest.taps.received().await;
    let began = Instant::now();
    let mut pull = Pull { log, image, guest, before, began, received: None, ended: false };
    info!(log, "the guest pulls {}", image; "pinned" => image_name::is_pinned(image));
    let mut ticks = interval_at(began + pause, pause);
    tokio::pin!(creating);
    let created = loop {
        tokio::select! {
            created = &mut creating => break created,
            _ = ticks.tick() => {
                pull.look().await;
                info!(log, "the guest is pulling {}: {}", image, pull.progress());
            }
        }
    };
    pull.ended = true;
    pull.look().await;
    match created {
        Ok(()) => {
            info!(log, "the guest has pulled {}: {}", image, pull.progress());
            Ok(())
        }
        Err(e) => Err(explain(e, &pull.progress(), image, guest)),
    }
}

fn explain(e: Error, progress: &Progress, image: &str, guest: &Guest) -> Error {
    match e.code() {
        Code::DeadlineExceeded => Error::deadline(pull_error::timeout(image, progress)),
        // The VM has ended or the connection is lost: that is the reason.
        Code::Unavailable => e,
        code => {
            let hint = pull_error::hint(e.message(), guest.size.memory_mib);
            Error::new(code, format!("{e}{}", hint.map(|hint| format!(": {hint}")).unwrap_or_default()))
        }
    }
}

/// One image's way into the guest.
struct Pull<'a> {
    log: &'a Logger,
    image: &'a str,
    guest: &'a Guest,
    /// Bytes that the guest had received before.
    before: Option<u64>,
    began: Instant,
    received: Option<u64>,
    ended: bool,
}

impl Pull<'_> {
    async fn look(&mut self) {
        let now = self.guest.taps.received().await;
        self.received = now.zip(self.before).map(|(now, before)| now.saturating_sub(before));
    }

    fn progress(&self) -> Progress {
        let elapsed = Duration::from_secs(self.began.elapsed().as_secs());
        Progress { elapsed, received: self.received, limit: self.guest.config.agent.image_pull_timeout }
    }
}

impl Drop for Pull<'_> {
    /// Whoever asked for the container has given it up.
    fn drop(&mut self) {
        if !self.ended {
            warn!(self.log, "{}", pull_error::given_up(self.image, &self.progress()));
        }
    }
}
