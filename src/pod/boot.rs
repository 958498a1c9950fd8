//! From nothing to a guest whose agent answers: the sequence of a pod's start.
//!
//! Everything is owed in the journal before it is made; whoever calls pays back on an error.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use slog::{debug, info, warn};

use crate::agent::client::Agent;
use crate::agent::dial::Transport;
use crate::ccw::DevNos;
use crate::config::{Boot, Config, VsockConfig, annotations};
use crate::error::{Context, Error, Result};
use crate::host::spawn::{Child, FdTable, blocking};
use crate::host::vsock;
use crate::host::{capacity, cgroup, config_files, files, shim_cgroup};
use crate::limits;
use crate::oci::pod_spec::{PodSpec, Resolver};
use crate::oci::storage;
use crate::plan::cpus::CpuList;
use crate::plan::size::{self, Asked, Capacity, Largest, Size};
use crate::plan::vm::{NicPlan, VmPlan, VsockPlan};
use crate::pod::guest::Guest;
use crate::pod::network::{self, PodNetwork};
use crate::pod::preflight::{self, Checked};
use crate::pod::record::Record;
use crate::pod::share::Share;
use crate::pod::step::{Step, reached};
use crate::pod::undo::Undo;
use crate::pod::{Machine, Pod, forward, place, supervise, tasks};
use crate::qemu::launch::{Vm, Wires};
use crate::qemu::vsock_device;

/// What stands before anything is started: what may boot, in which size, and the pod's cgroup.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) config: Config,
    machine: Capacity,
    size: Size,
    checked: Option<Checked>,
    /// Those that the spec names.
    cpus: CpuList,
    /// Made: every process of the pod is started in it.
    pub(crate) leaf: PathBuf,
}

/// Reads the configuration and checks what the VM is to boot, before anything is made for it, and makes the pod's cgroup.
pub(crate) async fn prepare(pod: &Pod, config_path: Option<&Path>, spec: &PodSpec) -> Result<Ground> {
    let config = config_files::load(config_path)?;
    let config = annotations::apply(config, |key| spec.annotation(key))?;
    pod.parts.level.set(config.log);
    reached(Step::ConfigRead)?;
    let machine = blocking("machine's size", || Ok(capacity::read())).await?;
    let size = size_of(pod, &config, spec.asked, machine)?;
    let checked = check_boot(pod, &config, size).await?;
    let leaf = cgroup::leaf_path(spec.cgroups_path.as_deref(), &pod.parts.key)?;
    place::make(pod, &leaf).await?;
    reached(Step::CgroupMade)?;
    if config.shim_in_pod_cgroup {
        move_shim(pod, &leaf).await?;
    }
    Ok(Ground { config, machine, size, checked, cpus: spec.cpus, leaf })
}

/// Moves the shim into a leaf of its own beside the pod's. A node that does not let it gets a warning.
async fn move_shim(pod: &Pod, pods_leaf: &Path) -> Result<()> {
    let leaf = shim_cgroup::leaf_path(pods_leaf);
    pod.journal.owe(&Undo::Cgroup { path: leaf.clone() })?;
    match blocking("move the shim", move || shim_cgroup::enter(&leaf)).await {
        Ok(home) => *pod.home.lock().unwrap_or_else(PoisonError::into_inner) = Some(home),
        Err(e) => warn!(pod.log(), "{}: the shim is not accounted to its pod", e),
    }
    reached(Step::ShimMoved)
}

