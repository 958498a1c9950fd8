//! What happens to a running pod without a call: the VM's end, the guest's OOM killer, an agent that falls silent.

use std::path::PathBuf;
use std::sync::Arc;

use slog::{Logger, debug, info, warn};

use crate::error::Code;
use crate::host::tasks;
use crate::ids::ProcessId;
use crate::lifecycle::process::{Input, Phase};
use crate::lifecycle::vm::{VmEnd, VmInput, VmPhase};
use crate::pod::Pod;
use crate::pod::guest::Guest;
use crate::pod::record::{Failure, Record};
use crate::pod::state::KILLED;
use crate::qemu::vm::Vm;

/// Watches over a guest until its end; runs from before its first container on.
pub(crate) async fn watch(pod: Arc<Pod>, guest: Arc<Guest>) {
    guest.vm.expect_secrets();
    let poll = tasks::spawn(poll_oom(Arc::clone(&pod), Arc::clone(&guest)));
    let health = tasks::spawn(watch_health(Arc::clone(&pod), Arc::clone(&guest)));
    let mut gone = guest.vm.gone();
    let end = match gone.wait_for(Option::is_some).await {
        Ok(end) => end.clone(),
        Err(_) => None,
    };
    poll.abort();
    health.abort();
    let asked = matches!(end, Some(VmEnd::AskedToStop) | None);
    if asked {
        info!(pod.log(), "the VM has ended");
    }
    end_vm(&pod, &guest);
    end_unstarted(&pod);
    pod.end_sandbox(if asked { 0 } else { KILLED });
}

/// Logs an unexpected end of the VM in full and puts it into the sandbox record; from QEMU's start on, also
/// while it boots.
pub(crate) async fn record_end(log: Logger, dir: PathBuf, vm: Arc<Vm>) {
    let mut gone = vm.gone();
    let end = match gone.wait_for(Option::is_some).await {
        Ok(end) => end.clone(),
        Err(_) => None,
    };
    match &end {
        Some(VmEnd::AskedToStop) | None => {}
        Some(VmEnd::Explained { diagnosis, output_tail }) => {
            warn!(log, "the VM has failed: {}", diagnosis.cause;
            "evidence" => &diagnosis.evidence, "advice" => &diagnosis.advice, "words" => output_tail)
        }
        Some(end) => warn!(log, "{}", end),
    }
    let Some(failure) = end.as_ref().and_then(Failure::of) else { return };
    let written = Record::read(&dir).and_then(|mut record| {
        record.failure = Some(failure);
        record.write(&dir)
    });
    if let Err(e) = written {
        warn!(log, "sandbox record: {}", e);
    }
}

/// The pod may have another guest by now: this one's end is then no news of the other.
fn end_vm(pod: &Pod, guest: &Arc<Guest>) {
    let mut state = pod.lock();
    if state.vm.guest().is_some_and(|current| Arc::ptr_eq(current, guest)) {
        if let Err(e) = state.vm.advance(VmInput::VmEnded) {
            warn!(pod.log(), "{}", e);
        }
    }
}

/// Running processes are ended by their monitors, which first deliver their output; those that were never
/// started have none.
pub(super) fn end_unstarted(pod: &Pod) {
    let waiting: Vec<ProcessId> = {
        let state = pod.lock();
        let inits = state.containers.iter().filter(|(_, c)| c.init.phase() == Phase::Created);
        inits.map(|(id, _)| ProcessId::init(id.clone())).collect()
    };
    for id in waiting {
        pod.end_process(&id, Input::VmEnded, KILLED, std::time::SystemTime::now());
    }
}

/// Checks the health of a guest whose agent seems dead, and ends one that does not answer: its containers could
/// not be stopped, nor their ends be learnt. A guest that answers its calls is never asked. One that breaks the
/// protocol is ended at once.
async fn watch_health(pod: Arc<Pod>, guest: Arc<Guest>) {
    let silent = async {
        loop {
            guest.agent.suspected().await;
            if let Err(e) = guest.agent.health().await {
                return e;
            }
            debug!(pod.log(), "a call was not answered in time; the agent is well");
        }
    };
    let e = tokio::select! {
        e = silent => e,
        e = guest.agent.broken() => e,
    };
    guest.kill_because(pod.log(), &e);
}

/// One call at a time; ends with the VM, or when the guest does not allow the call.
async fn poll_oom(pod: Arc<Pod>, guest: Arc<Guest>) {
    let mut said = false;
    loop {
        match guest.agent.oom_event().await {
            Ok(id) => {
                if !pod.note_oom(&id).await && !said {
                    said = true;
                    warn!(pod.log(), "the guest reports OOM of {}, which is not in this pod", id);
                }
                tokio::time::sleep(crate::limits::agent::OOM_EVENT_PAUSE).await;
            }
            Err(e) => {
                // The connection ends with the VM, shortly before its end is known.
                let is_up = pod.lock().vm.phase() == VmPhase::Up;
                if !is_up || guest.vm.gone().borrow().is_some() {
                    return;
                }
                // The call itself tells of a denial.
                if e.code() == Code::PermissionDenied {
                    return;
                }
                warn!(pod.log(), "{}", e);
                if e.code() == Code::Unimplemented {
                    return;
                }
                tokio::time::sleep(crate::limits::agent::OOM_POLL_PAUSE).await;
            }
        }
    }
}
