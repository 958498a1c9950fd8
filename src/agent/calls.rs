//! One thin function per call of the agent.

use std::time::Duration;

use crate::agent::client::{Agent, detail};
use crate::agent::convert;
use crate::agent::messages::agent as pb;
use crate::agent::messages::agent_ttrpc::AgentServiceClient;
use crate::agent::methods::Method;
use crate::agent::stats;
use crate::ccw::DevNo;
use crate::error::{Code, Context, Error, Result, first_bytes};
use crate::ids::{ContainerId, ProcessId};
use crate::limits;
use crate::oci::device::GuestDevice;
use crate::oci::guest_spec::{GuestProcess, GuestSpec};
use crate::oci::resources::GuestResources;
use crate::oci::storage::Storage;
use crate::plan::network::{InterfacePlan, NeighbourPlan, RoutePlan};
use crate::plan::stats::Stats;

/// What the agent reports about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestDetails {
    pub version: String,
    pub storage_drivers: Vec<String>,
    /// Whether it can apply seccomp profiles.
    pub seccomp: bool,
}

/// The two output streams of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

/// One file, folder or link to make in the guest, or a piece of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilePiece {
    pub path: String,
    /// Type and permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of the whole file, which is complete in the guest when it has them all.
    pub size: u64,
    pub offset: u64,
    /// The bytes of a file from `offset` on, or the target of a link.
    pub data: Vec<u8>,
}

impl Agent {
    /// Gives the agent its policy, by which every other call is then checked, this one too if it has one already.
    pub(crate) async fn set_policy(&self, policy: &str) -> Result<()> {
        let req = pb::SetPolicyRequest { policy: policy.to_owned(), ..Default::default() };
        self.call(Method::SetPolicy, AgentServiceClient::set_policy, &req).await?;
        Ok(())
    }

    pub async fn update_interface(&self, interface: &InterfacePlan, devno: DevNo) -> Result<()> {
        let req = convert::interface(interface, devno);
        self.call(Method::UpdateInterface, AgentServiceClient::update_interface, &req).await?;
        Ok(())
    }

    pub async fn update_routes(&self, routes: &[RoutePlan]) -> Result<()> {
        let req = convert::routes(routes);
        self.call(Method::UpdateRoutes, AgentServiceClient::update_routes, &req).await?;
        Ok(())
    }

    pub async fn add_neighbours(&self, neighbours: &[NeighbourPlan]) -> Result<()> {
        let req = convert::neighbours(neighbours);
        self.call(Method::AddARPNeighbors, AgentServiceClient::add_arp_neighbors, &req).await?;
        Ok(())
    }

    /// `dns`: lines of the pod's resolv.conf.
    pub async fn create_sandbox(
        &self,
        id: &str,
        hostname: &str,
        dns: Vec<String>,
        storages: &[Storage],
    ) -> Result<()> {
        let req = pb::CreateSandboxRequest {
            hostname: hostname.to_owned(),
            dns,
            storages: storages.iter().map(convert::storage).collect(),
            sandbox_id: id.to_owned(),
            ..Default::default()
        };
        self.call(Method::CreateSandbox, AgentServiceClient::create_sandbox, &req).await?;
        Ok(())
    }

    pub async fn guest_details(&self) -> Result<GuestDetails> {
        let req =
            pb::GuestDetailsRequest { mem_block_size: true, mem_hotplug_probe: true, ..Default::default() };
        let mut answer =
            self.call(Method::GetGuestDetails, AgentServiceClient::get_guest_details, &req).await?;
        let details = answer.agent_details.take().unwrap_or_default();
        Ok(GuestDetails {
            version: detail(&details.version),
            seccomp: details.supports_seccomp,
            storage_drivers: details
                .storage_handlers
                .into_iter()
                .take(limits::agent::GUEST_DETAILS)
                .map(|driver| detail(&driver))
                .collect(),
        })
    }

    /// Never repeated: a second call with the same id makes the agent forget the first container. `pulls`: the guest
    /// pulls the container's image in it, which has its own limit.
    pub async fn create_container(
        &self,
        id: &ContainerId,
        storages: &[Storage],
        devices: &[GuestDevice],
        spec: &GuestSpec,
        shared_pid_namespace: bool,
        pulls: bool,
    ) -> Result<()> {
        let req = pb::CreateContainerRequest {
            container_id: id.as_str().to_owned(),
            exec_id: id.as_str().to_owned(),
            storages: storages.iter().map(convert::storage).collect(),
            devices: devices.iter().map(convert::guest_device).collect(),
            OCI: Some(convert::spec(spec)).into(),
            sandbox_pidns: shared_pid_namespace,
            ..Default::default()
        };
        let method = if pulls { Method::CreateContainerAndPull } else { Method::CreateContainer };
        self.call(method, AgentServiceClient::create_container, &req).await?;
        Ok(())
    }