/// Launches the VM and brings its agent, its network and the sandbox up.
pub(crate) async fn launch(pod: &Pod, ground: &Ground, spec: &PodSpec) -> Result<Guest> {
    let size = ground.size;
    let mut devnos = DevNos::default();
    let mut fds = FdTable::default();
    let wires = Wires::new(&mut fds)?;
    let (vsock, transport, vsock_device) = open_vsock(pod, ground, &mut fds, &mut devnos).await?;
    let network = match &spec.network_namespace {
        Some(netns) => network::prepare(pod, netns).await.context("pod network")?,
        None => PodNetwork::default(),
    };
    let mut nics = Vec::new();
    for (interface, tap) in network.plan.interfaces.iter().zip(network.taps) {
        nics.push(NicPlan { tap: fds.give(tap), mac: interface.mac, devno: devnos.take()? });
    }
    let plan = VmPlan {
        sandbox: pod.parts.sandbox.clone(),
        accelerator: ground.config.qemu.accelerator,
        boot: ground.config.boot.clone(),
        memory_mib: size.memory_mib,
        vcpus: size.vcpus,
        qmp: wires.qmp_fd,
        console: wires.console_fd,
        vsock,
        nics,
        disks: Vec::new(),
    };
    let began = Instant::now();
    let share = Share::of(spec, size, ground.machine);
    let vm = start_vm(pod, ground, (&plan, fds, wires), share).await?;
    let agent = Agent::connect(transport, ground.config.agent.clone(), vm.gone()).await;
    let agent = agent.map_err(|e| with_console(e, &vm))?;
    reached(Step::AgentReady)?;
    debug!(pod.log(), "agent answers"; "step" => "agent_ready");
    network::send(&agent, &network.plan, &plan.nics).await.context("pod network")?;
    reached(Step::NetworkSent)?;
    let hostname = hostname(pod, spec);
    let dns = dns_lines(&spec.resolver)?;
    agent.create_sandbox(&pod.parts.sandbox, &hostname, dns, &[storage::shm()]).await?;
    reached(Step::SandboxMade)?;
    let details = agent.guest_details().await?;
    if ground.config.seccomp && !details.seccomp {
        warn!(
            pod.log(),
            "guest.seccomp: the guest's agent cannot apply seccomp profiles: containers run without"
        );
    }
    if let Some(netns) = &spec.network_namespace {
        forward::begin(pod, netns.clone(), &network.plan, vm.gone());
    }
    info!(pod.log(), "sandbox is up"; "agent" => details.version, "qemu" => vm.pid());
    Ok(Guest {
        config: ground.config.clone(),
        size,
        began,
        leaf: ground.leaf.clone(),
        vm,
        agent,
        vsock_device,
        seccomp: ground.config.seccomp && details.seccomp,
        cpus: Mutex::new(ground.cpus),
        devnos: Mutex::new(devnos),
        layers: tokio::sync::Mutex::default(),
        spoiled: Mutex::default(),
    })
}

/// The guest is the pod's from now on, and watched over.
pub(crate) fn adopt(pod: &Arc<Pod>, guest: Guest) -> Arc<Guest> {
    let guest = Arc::new(guest);
    pod.lock().vm = Machine::Up(Arc::clone(&guest));
    drop(tasks::spawn(supervise::watch(Arc::clone(pod), Arc::clone(&guest))));
    guest
}

/// The pod's own, or its id.
pub(crate) fn hostname(pod: &Pod, spec: &PodSpec) -> String {
    let own_name = || pod.parts.sandbox.as_str().chars().take(64).collect();
    spec.hostname.clone().unwrap_or_else(own_name)
}

/// The guest's own resolver gets what the pod's has.
pub(crate) fn dns_lines(resolver: &Resolver) -> Result<Vec<String>> {
    match resolver {
        Resolver::None => Ok(Vec::new()),
        Resolver::Lines(lines) => Ok(lines.clone()),
        Resolver::File(path) => {
            let read = files::read_bounded(path, limits::RESOLV_CONF_BYTES);
            let bytes = read.context("resolv.conf of the pod")?;
            Ok(String::from_utf8_lossy(&bytes).split('\n').map(str::to_owned).collect())
        }
    }
}

