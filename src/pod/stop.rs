//! The end of a pod: the VM stopped, everything owed paid back.

use std::sync::PoisonError;
use std::time::Duration;

use slog::{info, warn};
use tokio::time::timeout;

use crate::error::Result;
use crate::failpoint::{Step, hit};
use crate::host::spawn::blocking;
use crate::limits;
use crate::pod::cleanup;
use crate::pod::guest::Guest;
use crate::pod::{Machine, Pod};

/// Stops the VM, gently first, and pays everything back. The VM is gone afterwards even when an
/// error is returned; what could not be paid stays in the journal for `delete`.
pub(crate) async fn stop(pod: &Pod) -> Result<()> {
    let _one_at_a_time = pod.stopping.lock().await;
    let vm = std::mem::replace(&mut pod.lock().vm, Machine::Gone);
    if let Machine::Up(guest) = &vm {
        end_guest(pod, guest).await;
    }
    hit(Step::VmStopped)?;
    run_cleanup(pod).await?;
    // Its cgroup was emptied: what is left is to take its exit status.
    if let Machine::Up(guest) = &vm {
        if let Some(device) = &guest.vsock_device {
            drop(timeout(limits::CLEANUP_STEP, device.wait()).await);
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
    if let Err(e) = hit(Step::SandboxDestroyed) {
        warn!(pod.log(), "{}", e);
    }
    if let Err(e) = guest.vm.stop(grace).await {
        warn!(pod.log(), "stop the VM: {}", e);
    }
    info!(pod.log(), "VM stopped");
}

/// Pays back what the journal says and forgets it.
pub(crate) async fn run_cleanup(pod: &Pod) -> Result<()> {
    let dir = pod.parts.dir.clone();
    let original_cgroup = pod.original_cgroup.lock().unwrap_or_else(PoisonError::into_inner).take();
    let leave = move || original_cgroup.map_or(Ok(()), |original_cgroup| original_cgroup.restore());
    blocking("clean up", move || leave().and(cleanup::run(&dir))).await?;
    hit(Step::CleanupDone)?;
    pod.journal.clear()
}
