//! The end of a pod: what is being made is cancelled, the VM stopped, everything recorded in the journal removed.
//!
//! `docs/architecture.md` has a page on who waits for whom here.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use slog::{info, warn};
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::{Error, Result};
use crate::failpoint::{Step, hit};
use crate::host::begun::{self, blocking};
use crate::host::shim_cgroup::OriginalCgroup;
use crate::ids::{ContainerId, ProcessId};
use crate::lifecycle::process::{Input, Phase};
use crate::lifecycle::vm::{VmInput, VmPhase};
use crate::limits;
use crate::mutex;
use crate::pod::guest::Guest;
use crate::pod::request::{Exit, Service};
use crate::pod::state::KILLED;
use crate::pod::{Pod, cleanup, supervise};

/// Stops the VM, gently first, and removes everything that was made for it. The VM is gone afterwards
/// even when an error is returned; what could not be removed is still in the journal, for another Stop or
/// for `delete`.
pub(crate) async fn stop(pod: &Pod) -> Result<()> {
    let guest = begin(pod).await?;
    let _stopping = Stopping { pod };
    if let Some(guest) = &guest {
        end_guest(pod, guest).await;
    }
    hit(Step::VmStopped)?;
    run_cleanup(pod).await?;
    // Its cgroup was emptied: what is left is to take its exit status.
    if let Some(device) = guest.as_ref().and_then(|guest| guest.vsock_device.as_ref()) {
        timeout(limits::host::CLEANUP_STEP, device.wait()).await.ok();
    }
    Ok(())
}

/// Stops what a failed start has left, so that the pod can be started again.
pub(crate) async fn undo_boot(pod: &Pod) {
    let stopped = stop(pod).await;
    let undone = pod.lock().vm.advance(VmInput::BootUndone);
    for e in [stopped, undone].into_iter().filter_map(Result::err) {
        warn!(pod.log(), "after a failed start: {}", e);
    }
}

/// From StopAsked on; dropped when the Stop has ended, however it did.
struct Stopping<'a> {
    pod: &'a Pod,
}

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        let stopped = self.pod.lock().vm.advance(VmInput::Stopped);
        if let Err(e) = stopped {
            warn!(self.pod.log(), "{}", e);
        }
    }
}

/// Waits for the end of another Stop and begins this one, with the guest that it has to end.
async fn begin(pod: &Pod) -> Result<Option<Arc<Guest>>> {
    loop {
        let mut phases = {
            let mut state = pod.lock();
            if state.vm.phase() != VmPhase::Stopping {
                return state.vm.begin_stop();
            }
            state.vm.phases()
        };
        phases.wait_for(|phase| *phase != VmPhase::Stopping).await.ok();
    }
}

