//! The sandbox of containerd's Sandbox API: a pod whose VM is started without a container that represents it.
//!
//! Start can be cancelled (Stop, Shutdown) at any await; everything it made is undone before it answers.
//! Its end is set once, by the first of Stop, Shutdown and the VM's own end.

use std::path::Path;
use std::sync::Arc;

use slog::{info, warn};
use tokio::sync::watch;

use crate::error::{Code, Context, Error, Result};
use crate::host::log::ms;
use crate::ids::{ContainerId, SandboxId};
use crate::lifecycle::vm::{VmInput, VmPhase};
use crate::oci::pod_spec::PodSpec;
use crate::oci::role::Role;
use crate::oci::spec::Bundle;
use crate::plan::stats::Stats;
use crate::pod::etc_files;
use crate::pod::launch;
use crate::pod::record::Record;
use crate::pod::request::{Exit, SandboxRequest, SandboxState};
use crate::pod::state::{Sandbox, no_sandbox};
use crate::pod::{Pod, prepare, stop};

impl Pod {
    /// Registers the sandbox; Start boots its VM.
    pub(crate) fn create_sandbox(&self, request: SandboxRequest) -> Result<()> {
        let id = request.id;
        let mut state = self.lock();
        if id != self.parts.sandbox {
            return Err(Error::invalid(format!(
                "sandbox {id}: this shim serves sandbox {}",
                self.parts.sandbox
            )));
        }
        if !state.is_serving() {
            return Err(Error::precondition(format!("sandbox {id}: its shim is shutting down")));
        }
        if state.sandbox.is_some() {
            return Err(Error::already_exists(format!("sandbox {id}: exists already")));
        }
        if state.vm.phase() != VmPhase::Absent || !state.containers.is_empty() {
            return Err(Error::precondition(format!("sandbox {id}: was begun with a sandbox container")));
        }
        state.used = true;
        state.sandbox = Some(Sandbox::new(id, request.spec));
        Ok(())
    }

    /// Whether it was made by the Sandbox API.
    pub(crate) fn has_sandbox(&self) -> bool {
        self.lock().sandbox.is_some()
    }

    /// Boots the VM. After an error the sandbox is as it was before, and may be started again.
    pub(crate) async fn start_sandbox(self: &Arc<Self>, id: &SandboxId) -> Result<SandboxState> {
        let began = std::time::Instant::now();
        let (spec, mut cancel) = self.begin_start(id)?;
        let booted = tokio::select! {
            booted = self.boot_sandbox(&spec) => booted,
            _ = cancel.wait_for(|asked| *asked) => {
                Err(Error::new(Code::Cancelled, "cancelled: the sandbox was stopped while it was being started"))
            }
        };
        let booted = booted.with_context(|| format!("start sandbox {id}"));
        if let Err(e) = &booted {
            warn!(self.log(), "{}", e);
            stop::undo_boot(self).await;
        }
        booted?;
        info!(self.log(), "started sandbox {}", id;
            "ms" => ms(began.elapsed()));
        self.sandbox_state(id)
    }

    fn begin_start(&self, id: &SandboxId) -> Result<(Arc<PodSpec>, watch::Receiver<bool>)> {
        let mut state = self.lock();
        let sandbox = state.sandbox(id)?;
        if !state.is_serving() || *sandbox.cancel.borrow() || sandbox.exit.borrow().is_some() {
            return Err(Error::precondition(format!("sandbox {id}: was stopped: create a new one")));
        }
        if state.vm.phase() != VmPhase::Absent {
            return Err(Error::precondition(format!("sandbox {id}: was started already")));
        }
        let begun = (Arc::clone(&sandbox.spec), sandbox.cancel.subscribe());
        state.vm.advance(VmInput::BootAsked)?;
        Ok(begun)
    }

    async fn boot_sandbox(self: &Arc<Self>, spec: &PodSpec) -> Result<()> {
        let hostname = etc_files::hostname(&self.parts.sandbox, spec);
        etc_files::write(&self.parts.dir, &hostname, &etc_files::resolver_lines(&spec.resolver)?)?;
        // The runtime options came with `start` and are in the environment.
        let context = prepare::prepare(self, None, spec).await?;
        let guest = launch::launch(self, &context, spec).await?;
        launch::publish_guest(self, guest).map(|_| ())
    }

