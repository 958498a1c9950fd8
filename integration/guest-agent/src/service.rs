//! The calls of the service: translation between messages and the agent's operations.
//!
//! A call that changes anything runs as a separate task: the server drops a handler when the host's
//! deadline passes or its connection ends, and half a container would be left.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::{Service, TtrpcContext};

use crate::agent::Agent;
use crate::copy::copy_file;
use crate::failure::{self, Result, Trying, internal, invalid};
use crate::guest_pull;
use crate::messages::agent as pb;
use crate::messages::agent_ttrpc::{AgentService, create_agent_service};
use crate::messages::health::{
    CheckRequest, HealthCheckResponse, VersionCheckResponse, health_check_response,
};
use crate::messages::health_ttrpc::{Health, create_health};
use crate::messages::types;
use crate::record::Record;
use crate::stdio::Stream;

type Empty = protobuf::well_known_types::empty::Empty;

const STORAGE_HANDLERS: [&str; 6] =
    ["blk-ccw", "scsi", "overlayfs", "ephemeral", "local", guest_pull::DRIVER];

/// Calls that no host of this project makes: the server's default answer is "unimplemented".
const NOT_SERVED: [&str; 12] = [
    "UpdateEphemeralMounts",
    "RemoveStaleVirtiofsShareMounts",
    "GetIPTables",
    "SetIPTables",
    "MemAgentMemcgSet",
    "MemAgentCompactSet",
    "OnlineCPUMem",
    "MemHotplugByProbe",
    "AddSwap",
    "AddSwapPath",
    "GetVolumeStats",
    "ResizeVolume",
];

/// Both services, ready for a server.
pub(crate) fn services(agent: &Arc<Agent>, record: &Arc<Record>) -> HashMap<String, Service> {
    let calls = Calls { agent: agent.clone(), record: record.clone() };
    let mut services = create_agent_service(Arc::new(calls));
    for service in services.values_mut() {
        service.methods.retain(|name, _| !NOT_SERVED.contains(&name.as_str()));
    }
    services.extend(create_health(Arc::new(Alive { version: agent.settings.version.clone() })));
    services
}

struct Alive {
    version: String,
}

#[async_trait]
impl Health for Alive {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> Result<HealthCheckResponse> {
        let status = health_check_response::ServingStatus::SERVING.into();
        Ok(HealthCheckResponse { status, ..Default::default() })
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> Result<VersionCheckResponse> {
        let (grpc_version, agent_version) = ("0.0.1".to_owned(), self.version.clone());
        Ok(VersionCheckResponse { grpc_version, agent_version, ..Default::default() })
    }
}

struct Calls {
    agent: Arc<Agent>,
    record: Arc<Record>,
}

/// Runs to completion even if the caller disconnects. A panic is as with the real agent: the call has no answer.
async fn whole<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(e) => Err(internal(format!("the agent failed: {e}"))),
    }
}

impl Calls {
    async fn read(&self, req: &pb::ReadStreamRequest, stream: Stream) -> Result<pb::ReadStreamResponse> {
        let process = self.agent.process(&req.container_id, &req.exec_id)?;
        let data = process.stdio.output(stream).read(req.len, &process.exit).await?;
        Ok(pb::ReadStreamResponse { data, ..Default::default() })
    }
}

#[async_trait]
impl AgentService for Calls {
    async fn create_sandbox(&self, _: &TtrpcContext, req: pb::CreateSandboxRequest) -> Result<Empty> {
        let agent = self.agent.clone();
        whole(async move { agent.create_sandbox(req).await }).await.map(|()| Empty::new())
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, _: pb::DestroySandboxRequest) -> Result<Empty> {
        let agent = self.agent.clone();
        whole(async move { agent.destroy_sandbox().await }).await.map(|()| Empty::new())
    }

    async fn create_container(&self, _: &TtrpcContext, req: pb::CreateContainerRequest) -> Result<Empty> {
        let agent = self.agent.clone();
        whole(async move { agent.create_container(req).await }).await.map(|()| Empty::new())
    }

    async fn start_container(&self, _: &TtrpcContext, req: pb::StartContainerRequest) -> Result<Empty> {
        let agent = self.agent.clone();
        whole(async move { agent.start_container(&req.container_id).await }).await.map(|()| Empty::new())
    }