    pub async fn start_container(&self, id: &ContainerId) -> Result<()> {
        let req = pb::StartContainerRequest { container_id: id.as_str().to_owned(), ..Default::default() };
        self.call(Method::StartContainer, AgentServiceClient::start_container, &req).await?;
        Ok(())
    }

    pub async fn exec_process(&self, id: &ProcessId, process: &GuestProcess) -> Result<()> {
        let req = pb::ExecProcessRequest {
            container_id: id.container.as_str().to_owned(),
            exec_id: id.agent_exec_id().to_owned(),
            process: Some(convert::process(process)).into(),
            ..Default::default()
        };
        self.call(Method::ExecProcess, AgentServiceClient::exec_process, &req).await?;
        Ok(())
    }

    /// `whole_container`: with SIGKILL every process of the container, else its init process.
    pub async fn signal_process(&self, id: &ProcessId, signal: u32, whole_container: bool) -> Result<()> {
        let exec_id = if whole_container { "" } else { id.agent_exec_id() };
        let req = pb::SignalProcessRequest {
            container_id: id.container.as_str().to_owned(),
            exec_id: exec_id.to_owned(),
            signal,
            ..Default::default()
        };
        self.call(Method::SignalProcess, AgentServiceClient::signal_process, &req).await?;
        Ok(())
    }

    /// Waits for the process' end: exit code, or 128 + signal. Output not read before the answer is lost.
    pub async fn wait_process(&self, id: &ProcessId) -> Result<u32> {
        self.wait(Method::WaitProcess, id).await
    }

    /// The same with a short limit; None: the process is still running.
    pub async fn wait_process_shortly(&self, id: &ProcessId) -> Result<Option<u32>> {
        match self.wait(Method::WaitProcessShortly, id).await {
            Err(e) if e.code() == Code::DeadlineExceeded => Ok(None),
            answer => answer.map(Some),
        }
    }

    async fn wait(&self, method: Method, id: &ProcessId) -> Result<u32> {
        let req = pb::WaitProcessRequest {
            container_id: id.container.as_str().to_owned(),
            exec_id: id.agent_exec_id().to_owned(),
            ..Default::default()
        };
        let answer = self.call(method, AgentServiceClient::wait_process, &req).await?;
        // The guest is not trusted; an exit status is one byte.
        Ok(u32::try_from(answer.status).ok().filter(|s| *s <= 255).unwrap_or(255))
    }

