//! The end of a pod: the VM stopped, everything owed paid back.

use std::sync::PoisonError;
use std::time::Duration;

use slog::{info, warn};
use tokio::time::timeout;

use crate::error::Result;
use crate::host::spawn::blocking;
use crate::limits;
use crate::pod::guest::Guest;
use crate::pod::step::{Step, reached};
use crate::pod::{Machine, Pod, undo};

/// Stops the VM, gently first, and pays everything back. The VM is gone afterwards even when an
/// error is returned; what could not be paid stays in the journal for `delete`.
pub(crate) async fn stop(pod: &Pod) -> Result<()> {
    let _one_at_a_time = pod.stopping.lock().await;
    let vm = std::mem::replace(&mut pod.lock().vm, Machine::Gone);
    if let Machine::Up(guest) = &vm {
        end_guest(pod, guest).await;
    }
    reached(Step::VmStopped)?;
    pay_back(pod).await?;
    // Its cgroup was emptied: what is left is to take its exit status.
    if let Machine::Up(guest) = &vm {
        if let Some(device) = &guest.vsock_device {
            drop(timeout(limits::UNDO_STEP, device.wait()).await);
        }
    }
    Ok(())
}

async fn end_guest(pod: &Pod, guest: &Guest) {
    let running = guest.vm.gone().borrow().is_none();
    let mut grace = Duration::ZERO;
    if running {
        guest.vm.expect_end();
        match timeout(limits::GUEST_POWER_OFF, guest.agent.destroy_sandbox()).await {
            Ok(Ok(())) => grace = limits::GUEST_POWER_OFF,
            // The agent may power off before it answers.
            Ok(Err(_)) => grace = Duration::from_millis(500),
            Err(_) => {}
        }
    }
    if let Err(e) = reached(Step::SandboxDestroyed) {
        warn!(pod.log(), "{}", e);
    }
    if let Err(e) = guest.vm.stop(grace).await {
        warn!(pod.log(), "stop the VM: {}", e);
    }
    info!(pod.log(), "VM stopped");
}

/// Pays back what the journal says and forgets it.
pub(crate) async fn pay_back(pod: &Pod) -> Result<()> {
    let dir = pod.parts.dir.clone();
    let home = pod.home.lock().unwrap_or_else(PoisonError::into_inner).take();
    let leave = move || home.map_or(Ok(()), |home| home.go_back());
    blocking("clean up", move || leave().and(undo::pay_back(&dir))).await?;
    reached(Step::ScopeUndone)?;
    pod.journal.clear()
}
