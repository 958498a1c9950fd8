//! From nothing to a guest whose agent answers: the sequence of a pod's start.
//!
//! Everything is owed in the journal before it is made; whoever calls pays back on an error.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use slog::{debug, info, warn};

use crate::agent::client::Agent;
use crate::agent::transport::Transport;
use crate::ccw::DevNos;
use crate::config::{Boot, Config, VsockConfig, annotations};
use crate::error::{Context, Error, Result};
use crate::failpoint::{Step, hit};
use crate::host::config;
use crate::host::process::{Child, FdTable, blocking};
use crate::host::tasks;
use crate::host::vsock;
use crate::host::{capacity, cgroup, files, shim_cgroup};
use crate::limits;
use crate::oci::pod_spec::{PodSpec, Resolver};
use crate::oci::storage;
use crate::plan::cpus::CpuList;
use crate::plan::size::{self, Capacity, Requested, Size, VmMaximum};
use crate::plan::vm::{NicPlan, VmPlan, VsockPlan};
use crate::pod::cgroup as pod_cgroup;
use crate::pod::cleanup::Cleanup;
use crate::pod::guest::Guest;
use crate::pod::network::{self, PodNetwork};
use crate::pod::port_forward;
use crate::pod::preflight::{self, Checked};
use crate::pod::record::Record;
use crate::pod::scheduling::Scheduling;
use crate::pod::{Pod, supervise};
use crate::qemu::vm::{ControlSockets, Vm};
use crate::qemu::vsock_device;

/// What stands before anything is started: what may boot, in which size, and the pod's cgroup.
#[derive(Debug)]
pub(crate) struct LaunchContext {
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
pub(crate) async fn prepare(pod: &Pod, config_path: Option<&Path>, spec: &PodSpec) -> Result<LaunchContext> {
    let config = config::load(config_path)?;
    let config = annotations::apply(config, |key| spec.annotation(key))?;
    pod.parts.level.set(config.log);
    hit(Step::ConfigRead)?;
    let machine = blocking("machine's size", || Ok(capacity::read())).await?;
    let size = size_of(pod, &config, spec.requested, machine)?;
    let checked = check_boot(pod, &config, size).await?;
    let leaf = cgroup::leaf_path(spec.cgroups_path.as_deref(), &pod.parts.key)?;
    pod_cgroup::make(pod, &leaf).await?;
    hit(Step::CgroupMade)?;
    if config.shim_in_pod_cgroup {
        move_shim(pod, &leaf).await?;
    }
    Ok(LaunchContext { config, machine, size, checked, cpus: spec.cpus, leaf })
}

/// Moves the shim into a leaf of its own beside the pod's. A node that does not let it gets a warning.
async fn move_shim(pod: &Pod, pods_leaf: &Path) -> Result<()> {
    let leaf = shim_cgroup::leaf_path(pods_leaf);
    pod.journal.record(&Cleanup::Cgroup { path: leaf.clone() })?;
    match blocking("move the shim", move || shim_cgroup::enter(&leaf)).await {
        Ok(original_cgroup) => {
            *pod.original_cgroup.lock().unwrap_or_else(PoisonError::into_inner) = Some(original_cgroup)
        }
        Err(e) => warn!(pod.log(), "{}: the shim is not accounted to its pod", e),
    }
    hit(Step::ShimMoved)
}

/// Launches the VM and brings its agent, its network and the sandbox up.
pub(crate) async fn launch(pod: &Pod, context: &LaunchContext, spec: &PodSpec) -> Result<Guest> {
    let size = context.size;
    let mut devnos = DevNos::default();
    let mut fds = FdTable::default();
    let sockets = ControlSockets::new(&mut fds)?;
    let (vsock, transport, vsock_device) = open_vsock(pod, context, &mut fds, &mut devnos).await?;
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
        accelerator: context.config.qemu.accelerator,
        boot: context.config.boot.clone(),
        memory_mib: size.memory_mib,
        vcpus: size.vcpus,
        qmp: sockets.qmp_fd,
        console: sockets.console_fd,
        vsock,
        nics,
        disks: Vec::new(),
    };
    let began = Instant::now();
    let scheduling = Scheduling::of(spec, size, context.machine);
    let vm = start_vm(pod, context, (&plan, fds, sockets), scheduling).await?;
    let agent = Agent::connect(transport, context.config.agent.clone(), vm.gone()).await;
    let agent = agent.map_err(|e| with_console(e, &vm))?;
    hit(Step::AgentReady)?;
    debug!(pod.log(), "agent answers"; "step" => "agent_ready");
    network::send(&agent, &network.plan, &plan.nics).await.context("pod network")?;
    hit(Step::NetworkSent)?;
    let hostname = hostname(pod, spec);
    let dns = dns_lines(&spec.resolver)?;
    agent.create_sandbox(&pod.parts.sandbox, &hostname, dns, &[storage::shm()]).await?;
    hit(Step::SandboxMade)?;
    let details = agent.guest_details().await?;
    if context.config.seccomp && !details.seccomp {
        warn!(
            pod.log(),
            "guest.seccomp: the guest's agent cannot apply seccomp profiles: containers run without"
        );
    }
    if let Some(netns) = &spec.network_namespace {
        port_forward::start(pod, netns.clone(), &network.plan, vm.gone());
    }
    info!(pod.log(), "sandbox is up"; "agent" => details.version, "qemu" => vm.pid());
    Ok(Guest {
        config: context.config.clone(),
        size,
        began,
        leaf: context.leaf.clone(),
        vm,
        agent,
        vsock_device,
        seccomp: context.config.seccomp && details.seccomp,
        cpus: Mutex::new(context.cpus),
        devnos: Mutex::new(devnos),
        layers: tokio::sync::Mutex::default(),
        unusable: Mutex::default(),
    })
}