    async fn remove_container(&self, _: &TtrpcContext, req: pb::RemoveContainerRequest) -> Result<Empty> {
        let agent = self.agent.clone();
        let removed = whole(async move { agent.remove_container(&req.container_id, req.timeout).await });
        removed.await.map(|()| Empty::new())
    }

    async fn exec_process(&self, _: &TtrpcContext, req: pb::ExecProcessRequest) -> Result<Empty> {
        let agent = self.agent.clone();
        whole(async move { agent.exec(req).await }).await.map(|()| Empty::new())
    }

    async fn signal_process(&self, _: &TtrpcContext, req: pb::SignalProcessRequest) -> Result<Empty> {
        self.agent.signal(&req.container_id, &req.exec_id, req.signal).await.map(|()| Empty::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        req: pb::WaitProcessRequest,
    ) -> Result<pb::WaitProcessResponse> {
        let status = self.agent.wait_process(&req.container_id, &req.exec_id).await?;
        Ok(pb::WaitProcessResponse { status, ..Default::default() })
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        req: pb::ReadStreamRequest,
    ) -> Result<pb::ReadStreamResponse> {
        self.read(&req, Stream::Stdout).await
    }

    async fn read_stderr(
        &self,
        _: &TtrpcContext,
        req: pb::ReadStreamRequest,
    ) -> Result<pb::ReadStreamResponse> {
        self.read(&req, Stream::Stderr).await
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        req: pb::WriteStreamRequest,
    ) -> Result<pb::WriteStreamResponse> {
        // The one call that has no separate code for an unknown process.
        let process = self.agent.process(&req.container_id, &req.exec_id);
        let process = process.map_err(|e| internal(failure::text(&e)))?;
        if req.data.is_empty() {
            process.stdio.stdin().close();
        } else {
            process.stdio.stdin().write(&req.data).await?;
        }
        let len = u32::try_from(req.data.len()).unwrap_or(u32::MAX);
        Ok(pb::WriteStreamResponse { len, ..Default::default() })
    }

    async fn close_stdin(&self, _: &TtrpcContext, req: pb::CloseStdinRequest) -> Result<Empty> {
        self.agent.process(&req.container_id, &req.exec_id)?.stdio.stdin().close();
        Ok(Empty::new())
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, req: pb::TtyWinResizeRequest) -> Result<Empty> {
        let process = self.agent.process(&req.container_id, &req.exec_id)?;
        process.stdio.resize(req.row, req.column).map(|()| Empty::new())
    }

    async fn pause_container(&self, _: &TtrpcContext, req: pb::PauseContainerRequest) -> Result<Empty> {
        self.agent.pause(&req.container_id, true).await.map(|()| Empty::new())
    }

    async fn resume_container(&self, _: &TtrpcContext, req: pb::ResumeContainerRequest) -> Result<Empty> {
        self.agent.pause(&req.container_id, false).await.map(|()| Empty::new())
    }

    async fn update_container(&self, _: &TtrpcContext, req: pb::UpdateContainerRequest) -> Result<Empty> {
        self.agent.update(&req).map(|()| Empty::new())
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        req: pb::StatsContainerRequest,
    ) -> Result<pb::StatsContainerResponse> {
        let cgroup_stats = Some(self.agent.stats(&req.container_id)?).into();
        Ok(pb::StatsContainerResponse { cgroup_stats, ..Default::default() })
    }

    async fn update_interface(
        &self,
        _: &TtrpcContext,
        req: pb::UpdateInterfaceRequest,
    ) -> Result<types::Interface> {
        let wanted = req.interface.into_option().ok_or_else(|| invalid("empty update interface request"))?;
        self.agent.network.update_interface(self.agent.environment.devices(), wanted).await
    }

    async fn update_routes(&self, _: &TtrpcContext, req: pb::UpdateRoutesRequest) -> Result<pb::Routes> {
        let wanted = req.routes.into_option().ok_or_else(|| invalid("empty update routes request"))?;
        let routes = self.agent.network.update_routes(wanted.Routes).await?;
        Ok(pb::Routes { Routes: routes, ..Default::default() })
    }

    async fn add_arp_neighbors(&self, _: &TtrpcContext, req: pb::AddARPNeighborsRequest) -> Result<Empty> {
        let wanted =
            req.neighbors.into_option().ok_or_else(|| invalid("empty add arp neighbours request"))?;
        self.agent.network.add_neighbours(&wanted.ARPNeighbors).await.map(|()| Empty::new())
    }

    async fn list_interfaces(
        &self,
        _: &TtrpcContext,
        _: pb::ListInterfacesRequest,
    ) -> Result<pb::Interfaces> {
        Ok(pb::Interfaces { Interfaces: self.agent.network.interfaces().await?, ..Default::default() })
    }

    async fn list_routes(&self, _: &TtrpcContext, _: pb::ListRoutesRequest) -> Result<pb::Routes> {
        Ok(pb::Routes { Routes: self.agent.network.routes().await?, ..Default::default() })
    }

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        req: pb::GuestDetailsRequest,
    ) -> Result<pb::GuestDetailsResponse> {
        let details = pb::AgentDetails {
            version: self.agent.settings.version.clone(),
            init_daemon: self.agent.environment.is_guest(),
            supports_seccomp: self.agent.settings.seccomp,
            storage_handlers: STORAGE_HANDLERS.map(str::to_owned).to_vec(),
            ..Default::default()
        };
        let mem_block_size_bytes = if req.mem_block_size { 256 << 20 } else { 0 };
        Ok(pb::GuestDetailsResponse {
            mem_block_size_bytes,
            agent_details: Some(details).into(),
            ..Default::default()
        })
    }