    /// Stops the VM and frees everything but what is known of containers. Stopped already: frees what an
    /// earlier Stop could not. Bounded by the VM's own end.
    pub(crate) async fn stop_sandbox(&self, id: &SandboxId) -> Result<()> {
        self.lock().sandbox(id)?;
        self.cancel_sandbox_start().await;
        let stopped = stop::stop(self).await;
        self.end_sandbox(0);
        stopped.with_context(|| format!("stop sandbox {id}"))
    }

    /// Waits for the sandbox' end; any number of callers, also after it.
    pub(crate) async fn wait_sandbox(&self, id: &SandboxId) -> Result<Exit> {
        let mut exit = self.lock().sandbox(id)?.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.map(|exit| *exit);
        ended.ok().flatten().ok_or_else(|| Error::not_found(format!("sandbox {id}: its shim has shut down")))
    }

    pub(crate) fn sandbox_state(&self, id: &SandboxId) -> Result<SandboxState> {
        let state = self.lock();
        let sandbox = state.sandbox(id)?;
        let exit = *sandbox.exit.borrow();
        let ready = exit.is_none() && state.vm.phase() == VmPhase::Up;
        let pid = if ready { state.vm.pid() } else { 0 };
        Ok(SandboxState { ready, pid, created_at: sandbox.created_at, exit })
    }

    /// More about it, for people, as JSON.
    pub(crate) fn sandbox_details(&self, id: &SandboxId) -> Result<String> {
        let known = self.sandbox_state(id)?;
        let vm = self
            .guest()
            .ok()
            .map(|guest| serde_json::json!({"memory_mib": guest.size.memory_mib, "vcpus": guest.size.vcpus}));
        let record = Record::read(&self.parts.dir).ok();
        Ok(serde_json::json!({"pid": known.pid, "vm": vm, "record": record}).to_string())
    }

    /// Whether its VM runs; if not, why.
    pub(crate) fn ping_sandbox(&self, id: &SandboxId) -> Result<()> {
        if self.sandbox_state(id)?.ready {
            return Ok(());
        }
        self.guest()?;
        Err(Error::precondition(format!("sandbox {id}: its VM has ended")))
    }

    /// The VM's own use of the host.
    pub(crate) async fn sandbox_stats(&self, id: &SandboxId) -> Result<Stats> {
        self.lock().sandbox(id)?;
        let guest = self.guest().map_err(|e| e.with_code(Code::NotFound))?;
        self.vm_stats(&guest).await.with_context(|| format!("statistics of sandbox {id}"))
    }

    /// What a container takes from its sandbox. One without pod annotations is a member as well: its caller says
    /// so by asking this shim.
    pub(crate) fn join_sandbox(&self, bundle: &mut Bundle) {
        let state = self.lock();
        let Some(sandbox) = &state.sandbox else { return };
        if bundle.role == Role::Single {
            bundle.role = Role::Member { sandbox: sandbox.id.clone() };
        }
        bundle.add_sysctls(&sandbox.spec.sysctls);
        for (destination, source) in etc_files::mounts(&self.parts.dir) {
            bundle.add_bind(&destination, &source);
        }
        // The pod's shared memory, under any name of the source.
        bundle.add_bind(Path::new("/dev/shm"), Path::new("shm"));
    }

    /// Whether a container joins the process ids of its pod's first one. Not in a sandbox of the API: all
    /// others would end with that container, and none could be made after it.
    pub(crate) fn shares_pids(&self, container: &ContainerId, bundle: &Bundle) -> bool {
        let asked = bundle.shares_pid_namespace();
        if asked && self.has_sandbox() {
            warn!(
                self.log(),
                "container {}: has its own process ids: a pod without a sandbox container cannot share \
                them (shareProcessNamespace needs sandboxer = \"podsandbox\")",
                container
            );
            return false;
        }
        asked
    }

    /// Ends everything of the sandbox, also what still runs: the shim may exit then.
    pub(crate) async fn shutdown_sandbox(self: &Arc<Self>, id: &SandboxId) -> Result<()> {
        {
            // A CreateSandbox that was refused has left a shim, too.
            let state = self.lock();
            if *id != self.parts.sandbox || state.sandbox.is_none() && !state.containers.is_empty() {
                return Err(no_sandbox(id));
            }
        }
        self.shutdown(true).await.map(|_| ())
    }
}