async fn end_guest(pod: &Pod, guest: &Guest) {
    let running = guest.vm.gone().borrow().is_none();
    let mut grace = Duration::ZERO;
    if running {
        guest.vm.expect_end();
        match timeout(limits::qemu::GUEST_POWER_OFF, guest.agent.destroy_sandbox()).await {
            Ok(Ok(())) => grace = limits::qemu::GUEST_POWER_OFF,
            // The agent may power off before it answers.
            Ok(Err(_)) => grace = limits::qemu::POWER_OFF_WITHOUT_ANSWER,
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

/// Moves the shim back to where it was started, removes what the journal names, and clears the journal.
async fn run_cleanup(pod: &Pod) -> Result<()> {
    // What still makes something is waited for; after its limit the journal is kept, for another cleanup.
    let ended = begun::ended(limits::host::BEGUN_WORK).await;
    let dir = pod.parts.dir.clone();
    let original = Arc::clone(&pod.original_cgroup);
    let leave = move || mutex::lock(&original).as_ref().map_or(Ok(()), OriginalCgroup::restore);
    blocking("clean up", move || leave().and(cleanup::run(&dir))).await?;
    hit(Step::CleanupDone)?;
    ended?;
    mutex::lock(&pod.original_cgroup).take();
    pod.journal.clear()
}

impl Pod {
    /// Task.Shutdown and ShutdownSandbox: `now` ends what still runs. True: everything is ended, and the shim
    /// may exit.
    pub(crate) async fn shutdown(self: &Arc<Self>, now: bool) -> Result<bool> {
        {
            let state = self.lock();
            // A sandbox lives without containers, too: it has its own Shutdown.
            if !now && (!state.containers.is_empty() || state.sandbox.is_some()) {
                return Ok(false);
            }
            state.service.send_replace(Service::ShuttingDown);
        }
        self.cancel_begun().await;
        self.end().await;
        Ok(true)
    }

    /// The end of a pod whose shim has a bug: a Shutdown that does not wait for what may never end.
    pub(crate) async fn end_after_panic(self: &Arc<Self>) {
        self.lock().service.send_replace(Service::ShuttingDown);
        timeout(limits::shim::PANIC_GRACE, self.cancel_begun()).await.ok();
        self.end_sandbox(KILLED);
        self.end().await;
    }

    /// Cancels every Create and StartSandbox that is under way, and waits until they are undone.
    async fn cancel_begun(&self) {
        let creating: Vec<ContainerId> = {
            let state = self.lock();
            let creating = state.containers.iter().filter(|(_, c)| c.init.phase() == Phase::Creating);
            creating.inspect(|(_, c)| _ = c.cancel.send_replace(true)).map(|(id, _)| id.clone()).collect()
        };
        for id in creating {
            self.cancel_create(&id).await.ok();
        }
        self.cancel_sandbox_start().await;
    }

    /// Ends the VM, every process and the sandbox, and forgets them: the shim may exit.
    async fn end(&self) {
        if let Err(e) = stop(self).await {
            warn!(self.log(), "shutdown: {}", e);
        }
        self.end_sandbox(0);
        self.await_exits().await;
        let mut state = self.lock();
        state.containers.clear();
        state.service.send_replace(Service::ShutDown);
    }

    /// Every process' end is told before the process is forgotten. Their monitors know it, and tell it within
    /// milliseconds, since no output is waited for in a Shutdown.
    async fn await_exits(&self) {
        supervise::end_unstarted(self);
        let running: Vec<_> = {
            let state = self.lock();
            state.processes().filter(|(_, p)| p.is_running()).map(|(id, p)| (id, p.exit_watch())).collect()
        };
        let until = Instant::now() + limits::shim::EXITS_TOLD;
        for (id, mut exit) in running {
            if timeout_at(until, exit.wait_for(Option::is_some)).await.is_err() {
                self.end_process(&id, Input::VmEnded, KILLED, SystemTime::now());
            }
        }
    }

    /// Returns when a Shutdown has been asked for.
    pub(crate) async fn shutting_down(&self) {
        let mut service = self.lock().service.subscribe();
        service.wait_for(|service| *service != Service::Serving).await.ok();
    }

    /// Returns when a Shutdown has ended everything.
    pub(crate) async fn shut_down(&self) {
        let mut service = self.lock().service.subscribe();
        service.wait_for(|service| *service == Service::ShutDown).await.ok();
    }

    /// Cancels a Create that is under way and waits until it is undone: then there is no such container, which
    /// is the error. One that is created already is left alone.
    pub(crate) async fn cancel_create(&self, id: &ContainerId) -> Result<()> {
        {
            let state = self.lock();
            let container = state.container(id)?;
            if container.init.phase() != Phase::Creating {
                return Ok(());
            }
            container.cancel.send_replace(true);
        }
        self.wait_while(&ProcessId::init(id.clone()), Phase::Creating).await;
        Err(Error::not_found(format!("container {id}: its creation was cancelled")))
    }

    /// Cancels a StartSandbox that is under way, and waits until nothing of it runs any longer.
    pub(crate) async fn cancel_sandbox_start(&self) {
        let mut phases = {
            let state = self.lock();
            let Some(sandbox) = &state.sandbox else { return };
            sandbox.cancel.send_replace(true);
            state.vm.phases()
        };
        phases.wait_for(|phase| *phase != VmPhase::Booting).await.ok();
    }

    /// The sandbox has ended; the first end wins.
    pub(crate) fn end_sandbox(&self, status: u32) {
        let state = self.lock();
        let Some(sandbox) = &state.sandbox else { return };
        Exit { status, at: SystemTime::now() }.publish(&sandbox.exit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ContainerId;
    use crate::lifecycle::vm::VmInput;
    use crate::oci::pod_spec::PodSpec;
    use crate::plan::cpus::CpuList;
    use crate::pod::journal::Cleanup;
    use crate::pod::request::{CreateRequest, StdioPaths};
    use crate::pod::state::{Container, Sandbox};

    #[tokio::test]
    async fn after_a_panic_nobody_waits_for_a_phase_that_is_stuck() {
        let dir = tempfile::tempdir().expect("dir");
        let pod = Pod::in_dir(dir.path());
        // As a Create leaves it that has panicked while it booted the VM.
        let id = ContainerId::parse("s1").expect("id");
        let request = CreateRequest {
            id: id.clone(),
            bundle: "/b".into(),
            rootfs: Vec::new(),
            stdio: StdioPaths::default(),
            config_path: None,
        };
        pod.lock().vm.advance(VmInput::BootAsked).expect("boot");
        pod.lock().containers.insert(id.clone(), Container::creating(&request, true, CpuList::default()));
        pod.journal.record(&Cleanup::Path { name: "socket".into() }).expect("record");
        std::fs::write(dir.path().join("socket"), b"").expect("socket");
        let ended = async { tokio::join!(pod.end_after_panic(), pod.cancel_create(&id), pod.shut_down()) };
        let ((), deleted, ()) = timeout(Duration::from_secs(10), ended).await.expect("an end");
        assert_eq!(deleted.expect_err("no such container").code(), crate::error::Code::NotFound);
        assert_eq!(pod.lock().vm.phase(), VmPhase::Gone);
        assert!(!dir.path().join("socket").exists());
        assert_eq!(crate::pod::journal::read(dir.path()), Ok(vec![]));
    }

    #[tokio::test]
    async fn after_a_panic_a_sandbox_that_was_being_started_has_ended() {
        let dir = tempfile::tempdir().expect("dir");
        let pod = Pod::in_dir(dir.path());
        let sandbox = Sandbox::new(pod.parts.sandbox.clone(), PodSpec::default());
        let exit = sandbox.exit.subscribe();
        pod.lock().vm.advance(VmInput::BootAsked).expect("boot");
        pod.lock().sandbox = Some(sandbox);
        timeout(Duration::from_secs(10), pod.end_after_panic()).await.expect("an end");
        assert_eq!(exit.borrow().map(|exit| exit.status), Some(KILLED));
        timeout(Duration::from_secs(1), pod.shut_down()).await.expect("shut down");
    }
}
