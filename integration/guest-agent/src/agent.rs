//! The sandbox and its containers: what each call does, in the real agent's order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::check::{self, GUEST_DIR};
use crate::environment::Environment;
use crate::failure::{self, Result, Trying, internal, invalid, no_process};
use crate::guest_pull::{self, GuestPull};
use crate::messages::agent as pb;
use crate::messages::oci::{Mount, Spec};
use crate::network::Network;
use crate::oom::OomEvents;
use crate::plain::{Pids, Plain};
use crate::process::{Container, Launched, Phase, Process};
use crate::reaper::Reaper;
use crate::settings::Settings;
use crate::storage::Storages;
use crate::{boot, cgroup, oci, sysctl};

/// Timeout of RemoveContainer when the request has none.
const REMOVE_LIMIT: Duration = Duration::from_secs(60);

/// So much of a termination message is told.
const MESSAGE_BYTES: u64 = 4096;

pub(crate) struct Agent {
    pub(crate) environment: Environment,
    pub(crate) network: Network,
    pub(crate) oom: Arc<OomEvents>,
    /// Notified when the sandbox was destroyed.
    pub(crate) ended: Notify,
    pub(crate) settings: Settings,
    reaper: Arc<Reaper>,
    storages: Storages,
    images: GuestPull,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The sandbox's id.
    sandbox: Option<String>,
    containers: BTreeMap<String, Container>,
    /// Ids of containers being created.
    making: BTreeSet<String>,
    /// The init process of the pod's first container.
    first: Option<i32>,
}

