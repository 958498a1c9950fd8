//! From a prepared pod to a guest whose agent answers: the sequence of a VM's start.
//!
//! Everything is recorded in the journal before it is made; the caller cleans up after an error.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use slog::{debug, info, warn};

use crate::agent::calls::GuestDetails;
use crate::agent::client::Agent;
use crate::ccw::DevNos;
use crate::config::Boot;
use crate::error::{Code, Context, Error, Result};
use crate::failpoint::{Step, hit};
use crate::host::confine::User;
use crate::host::process::FdTable;
use crate::host::tasks;
use crate::mutex;
use crate::oci::pod_spec::PodSpec;
use crate::oci::storage;
use crate::plan::agent_version::AgentVersion;
use crate::plan::vm::{NicPlan, VmPlan};
use crate::pod::disks::VolumeDisks;
use crate::pod::guest::{Guest, Refused};
use crate::pod::network::{self, PodNetwork};
use crate::pod::preflight::CheckedImage;
use crate::pod::prepare::LaunchContext;
use crate::pod::scheduling::Scheduling;
use crate::pod::taps::Taps;
use crate::pod::{Pod, boot_disks, etc_files, port_forward, supervise, vsock};
use crate::qemu::vm::{ControlSockets, Vm, VmLaunch};

/// Launches the VM and brings its agent, its network and the sandbox up.
pub(crate) async fn launch(pod: &Pod, context: &LaunchContext, spec: &PodSpec) -> Result<Guest> {
    let booting = Booting::default();
    let launched = bring_up(pod, context, spec, &booting).await;
    mutex::lock(&booting.0).take();
    launched
}

async fn bring_up(pod: &Pod, context: &LaunchContext, spec: &PodSpec, booting: &Booting) -> Result<Guest> {
    let mut devnos = DevNos::default();
    let mut fds = FdTable::default();
    let sockets = ControlSockets::new(&mut fds)?;
    let vsock = vsock::open(pod, context, &mut fds, &mut devnos).await?;
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
        boot: by_descriptor(&context.config.boot, context.user, &mut fds)?,
        memory_mib: context.size.memory_mib,
        vcpus: context.size.vcpus,
        qmp: sockets.qmp_fd,
        console: sockets.console_fd,
        vsock: vsock.plan,
        nics,
        scsi: devnos.take()?,
        disks: boot_disks::open(context, &mut fds, &mut devnos)?,
    };
    let began = Instant::now();
    let scheduling = Scheduling::of(spec, context.size, context.capacity);
    let vm = start_vm(pod, context, &plan, fds, sockets, scheduling, booting).await?;
    let agent = Agent::connect(vsock.transport, context.config.agent.clone(), vm.gone()).await;
    let agent = agent.map_err(|e| with_console(e, &vm))?;
    vm.has_booted();
    hit(Step::AgentReady)?;
    debug!(pod.log(), "agent answers"; "step" => "agent_ready");
    vm.check_protection().await?;
    agent.log_denials(pod.log().clone());
    set_policy(pod, context, &agent).await?;
    network::send(&agent, &network.plan, &plan.nics).await.context("pod network")?;
    hit(Step::NetworkSent)?;
    let details = make_sandbox(pod, context, spec, &agent).await?;
    if let Some(netns) = &spec.network_namespace {
        port_forward::start(pod, netns.clone(), &network.plan, vm.gone());
    }
    info!(pod.log(), "sandbox is up"; "agent" => &details.version, "qemu" => vm.pid());
    Ok(Guest {
        config: context.config.clone(),
        size: context.size,
        began,
        leaf: context.leaf.clone(),
        vm,
        agent,
        agent_version: AgentVersion::new(&details.version),
        taps: Taps::of(&pod.parts.key, spec.network_namespace.as_deref(), network.plan.interfaces.len()),
        user: context.user,
        vsock_device: vsock.program,
        seccomp: context.config.seccomp && details.seccomp,
        cpus: Mutex::new(context.cpus),
        devnos: Mutex::new(devnos),
        empty_dirs: context.empty_dirs.clone(),
        disks: VolumeDisks::default(),
        images: Mutex::default(),
        mounts: AtomicU32::new(0),
        unusable: Mutex::default(),
        refused: Refused::default(),
        condemned: AtomicBool::new(false),
    })
}

/// The sandbox in the guest, and what its agent says of itself.
async fn make_sandbox(
    pod: &Pod,
    context: &LaunchContext,
    spec: &PodSpec,
    agent: &Agent,
) -> Result<GuestDetails> {
    let hostname = etc_files::hostname(&pod.parts.sandbox, spec);
    let dns = etc_files::resolver_lines(&spec.resolver)?;
    let id = spec.id_in_guest(&pod.parts.sandbox);
    agent.create_sandbox(&id, &hostname, dns, &[storage::shm()]).await?;
    hit(Step::SandboxMade)?;
    guest_details(pod, context, agent).await
}

