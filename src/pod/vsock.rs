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
use crate::pod::Pod;
use crate::pod::journal::Cleanup;
use crate::pod::prepare::LaunchContext;
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
            let dir = &pod.parts.dir;
            for name in [vsock_device::DEVICE_SOCKET, vsock_device::AGENT_SOCKET] {
                pod.journal.record(&Cleanup::Path { name: name.to_owned() })?;
            }
            let child = vsock_device::start(program.clone(), dir, &context.leaf, context.cpus).await?;
            let child = tasks::reaped(child);
            hit(Step::HelperSpawned)?;
            let plan = VsockPlan::VhostUser { socket: dir.join(vsock_device::DEVICE_SOCKET) };
            let transport = Transport::Hybrid { socket: dir.join(vsock_device::AGENT_SOCKET) };
            Ok(Vsock { plan, transport, program: Some(child) })
        }
    }
}
