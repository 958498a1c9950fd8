//! The guest's vsock device as the configuration wants it, and how the agent is reached through it.

use std::sync::Arc;

use crate::agent::transport::Transport;
use crate::ccw::DevNos;
use crate::config::VsockConfig;
use crate::error::Result;
use crate::failpoint::{Step, hit};
use crate::host::process::{Child, FdTable};
use crate::host::{tasks, vsock};
use crate::plan::vm::VsockPlan;
use crate::pod::journal::Cleanup;
use crate::pod::prepare::LaunchContext;
use crate::pod::{Pod, dir};
use crate::qemu::vsock_device;

/// An opened device.
#[derive(Debug)]
pub(crate) struct Vsock {
    pub(crate) plan: VsockPlan,
    pub(crate) transport: Transport,
    /// The program that plays it, on hosts without a vhost driver.
    pub(crate) program: Option<Arc<Child>>,
}

/// Opens the host's device, or starts the program that plays one.
pub(crate) async fn open(
    pod: &Pod,
    context: &LaunchContext,
    fds: &mut FdTable,
    devnos: &mut DevNos,
) -> Result<Vsock> {
    match &context.config.vsock {
        VsockConfig::Vhost => {
            let (device, cid) = vsock::claim()?;
            let plan = VsockPlan::Vhost { fd: fds.give(device.into()), cid, devno: devnos.take()? };
            Ok(Vsock { plan, transport: Transport::Vsock { cid }, program: None })
        }
        VsockConfig::VhostUser { program } => {
            pod.journal.record(&Cleanup::Path { name: dir::VSOCK.to_owned() })?;
            let folder = pod.parts.dir.join(dir::VSOCK);
            vsock_device::make_folder(&folder, context.user)?;
            let (program, leaf) = (program.clone(), &context.leaf);
            let child = vsock_device::start(program, &folder, leaf, context.cpus, context.user).await?;
            let child = tasks::reaped(child);
            hit(Step::HelperSpawned)?;
            let device = vsock_device::give_folder(&folder, fds)?.join(vsock_device::DEVICE);
            let plan = VsockPlan::VhostUser { socket: device };
            let transport = Transport::Hybrid { socket: folder.join(vsock_device::AGENT) };
            Ok(Vsock { plan, transport, program: Some(child) })
        }
    }
}