/// Before any other call, as it is to hold for all of them. A pod whose policy is not in force does not run.
async fn set_policy(pod: &Pod, context: &LaunchContext, agent: &Agent) -> Result<()> {
    let Some((policy, whence)) = &context.policy else { return Ok(()) };
    if context.initdata.as_ref().is_some_and(|initdata| initdata.has_policy) {
        info!(pod.log(), "the policy of {} is not sent: the guest has that of the pod's initdata", whence);
        return Ok(());
    }
    agent.set_policy(policy.text()).await.map_err(|e| {
        e.context(format!("the guest does not take the policy of {whence}, and the pod would run without it"))
    })?;
    info!(pod.log(), "the guest has taken the policy of {}", whence);
    Ok(())
}

/// What is known of the agent: its version alone, if the guest's policy keeps the rest.
async fn guest_details(pod: &Pod, context: &LaunchContext, agent: &Agent) -> Result<GuestDetails> {
    let details = match agent.guest_details().await {
        Err(e) if e.code() == Code::PermissionDenied => {
            GuestDetails { version: agent.version().await?, ..GuestDetails::default() }
        }
        details => details?,
    };
    if context.config.seccomp && !details.seccomp {
        warn!(
            pod.log(),
            "guest.seccomp: the guest's agent cannot apply seccomp profiles: containers run without"
        );
    }
    Ok(details)
}

/// What QEMU boots as QEMU finds it: opened by us, so that its user needs no way to it. It opens the file once more,
/// which the file's mode has to allow.
fn by_descriptor(boot: &Boot, user: Option<User>, fds: &mut FdTable) -> Result<Boot> {
    let mut given = |key: &str, path: &Path| {
        let context = || format!("{key} = {}", path.display());
        let file = File::open(path).with_context(context)?;
        let meta = file.metadata().with_context(context)?;
        match user {
            Some(user) if !user.may(&meta, 4) => Err(Error::precondition(format!(
                "{}: uid {} (qemu.user) cannot read the file: chmod a+r",
                context(),
                user.uid
            ))),
            _ => Ok(fds.give(file.into()).path()),
        }
    };
    Ok(match boot {
        Boot::Sealed { image } => Boot::Sealed { image: given("guest.image", image)? },
        Boot::Plain { kernel, initrd, parameters } => Boot::Plain {
            kernel: given("guest.kernel", kernel)?,
            initrd: given("guest.initrd", initrd)?,
            parameters: parameters.clone(),
        },
    })
}

async fn start_vm(
    pod: &Pod,
    context: &LaunchContext,
    plan: &VmPlan,
    fds: FdTable,
    sockets: ControlSockets,
    scheduling: Scheduling,
    booting: &Booting,
) -> Result<Arc<Vm>> {
    let program = context.config.qemu.path.clone();
    let (leaf, cpus) = (context.leaf.as_path(), context.cpus);
    let user = context.user;
    let (vm, streams) = VmLaunch { program, plan, fds, sockets, leaf, cpus, user }.spawn()?;
    scheduling.apply(pod, &vm);
    *mutex::lock(&booting.0) = Some(Arc::clone(&vm));
    tasks::detach(Arc::clone(&vm).watch(streams));
    tasks::detach(supervise::record_end(pod.log().clone(), pod.parts.dir.clone(), Arc::clone(&vm)));
    debug!(pod.log(), "QEMU started"; "step" => "qemu_spawned", "qemu" => vm.pid());
    hit(Step::QemuSpawned)?;
    vm.ready().await?;
    hit(Step::QmpReady)?;
    context.image.as_ref().map_or(Ok(()), CheckedImage::is_unchanged)?;
    vm.run().await?;
    hit(Step::GuestRunning)?;
    Ok(vm)
}

/// A VM while its start may be given up: it is killed then by the cleanup, which is no news.
#[derive(Default)]
struct Booting(Mutex<Option<Arc<Vm>>>);

impl Drop for Booting {
    fn drop(&mut self) {
        if let Some(vm) = mutex::lock(&self.0).take() {
            vm.expect_end();
        }
    }
}

/// A guest that does not answer has often said why on its console.
fn with_console(e: Error, vm: &Vm) -> Error {
    let lines = vm.console_tail();
    if e.code() != Code::DeadlineExceeded || lines.is_empty() {
        return e;
    }
    Error::new(e.code(), format!("{e}; console: {}", lines.join(" | ")))
}

/// The guest is the pod's from now on, and supervised.
pub(crate) fn publish_guest(pod: &Arc<Pod>, guest: Guest) -> Result<Arc<Guest>> {
    let guest = Arc::new(guest);
    pod.lock().vm.publish(Arc::clone(&guest))?;
    tasks::detach(supervise::watch(Arc::clone(pod), Arc::clone(&guest)));
    Ok(guest)
}
