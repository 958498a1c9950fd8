//! Calls of which nobody knows whether the guest has carried them out: given up, not answered in time, or the
//! connection lost. For the host their process does not exist, so none may run in the guest: it is ended there,
//! again and again until the guest has confirmed it or will not carry the call out any more.

use std::sync::Arc;

use slog::{info, warn};
use tokio::time::{Instant, sleep};

use crate::error::{Code, Error, Result};
use crate::host::tasks;
use crate::ids::ProcessId;
use crate::lifecycle::process::Phase;
use crate::limits;
use crate::pod::Pod;
use crate::pod::guest::Guest;
use crate::pod::state::{Process, SIGKILL};

/// Whether the guest may have done, or may still do, what a call with this error asked for.
pub(crate) fn may_happen(e: &Error) -> bool {
    matches!(e.code(), Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable)
}

/// What is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// StartContainer or ExecProcess: its process is killed.
    Start,
    /// CreateContainer: the container is removed.
    Create,
}

/// What the guest says of it.
enum Answer {
    Ended,
    /// There is none. It may come to be, until the call's time is over.
    Absent,
    /// The host has another one of that name.
    Replaced,
}

impl Call {
    /// Ends what a call with the error `e` may have made, beside all else. Nothing to do: the guest refused.
    pub(crate) fn undo(self, e: &Error, pod: &Arc<Pod>, guest: &Arc<Guest>, id: &ProcessId) {
        if !may_happen(e) || guest.vm.gone().borrow().is_some() {
            return;
        }
        let (pod, guest, id) = (Arc::clone(pod), Arc::clone(guest), id.clone());
        tasks::detach(async move {
            let mut gone = guest.vm.gone();
            tokio::select! {
                () = self.end(&pod, &guest, &id) => {}
                _ = gone.wait_for(Option::is_some) => {}
            }
        });
    }

    async fn end(self, pod: &Pod, guest: &Guest, id: &ProcessId) {
        let agent = &guest.config.agent;
        let limit = if self == Self::Create { agent.create_timeout } else { agent.call_timeout };
        let until = Instant::now() + limit + limits::agent::CALL_SLACK;
        loop {
            let over = Instant::now() > until;
            match self.try_end(pod, guest, id).await {
                Ok(Answer::Ended) => return info!(pod.log(), "{}: its start was not answered; ended", id),
                Ok(Answer::Replaced) => return,
                Ok(Answer::Absent) if over => return,
                Ok(Answer::Absent) => {}
                Err(e) if matches!(e.code(), Code::PermissionDenied | Code::Unimplemented) => {
                    return warn!(pod.log(), "{}: may run on in the guest: {}", id, e);
                }
                Err(_again) => {}
            }
            sleep(limits::agent::UNANSWERED_PAUSE).await;
        }
    }

    async fn try_end(self, pod: &Pod, guest: &Guest, id: &ProcessId) -> Result<Answer> {
        if self == Self::Create {
            let removed = guest.agent.remove_container(&id.container, limits::agent::REMOVE_CONTAINER).await;
            return removed.map(|()| Answer::Absent);
        }
        let ended = [Err(()), Ok(Phase::Exited), Ok(Phase::Deleting)];
        if !ended.contains(&pod.lock().process(id).map(Process::phase).map_err(drop)) {
            return Ok(Answer::Replaced);
        }
        match guest.agent.signal_process(id, SIGKILL, false).await {
            Ok(()) => guest.agent.wait_process(id).await.map(|_status| Answer::Ended),
            Err(e) if e.code() == Code::NotFound => Ok(Answer::Absent),
            Err(e) => Err(e),
        }
    }
}