async fn start_vm(
    pod: &Pod,
    ground: &Ground,
    (plan, fds, wires): (&VmPlan, FdTable, Wires),
    share: Share,
) -> Result<Arc<Vm>> {
    let (vm, streams) =
        Vm::spawn(ground.config.qemu.path.clone(), plan, fds, (&ground.leaf, ground.cpus), wires)?;
    share.give(pod, &vm);
    drop(tasks::spawn(Arc::clone(&vm).watch(streams)));
    drop(tasks::spawn(supervise::tell_end(pod.log().clone(), pod.parts.dir.clone(), Arc::clone(&vm))));
    debug!(pod.log(), "QEMU started"; "step" => "qemu_spawned", "qemu" => vm.pid());
    reached(Step::QemuSpawned)?;
    vm.ready().await?;
    reached(Step::QmpReady)?;
    ground.checked.as_ref().map_or(Ok(()), Checked::still_there)?;
    vm.run().await?;
    reached(Step::GuestRunning)?;
    Ok(vm)
}

/// The vsock device as the configuration wants it, and how the agent is reached through it.
async fn open_vsock(
    pod: &Pod,
    ground: &Ground,
    fds: &mut FdTable,
    devnos: &mut DevNos,
) -> Result<(VsockPlan, Transport, Option<Arc<Child>>)> {
    match &ground.config.vsock {
        VsockConfig::Vhost => {
            let (device, cid) = vsock::claim()?;
            let plan = VsockPlan::Vhost { fd: fds.give(device.into()), cid, devno: devnos.take()? };
            Ok((plan, Transport::Vsock { cid }, None))
        }
        VsockConfig::VhostUser { program } => {
            let dir = &pod.parts.dir;
            for name in [vsock_device::DEVICE_SOCKET, vsock_device::AGENT_SOCKET] {
                pod.journal.owe(&Undo::Path { name: name.to_owned() })?;
            }
            let child =
                vsock_device::start(program.clone(), dir, (cgroup::enter(&ground.leaf)?, ground.cpus))
                    .await?;
            let child = tasks::reaped(child);
            reached(Step::HelperSpawned)?;
            let plan = VsockPlan::VhostUser { socket: dir.join(vsock_device::DEVICE_SOCKET) };
            Ok((plan, Transport::Hybrid { socket: dir.join(vsock_device::AGENT_SOCKET) }, Some(child)))
        }
    }
}

/// The VM's size: the configured base and what the pod's containers may use.
fn size_of(pod: &Pod, config: &Config, asked: Asked, machine: Capacity) -> Result<Size> {
    let base = Size { memory_mib: config.memory_mib, vcpus: config.vcpus };
    let largest = Largest { memory_mib: config.max_memory_mib, vcpus: config.max_vcpus, machine };
    let size = size::size(base, asked, &largest)?;
    info!(pod.log(), "size of the VM"; "memory_mib" => size.memory_mib, "vcpus" => size.vcpus);
    Ok(size)
}

/// What the VM boots is there and may run; for a sealed image all of preflight. Written down in the
/// sandbox record.
async fn check_boot(pod: &Pod, config: &Config, size: Size) -> Result<Option<Checked>> {
    let checked = match &config.boot {
        Boot::Sealed { image } => Some(preflight::check(pod, config, image, size).await?),
        Boot::Plain { kernel, initrd, .. } => {
            check_file("guest.kernel", kernel)?;
            check_file("guest.initrd", initrd)?;
            None
        }
    };
    let image = checked.as_ref().map(|checked| checked.record.clone());
    Record::new(pod.parts.sandbox.as_str(), image).write(&pod.parts.dir)?;
    Ok(checked)
}

/// QEMU would say less clearly what is missing.
fn check_file(key: &str, path: &Path) -> Result<()> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(()),
        Err(e) => {
            Err(Error::precondition(format!("{key} = {}: {e}: check the configuration", path.display())))
        }
    }
}

/// A guest that does not answer has often said why on its console.
fn with_console(e: Error, vm: &Vm) -> Error {
    let lines = vm.console_tail();
    if e.code() != crate::error::Code::DeadlineExceeded || lines.is_empty() {
        return e;
    }
    Error::new(e.code(), format!("{e}; console: {}", lines.join(" | ")))
}
