//! The Sandbox service of containerd 2: each method converts the request, calls the pod and converts the result.
//! It shares a socket with the Task service. A pod is started through it or by a sandbox container, never both.

use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::Sandbox;
use ttrpc::r#async::TtrpcContext;

use crate::error::{Context, Error, Result};
use crate::ids::SandboxId;
use crate::oci::pod_spec::PodSpec;
use crate::pod::request::SandboxRequest;
use crate::shim::convert::{exited, timestamp};
use crate::shim::pod_service::PodService;
use crate::shim::{pod_config, stats};

/// The platform of every guest, for which containerd makes the containers' specs.
const PLATFORM: (&str, &str) = ("linux", "s390x");

/// CRI's names for a sandbox's states.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

fn sandbox_request(req: api::CreateSandboxRequest) -> Result<SandboxRequest> {
    let id = SandboxId::parse(&req.sandbox_id)?;
    if !req.rootfs.is_empty() {
        return Err(Error::invalid(format!(
            "sandbox {id}: has a root file system, but the guest's is in its image"
        )));
    }
    let options = req.options.unwrap_or_default();
    let mut spec = match options.type_url.rsplit('/').next() {
        Some(pod_config::TYPE) => pod_config::pod_spec(&options.value, &id)
            .with_context(|| format!("sandbox {id}: {}", pod_config::TYPE))?,
        Some("") | None => PodSpec::default(),
        Some(other) => {
            return Err(Error::invalid(format!(
                "sandbox {id}: options of type {other:?}, expected {}",
                pod_config::TYPE
            )));
        }
    };
    spec.annotations.extend(req.annotations);
    spec.network_namespace = Some(req.netns_path).filter(|path| !path.is_empty()).map(PathBuf::from);
    Ok(SandboxRequest { id, spec })
}

#[async_trait]
impl Sandbox for PodService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        req: api::CreateSandboxRequest,
    ) -> ttrpc::Result<api::CreateSandboxResponse> {
        self.pod.create_sandbox(sandbox_request(req)?)?;
        Ok(api::CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        req: api::StartSandboxRequest,
    ) -> ttrpc::Result<api::StartSandboxResponse> {
        let id = SandboxId::parse(&req.sandbox_id)?;
        let started = self.run("start sandbox", |pod| async move { pod.start_sandbox(&id).await });
        let started = started.await?;
        let created_at = MessageField::some(timestamp(started.created_at));
        Ok(api::StartSandboxResponse { pid: started.pid, created_at, ..Default::default() })
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        req: api::PlatformRequest,
    ) -> ttrpc::Result<api::PlatformResponse> {
        self.pod.sandbox_state(&SandboxId::parse(&req.sandbox_id)?)?; // this shim's sandbox?
        let mut response = api::PlatformResponse::new();
        let platform = response.platform.mut_or_insert_default();
        (platform.os, platform.architecture) = (PLATFORM.0.to_owned(), PLATFORM.1.to_owned());
        Ok(response)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        req: api::StopSandboxRequest,
    ) -> ttrpc::Result<api::StopSandboxResponse> {
        let id = SandboxId::parse(&req.sandbox_id)?;
        self.run("stop sandbox", |pod| async move { pod.stop_sandbox(&id).await }).await?;
        Ok(api::StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        req: api::WaitSandboxRequest,
    ) -> ttrpc::Result<api::WaitSandboxResponse> {
        let id = SandboxId::parse(&req.sandbox_id)?;
        let exit = self.pod.wait_sandbox(&id).await?;
        let (exit_status, exited_at) = exited(Some(exit));
        Ok(api::WaitSandboxResponse { exit_status, exited_at, ..Default::default() })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        req: api::SandboxStatusRequest,
    ) -> ttrpc::Result<api::SandboxStatusResponse> {
        let id = SandboxId::parse(&req.sandbox_id)?;
        let known = self.pod.sandbox_state(&id)?;
        let mut response = api::SandboxStatusResponse {
            sandbox_id: req.sandbox_id,
            pid: known.pid,
            state: if known.ready { READY } else { NOT_READY }.to_owned(),
            created_at: MessageField::some(timestamp(known.created_at)),
            exited_at: exited(known.exit).1,
            ..Default::default()
        };
        if req.verbose {
            let details = self.pod.sandbox_details(&id)?;
            response.info.insert("info".to_owned(), details);
        }
        Ok(response)
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        req: api::PingRequest,
    ) -> ttrpc::Result<api::PingResponse> {
        self.pod.ping_sandbox(&SandboxId::parse(&req.sandbox_id)?)?;
        Ok(api::PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        req: api::ShutdownSandboxRequest,
    ) -> ttrpc::Result<api::ShutdownSandboxResponse> {
        let id = SandboxId::parse(&req.sandbox_id)?;
        self.run("shut sandbox down", |pod| async move { pod.shutdown_sandbox(&id).await }).await?;
        Ok(api::ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        req: api::SandboxMetricsRequest,
    ) -> ttrpc::Result<api::SandboxMetricsResponse> {
        let id = SandboxId::parse(&req.sandbox_id)?;
        let stats = self.pod.sandbox_stats(&id).await?;
        let mut response = api::SandboxMetricsResponse::new();
        let metric = response.metrics.mut_or_insert_default();
        metric.id = req.sandbox_id;
        metric.timestamp = MessageField::some(timestamp(SystemTime::now()));
        metric.data = MessageField::some(stats::metrics(&stats)?);
        Ok(response)
    }
}