impl Agent {
    pub(crate) fn new(
        environment: Environment,
        network: Network,
        reaper: Arc<Reaper>,
        settings: Settings,
    ) -> Arc<Self> {
        Arc::new(Self {
            environment,
            network,
            oom: OomEvents::new(),
            ended: Notify::new(),
            settings,
            reaper,
            storages: Storages::default(),
            images: GuestPull::new(),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn create_sandbox(&self, req: pb::CreateSandboxRequest) -> Result<()> {
        check::sandbox(&req).map_err(internal)?;
        if self.state().sandbox.replace(req.sandbox_id.clone()).is_some() {
            return Err(internal("a second CreateSandbox"));
        }
        let dir = self.environment.path(GUEST_DIR);
        fs::remove_dir_all(&dir).ok();
        fs::create_dir_all(dir.join("sandbox")).trying(GUEST_DIR)?;
        if self.environment.is_guest() {
            boot::share_namespaces(&req.hostname)?;
        }
        if !req.dns.is_empty() {
            let file = dir.join("sandbox/resolv.conf");
            let lines: Vec<&str> = req.dns.iter().map(|line| line.trim()).collect();
            fs::write(&file, lines.join("\n")).trying("resolv.conf")?;
            if self.environment.is_guest() {
                boot::bind_file(&file, Path::new("/etc/resolv.conf"))?;
            }
        }
        for storage in &req.storages {
            self.storages.add(&self.environment, storage).await?;
        }
        Ok(())
    }

    pub(crate) async fn destroy_sandbox(&self) -> Result<()> {
        let ids: Vec<String> = self.state().containers.keys().cloned().collect();
        for id in ids {
            self.remove_container(&id, 0).await?;
        }
        self.state().sandbox = None;
        self.oom.close();
        self.ended.notify_one();
        Ok(())
    }

    pub(crate) async fn create_container(&self, req: pb::CreateContainerRequest) -> Result<()> {
        check::container(&req, self.settings.seccomp).map_err(internal)?;
        let id = req.container_id.clone();
        {
            let mut state = self.state();
            if state.sandbox.is_none() {
                return Err(internal("CreateContainer before CreateSandbox"));
            }
            // The real agent forgets the container that runs under this id.
            if state.containers.remove(&id).is_some() || !state.making.insert(id.clone()) {
                return Err(internal("exec fifo exists"));
            }
        }
        let making = Making { agent: self, id };
        let container = self.make_container(req).await?;
        let id = making.id.clone();
        drop(making);
        let mut state = self.state();
        state.first.get_or_insert(container.init.pid);
        state.containers.insert(id, container);
        Ok(())
    }

    async fn make_container(&self, mut req: pb::CreateContainerRequest) -> Result<Container> {
        let mut spec = req.OCI.take().unwrap_or_default();
        for device in &req.devices {
            self.number_device(device, &mut spec).await?;
        }
        let (pulls, storages): (Vec<_>, Vec<_>) =
            std::mem::take(&mut req.storages).into_iter().partition(|s| s.driver == guest_pull::DRIVER);
        for storage in &storages {
            self.storages.add(&self.environment, storage).await?;
        }
        for mount in &spec.Mounts {
            self.check_source(mount)?;
        }
        let since = Instant::now();
        let storages: Vec<String> = storages.iter().map(|s| s.mount_point.clone()).collect();
        let launched = match self.fill_and_launch(&pulls, &req, &mut spec).await {
            Ok(launched) => launched,
            Err(e) => {
                storages.iter().for_each(|at| self.storages.release(&self.environment, at));
                return Err(e);
            }
        };
        let (init, gate) = Process::new(launched, &self.reaper, since);
        Ok(Container {
            phase: Phase::Created,
            processes: [(req.container_id, init.clone())].into(),
            init,
            gate,
            storages,
            capabilities: spec.Process.Capabilities.clone().into_option(),
            oom_watch: None,
            message: self.message_file(&spec),
        })
    }

    /// Makes the root file systems that are the guest's to make, then the process.
    async fn fill_and_launch(
        &self,
        pulls: &[pb::Storage],
        req: &pb::CreateContainerRequest,
        spec: &mut Spec,
    ) -> Result<Launched> {
        let sandbox = self.state().sandbox.clone().unwrap_or_default();
        for storage in pulls {
            let ids = (req.container_id.as_str(), sandbox.as_str());
            let made = self.images.make(&self.environment, &self.settings, storage, ids, spec).await?;
            spec.Process =
                made.map_or_else(|| std::mem::take(&mut spec.Process), |process| Some(process).into());
        }
        let launched = self.launch(req, spec).await;
        if launched.is_err() {
            pulls.iter().for_each(|s| self.environment.unmount(&s.mount_point).unwrap_or(()));
        }
        launched
    }

    async fn launch(&self, req: &pb::CreateContainerRequest, spec: &Spec) -> Result<Launched> {
        let shared = self.state().first.filter(|_| req.sandbox_pidns);
        match &self.environment {
            Environment::Guest { crun, .. } => {
                sysctl::set(&spec.Linux.Sysctl)?;
                let pids = shared.map(|pid| format!("/proc/{pid}/ns/pid"));
                let config = oci::config(spec, &req.container_id, pids.as_deref());
                let bundle = Path::new(GUEST_DIR).join(&req.container_id);
                crun.create(&req.container_id, &bundle, &config).await
            }
            Environment::Host { plain, .. } => {
                let cwd = plain.path(&spec.Root.Path);
                plain.launch(&spec.Process, &cwd, &shared.map_or(Pids::Own, Pids::With), true)
            }
        }
    }

    /// Replaces the device numbers in the spec by those of this guest.
    async fn number_device(&self, device: &pb::Device, spec: &mut Spec) -> Result<()> {
        if !matches!(device.type_.as_str(), "blk-ccw" | "scsi") {
            return Err(internal(format!(
                "device type {:?} is not implemented by the test agent",
                device.type_
            )));
        }
        let disk = self.environment.devices().disk(&device.type_, &device.id).await?;
        let (major, minor) = self.environment.devices().number(&disk)?;
        let entries = spec.Linux.as_mut().map(|linux| linux.Devices.iter_mut());
        for entry in entries.into_iter().flatten().filter(|d| d.Path == device.container_path) {
            (entry.Major, entry.Minor) = (major, minor);
        }
        Ok(())
    }

    fn check_source(&self, mount: &Mount) -> Result<()> {
        let bind = mount.type_ == "bind" || mount.options.iter().any(|o| o == "bind" || o == "rbind");
        if bind && !matches!(fs::exists(self.environment.source(&mount.source)), Ok(true)) {
            let (to, from) = (&mount.destination, &mount.source);
            return Err(internal(format!("mount {to}: its source {from} does not exist in the guest")));
        }
        Ok(())
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<()> {
        let gate = {
            let mut state = self.state();
            let is_sandbox = state.sandbox.as_deref() == Some(id);
            let container = state.containers.get_mut(id).ok_or_else(|| internal("Invalid container id"))?;
            if container.phase != Phase::Created {
                return Err(internal("StartContainer: the container is not in the created state"));
            }
            container.phase = Phase::Running;
            if self.environment.is_guest() && !is_sandbox {
                container.oom_watch = Some(self.oom.watch(id)?);
            }
            container.gate.take()
        };
        match (&self.environment, gate) {
            (Environment::Guest { crun, .. }, _) => crun.start(id).await,
            (Environment::Host { .. }, Some(gate)) => File::from(gate).write_all(&[1]).trying("start"),
            (Environment::Host { .. }, None) => Ok(()),
        }
    }

    pub(crate) async fn exec(&self, req: pb::ExecProcessRequest) -> Result<()> {
        check::exec(&req).map_err(internal)?;
        let (id, exec_id) = (req.container_id.as_str(), req.exec_id.as_str());
        let process = req.process.get_or_default();
        let (init, capabilities) = {
            let state = self.state();
            let container = state.containers.get(id).ok_or_else(|| internal("Invalid container id"))?;
            if container.processes.contains_key(exec_id) || exec_id == id {
                return Err(internal(format!("exec id {exec_id:?} is in use")));
            }
            if container.phase == Phase::Created || container.init.exit.now().is_some() {
                return Err(internal("cannot exec in a container that is not running"));
            }
            (container.init.pid, container.capabilities.clone())
        };
        let since = Instant::now();
        let launched = match &self.environment {
            Environment::Guest { crun, .. } => {
                crun.exec(id, &oci::process(process, capabilities.as_ref())).await?
            }
            Environment::Host { plain, .. } => {
                let cwd = plain.path(&format!("{GUEST_DIR}/{id}/rootfs"));
                plain.launch(process, &cwd, &Pids::With(init), false)?
            }
        };
        let (process, _) = Process::new(launched, &self.reaper, since);
        if let Some(container) = self.state().containers.get_mut(id) {
            container.processes.insert(exec_id.to_owned(), process);
        }
        Ok(())
    }

    /// A process by its ids; without an exec id the container's init process.
    pub(crate) fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>> {
        let state = self.state();
        let container = state.containers.get(id).ok_or_else(|| invalid("InvalidContainerId"))?;
        let exec_id = if exec_id.is_empty() { id } else { exec_id };
        container.processes.get(exec_id).cloned().ok_or_else(no_process)
    }

    /// The status of a process that exited. It is forgotten then, together with its unread output.
    pub(crate) async fn wait_process(&self, id: &str, exec_id: &str) -> Result<i32> {
        let process = self.process(id, exec_id)?;
        let status = process.exit.wait().await;
        let exec_id = if exec_id.is_empty() { id } else { exec_id };
        if let Some(container) = self.state().containers.get_mut(id) {
            container.processes.remove(exec_id);
        }
        process.stdio.close();
        Ok(status)
    }

    pub(crate) async fn signal(&self, id: &str, exec_id: &str, number: u32) -> Result<()> {
        let wanted = i32::try_from(number).unwrap_or(-1);
        if exec_id.is_empty() && wanted == Signal::SIGKILL as i32 {
            let state = self.state();
            let container = state.containers.get(id).ok_or_else(|| internal("Invalid container id"))?;
            return self.kill_all(id, container);
        }
        let process = self.process(id, exec_id)?;
        let init = exec_id.is_empty() || exec_id == id;
        let signal = match wanted {
            0 => None,
            n => Some(Signal::try_from(n).trying(format!("signal {number}"))?),
        };
        let signal = match signal {
            Some(Signal::SIGTERM) if init && ignores_end(process.pid).await => Some(Signal::SIGKILL),
            other => other,
        };
        match kill(Pid::from_raw(process.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(e).trying("kill"),
        }
    }

    fn kill_all(&self, id: &str, container: &Container) -> Result<()> {
        match self.environment {
            Environment::Guest { .. } => cgroup::kill(id),
            Environment::Host { .. } => {
                Plain::signal_all(container, Signal::SIGKILL);
                Ok(())
            }
        }
    }

    /// Pauses or resumes.
    pub(crate) async fn pause(&self, id: &str, pause: bool) -> Result<()> {
        let (from, to) =
            if pause { (Phase::Running, Phase::Paused) } else { (Phase::Paused, Phase::Running) };
        {
            let state = self.state();
            let container = state.containers.get(id).ok_or_else(|| invalid("invalid container id"))?;
            // A created container may be paused as well, but there is nothing to freeze yet.
            if container.phase != from && !(pause && container.phase == Phase::Created) {
                return Err(internal(format!("the container is {:?}", container.phase)));
            }
            if let Environment::Host { .. } = self.environment {
                Plain::signal_all(container, if pause { Signal::SIGSTOP } else { Signal::SIGCONT });
            }
        }
        if self.environment.is_guest() {
            cgroup::freeze(id, pause).await?;
        }
        if let Some(container) = self.state().containers.get_mut(id) {
            container.phase = to;
        }
        Ok(())
    }

    pub(crate) fn update(&self, req: &pb::UpdateContainerRequest) -> Result<()> {
        let known = self.state().containers.contains_key(&req.container_id);
        match (known, self.environment.is_guest()) {
            (false, _) => Err(invalid("invalid container id")),
            (true, true) => cgroup::update(&req.container_id, &req.resources),
            (true, false) => Ok(()),
        }
    }

    pub(crate) fn stats(&self, id: &str) -> Result<pb::CgroupStats> {
        let pid = self.state().containers.get(id).map(|c| c.init.pid);
        let pid = pid.ok_or_else(|| invalid("invalid container id"))?;
        Ok(if self.environment.is_guest() { cgroup::stats(id) } else { Plain::stats(pid) })
    }

    /// The source of the mount that the spec's annotation names.
    fn message_file(&self, spec: &Spec) -> Result<PathBuf> {
        let at = spec.Annotations.get("io.kubernetes.container.terminationMessagePath");
        let at = at.ok_or_else(|| internal("No terminationMessagePath annotation"))?;
        let mount = spec.Mounts.iter().find(|mount| mount.destination == *at);
        let mount = mount.ok_or_else(|| internal(format!("no mount at {at}")))?;
        Ok(self.environment.source(&mount.source))
    }

    /// The beginning of a container's termination message.
    pub(crate) fn termination_message(&self, id: &str) -> Result<String> {
        let state = self.state();
        let container = state.containers.get(id).ok_or_else(|| invalid("invalid container id"))?;
        let file = container.message.as_ref().map_err(|e| internal(failure::text(e)))?;
        let mut message = Vec::new();
        let file = File::open(file).trying(file.display())?;
        file.take(MESSAGE_BYTES).read_to_end(&mut message).trying("termination message")?;
        Ok(String::from_utf8_lossy(&message).into_owned())
    }

    /// Kills and forgets a container; `seconds` 0: without a limit.
    pub(crate) async fn remove_container(&self, id: &str, seconds: u32) -> Result<()> {
        let container = self.state().containers.remove(id).ok_or_else(|| internal("Invalid container id"))?;
        let limit = if seconds == 0 { REMOVE_LIMIT } else { Duration::from_secs(seconds.into()) };
        // Nothing is left to kill once its cgroup is gone.
        self.kill_all(id, &container).ok();
        if timeout(limit, container.init.exit.wait()).await.is_err() {
            return Err(internal("ETIME: Timer expired"));
        }
        if let Environment::Guest { crun, .. } = &self.environment {
            crun.delete(id).await?;
        }
        let dir = format!("{GUEST_DIR}/{id}");
        // Not a mount point if no storage was mounted there.
        self.environment.unmount(&format!("{dir}/rootfs")).ok();
        fs::remove_dir_all(self.environment.path(&dir)).trying(format!("remove {dir}"))?;
        container.storages.iter().for_each(|at| self.storages.release(&self.environment, at));
        Ok(())
    }
}

/// A container being created; no longer when dropped, also by a panic.
struct Making<'a> {
    agent: &'a Agent,
    id: String,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.agent.state().making.remove(&self.id);
    }
}

/// Whether the init process of a namespace, which gets no signal that it does not handle, would ignore SIGTERM.
///
/// A shell blocks signals for a moment while it starts a program, so blocked signals are checked again.
async fn ignores_end(pid: i32) -> bool {
    let bit = 1 << (Signal::SIGTERM as u64 - 1);
    for _ in 0..10 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0) & bit != 0
        };
        if set("SigIgn:") || set("SigCgt:") {
            return false;
        }
        if !set("SigBlk:") {
            return true;
        }
        sleep(Duration::from_millis(5)).await;
    }
    false
}