    async fn get_oom_event(&self, _: &TtrpcContext, _: pb::GetOOMEventRequest) -> Result<pb::OOMEvent> {
        Ok(pb::OOMEvent { container_id: self.agent.oom.next().await?, ..Default::default() })
    }

    async fn copy_file(&self, _: &TtrpcContext, req: pb::CopyFileRequest) -> Result<Empty> {
        copy_file(&self.agent.environment, &req).map(|()| Empty::new())
    }

    async fn set_guest_date_time(&self, _: &TtrpcContext, req: pb::SetGuestDateTimeRequest) -> Result<Empty> {
        if self.agent.environment.is_guest() {
            let now = nix::sys::time::TimeSpec::new(req.Sec, req.Usec * 1000);
            nix::time::clock_settime(nix::time::ClockId::CLOCK_REALTIME, now).trying("set the clock")?;
        }
        Ok(Empty::new())
    }

    async fn reseed_random_dev(&self, _: &TtrpcContext, req: pb::ReseedRandomDevRequest) -> Result<Empty> {
        if req.data.is_empty() {
            return Err(internal("ReseedRandomDev without data"));
        }
        if self.agent.environment.is_guest() {
            std::fs::write("/dev/urandom", &req.data).trying("/dev/urandom")?;
        }
        Ok(Empty::new())
    }

    async fn set_policy(&self, _: &TtrpcContext, req: pb::SetPolicyRequest) -> Result<Empty> {
        // The interposer has it by now; here its form is checked, by the limits of the real agent's engine.
        let long = req.policy.lines().any(|line| line.len() > 64 << 10);
        if !req.policy.contains("package agent_policy") {
            Err(invalid("the policy is not of package agent_policy"))
        } else if long || req.policy.lines().count() > 200_000 {
            Err(invalid("a line of more than 64 KiB, or more than 200000 lines"))
        } else {
            Ok(Empty::new())
        }
    }

    async fn get_metrics(&self, _: &TtrpcContext, _: pb::GetMetricsRequest) -> Result<pb::Metrics> {
        let metrics = "# TYPE kata_agent_threads gauge\nkata_agent_threads 1\n".to_owned();
        Ok(pb::Metrics { metrics, ..Default::default() })
    }

    async fn get_diagnostic_data(
        &self,
        _: &TtrpcContext,
        req: pb::GetDiagnosticDataRequest,
    ) -> Result<pb::GetDiagnosticDataResponse> {
        match req.log_type.as_str() {
            "termination_log" => {
                let data = self.agent.termination_message(&req.container_id)?;
                Ok(pb::GetDiagnosticDataResponse { data, ..Default::default() })
            }
            // Not in the real agent: tests read the record of an agent in a guest by it.
            "record" => Ok(pb::GetDiagnosticDataResponse { data: self.record.tail(), ..Default::default() }),
            other => Err(invalid(format!("log type {other:?}"))),
        }
    }
}
