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
            for name in [dir::VSOCK_DEVICE, dir::VSOCK_AGENT] {
                pod.journal.record(&Cleanup::Path { name: name.to_owned() })?;
            }
            let (device, agent) =
                (pod.parts.dir.join(dir::VSOCK_DEVICE), pod.parts.dir.join(dir::VSOCK_AGENT));
            let child =
                vsock_device::start(program.clone(), &device, &agent, &context.leaf, context.cpus).await?;
            let child = tasks::reaped(child);
            hit(Step::HelperSpawned)?;
            let plan = VsockPlan::VhostUser { socket: device };
            let transport = Transport::Hybrid { socket: agent };
            Ok(Vsock { plan, transport, program: Some(child) })
        }
    }
}