/// The guest is the pod's from now on, and supervised.
pub(crate) fn publish_guest(pod: &Arc<Pod>, guest: Guest) -> Result<Arc<Guest>> {
    let guest = Arc::new(guest);
    pod.lock().vm.publish(Arc::clone(&guest))?;
    drop(tasks::spawn(supervise::watch(Arc::clone(pod), Arc::clone(&guest))));
    Ok(guest)
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
    context: &LaunchContext,
    (plan, fds, sockets): (&VmPlan, FdTable, ControlSockets),
    scheduling: Scheduling,
) -> Result<Arc<Vm>> {
    let (vm, streams) =
        Vm::spawn(context.config.qemu.path.clone(), plan, fds, (&context.leaf, context.cpus), sockets)?;
    scheduling.apply(pod, &vm);
    drop(tasks::spawn(Arc::clone(&vm).watch(streams)));
    drop(tasks::spawn(supervise::tell_end(pod.log().clone(), pod.parts.dir.clone(), Arc::clone(&vm))));
    debug!(pod.log(), "QEMU started"; "step" => "qemu_spawned", "qemu" => vm.pid());
    hit(Step::QemuSpawned)?;
    vm.ready().await?;
    hit(Step::QmpReady)?;
    context.checked.as_ref().map_or(Ok(()), Checked::still_there)?;
    vm.run().await?;
    hit(Step::GuestRunning)?;
    Ok(vm)
}

/// The vsock device as the configuration wants it, and how the agent is reached through it.
async fn open_vsock(
    pod: &Pod,
    context: &LaunchContext,
    fds: &mut FdTable,
    devnos: &mut DevNos,
) -> Result<(VsockPlan, Transport, Option<Arc<Child>>)> {
    match &context.config.vsock {
        VsockConfig::Vhost => {
            let (device, cid) = vsock::claim()?;
            let plan = VsockPlan::Vhost { fd: fds.give(device.into()), cid, devno: devnos.take()? };
            Ok((plan, Transport::Vsock { cid }, None))
        }
        VsockConfig::VhostUser { program } => {
            let dir = &pod.parts.dir;
            for name in [vsock_device::DEVICE_SOCKET, vsock_device::AGENT_SOCKET] {
                pod.journal.record(&Cleanup::Path { name: name.to_owned() })?;
            }
            let child =
                vsock_device::start(program.clone(), dir, (cgroup::enter(&context.leaf)?, context.cpus))
                    .await?;
            let child = tasks::reaped(child);
            hit(Step::HelperSpawned)?;
            let plan = VsockPlan::VhostUser { socket: dir.join(vsock_device::DEVICE_SOCKET) };
            Ok((plan, Transport::Hybrid { socket: dir.join(vsock_device::AGENT_SOCKET) }, Some(child)))
        }
    }
}

/// The VM's size: the configured base and what the pod's containers may use.
fn size_of(pod: &Pod, config: &Config, requested: Requested, machine: Capacity) -> Result<Size> {
    let base = Size { memory_mib: config.memory_mib, vcpus: config.vcpus };
    let maximum = VmMaximum { memory_mib: config.max_memory_mib, vcpus: config.max_vcpus, machine };
    let size = size::size(base, requested, &maximum)?;
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