    /// Waits for output of the process and returns it; empty at the end of the stream.
    pub async fn read_output(&self, id: &ProcessId, stream: OutputStream, len: u32) -> Result<Vec<u8>> {
        let req = pb::ReadStreamRequest {
            container_id: id.container.as_str().to_owned(),
            exec_id: id.agent_exec_id().to_owned(),
            len,
            ..Default::default()
        };
        let answer = match stream {
            OutputStream::Stdout => {
                self.call(Method::ReadStdout, AgentServiceClient::read_stdout, &req).await
            }
            OutputStream::Stderr => {
                self.call(Method::ReadStderr, AgentServiceClient::read_stderr, &req).await
            }
        };
        match answer {
            Ok(answer) if answer.data.len() > usize::try_from(len).unwrap_or(0) => {
                Err(Error::internal(format!(
                    "agent {stream:?}: {} bytes for a read of {len}: the guest violates the protocol",
                    answer.data.len()
                )))
            }
            Ok(answer) => Ok(answer.data),
            // EIO from a closed terminal, or a process already waited for: both are the end of the stream.
            Err(e) if e.code() == Code::NotFound => Ok(Vec::new()),
            Err(e) if e.code() == Code::Internal && e.message().contains("os error 5") => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// Writes all of `data`; returns when the process has taken it.
    pub async fn write_stdin(&self, id: &ProcessId, data: Vec<u8>) -> Result<()> {
        let req = pb::WriteStreamRequest {
            container_id: id.container.as_str().to_owned(),
            exec_id: id.agent_exec_id().to_owned(),
            data,
            ..Default::default()
        };
        self.call(Method::WriteStdin, AgentServiceClient::write_stdin, &req).await?;
        Ok(())
    }

    pub async fn close_stdin(&self, id: &ProcessId) -> Result<()> {
        let req = pb::CloseStdinRequest {
            container_id: id.container.as_str().to_owned(),
            exec_id: id.agent_exec_id().to_owned(),
            ..Default::default()
        };
        self.call(Method::CloseStdin, AgentServiceClient::close_stdin, &req).await?;
        Ok(())
    }

    pub async fn resize_terminal(&self, id: &ProcessId, columns: u32, rows: u32) -> Result<()> {
        let req = pb::TtyWinResizeRequest {
            container_id: id.container.as_str().to_owned(),
            exec_id: id.agent_exec_id().to_owned(),
            row: rows,
            column: columns,
            ..Default::default()
        };
        self.call(Method::TtyWinResize, AgentServiceClient::tty_win_resize, &req).await?;
        Ok(())
    }

    /// Creates a file below the guest's shared directory, or writes the next piece of one.
    pub async fn copy_file(&self, piece: FilePiece) -> Result<()> {
        /// Of missing parent directories, which the guest creates.
        const FOLDER_MODE: u32 = 0o40_750;
        let id = |id: u32| i32::try_from(id).with_context(|| format!("owner {id}"));
        let size = |n: u64| i64::try_from(n).with_context(|| format!("{n} bytes"));
        let req = pb::CopyFileRequest {
            path: piece.path,
            file_size: size(piece.size)?,
            file_mode: piece.mode,
            dir_mode: FOLDER_MODE,
            uid: id(piece.uid)?,
            gid: id(piece.gid)?,
            offset: size(piece.offset)?,
            data: piece.data,
            ..Default::default()
        };
        self.call(Method::CopyFile, AgentServiceClient::copy_file, &req).await?;
        Ok(())
    }

    /// Kills the container's processes and removes it; one that the agent does not know is success.
    pub async fn remove_container(&self, id: &ContainerId, limit: Duration) -> Result<()> {
        let req = pb::RemoveContainerRequest {
            container_id: id.as_str().to_owned(),
            timeout: u32::try_from(limit.as_secs()).unwrap_or(u32::MAX),
            ..Default::default()
        };
        let answer = self.call(Method::RemoveContainer, AgentServiceClient::remove_container, &req).await;
        match answer {
            Err(e) if e.code() == Code::NotFound => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Freezes every process of the container.
    pub async fn pause_container(&self, id: &ContainerId) -> Result<()> {
        let req = pb::PauseContainerRequest { container_id: id.as_str().to_owned(), ..Default::default() };
        self.call(Method::PauseContainer, AgentServiceClient::pause_container, &req).await?;
        Ok(())
    }

    pub async fn resume_container(&self, id: &ContainerId) -> Result<()> {
        let req = pb::ResumeContainerRequest { container_id: id.as_str().to_owned(), ..Default::default() };
        self.call(Method::ResumeContainer, AgentServiceClient::resume_container, &req).await?;
        Ok(())
    }

    /// Replaces the container's limits.
    pub async fn update_container(&self, id: &ContainerId, limits: &GuestResources) -> Result<()> {
        let req = pb::UpdateContainerRequest {
            container_id: id.as_str().to_owned(),
            resources: Some(convert::resources(&limits.0)).into(),
            ..Default::default()
        };
        self.call(Method::UpdateContainer, AgentServiceClient::update_container, &req).await?;
        Ok(())
    }

    /// The container's statistics as the guest reports them.
    pub async fn stats_container(&self, id: &ContainerId) -> Result<Stats> {
        let req = pb::StatsContainerRequest { container_id: id.as_str().to_owned(), ..Default::default() };
        let mut answer = self.call(Method::StatsContainer, AgentServiceClient::stats_container, &req).await?;
        Ok(stats::of(answer.cgroup_stats.take().unwrap_or_default()))
    }

    /// What the container has written as its termination message, at most as much as Kubernetes takes. Agents from 3.29
    /// on have the call, while the container is not removed.
    pub async fn termination_message(&self, id: &ContainerId) -> Result<String> {
        let req = pb::GetDiagnosticDataRequest {
            log_type: "termination_log".to_owned(),
            container_id: id.as_str().to_owned(),
            ..Default::default()
        };
        let answer =
            self.call(Method::GetDiagnosticData, AgentServiceClient::get_diagnostic_data, &req).await?;
        Ok(first_bytes(&answer.data, limits::agent::TERMINATION_MESSAGE_BYTES).to_owned())
    }

    /// Ends the sandbox; an agent that is the guest's first process powers it off.
    pub async fn destroy_sandbox(&self) -> Result<()> {
        let req = pb::DestroySandboxRequest::new();
        self.call(Method::DestroySandbox, AgentServiceClient::destroy_sandbox, &req).await?;
        Ok(())
    }

    /// Waits for the guest's OOM killer and returns the container that it hit. One call at a time.
    pub async fn oom_event(&self) -> Result<ContainerId> {
        let req = pb::GetOOMEventRequest::new();
        let event = self.call(Method::GetOOMEvent, AgentServiceClient::get_oom_event, &req).await?;
        ContainerId::parse(&event.container_id)
    }
}
