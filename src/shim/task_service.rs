//! The Task service: each method converts the request, calls the pod and converts the result.
//!
//! What changes a pod goes through `PodService::run`, because a handler is dropped at its caller's deadline.

use std::path::PathBuf;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::Task;
use ttrpc::r#async::TtrpcContext;

use crate::error::{Error, Result};
use crate::ids::{ContainerId, ExecId};
use crate::plan::rootfs::RootfsMount;
use crate::pod::request::{CreateRequest, ExecRequest, Status, StdioPaths};
use crate::shim::convert::{config_path, exited, process_id};
use crate::shim::pod_service::PodService;
use crate::shim::stats;

fn create_request(req: api::CreateTaskRequest) -> Result<CreateRequest> {
    let bundle = PathBuf::from(&req.bundle);
    if !bundle.is_absolute() {
        return Err(Error::invalid(format!("bundle {:?} is not an absolute path", req.bundle)));
    }
    if !req.checkpoint.is_empty() {
        return Err(Error::unimplemented("checkpoint: a confidential guest cannot be restored"));
    }
    let rootfs = req.rootfs.into_iter();
    Ok(CreateRequest {
        id: ContainerId::parse(&req.id)?,
        bundle,
        rootfs: rootfs
            .map(|m| RootfsMount { fstype: m.type_, source: m.source, options: m.options })
            .collect(),
        stdio: StdioPaths {
            stdin: req.stdin,
            stdout: req.stdout,
            stderr: req.stderr,
            terminal: req.terminal,
        },
        config_path: req.options.as_ref().map(config_path).transpose()?.flatten(),
    })
}

#[async_trait]
impl Task for PodService {
    async fn create(
        &self,
        _: &TtrpcContext,
        req: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let request = create_request(req)?;
        let pid = self.run("create", |pod| async move { pod.create(request).await }).await?;
        Ok(api::CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, req: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        let id = process_id(&req.id, &req.exec_id)?;
        let pid = self.run("start", |pod| async move { pod.start(&id).await }).await?;
        Ok(api::StartResponse { pid, ..Default::default() })
    }

    async fn exec(&self, _: &TtrpcContext, req: api::ExecProcessRequest) -> ttrpc::Result<api::Empty> {
        self.pod.exec(ExecRequest {
            container: ContainerId::parse(&req.id)?,
            exec: ExecId::parse(&req.exec_id)?,
            process: req.spec.unwrap_or_default().value,
            stdio: StdioPaths {
                stdin: req.stdin,
                stdout: req.stdout,
                stderr: req.stderr,
                terminal: req.terminal,
            },
        })?;
        Ok(api::Empty::new())
    }

    async fn state(&self, _: &TtrpcContext, req: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        let known = self.pod.state(&process_id(&req.id, &req.exec_id)?)?;
        let (exit_status, exited_at) = exited(known.exit);
        let running = match known.status {
            Status::Created => api::Status::CREATED,
            Status::Running => api::Status::RUNNING,
            Status::Paused => api::Status::PAUSED,
            Status::Stopped => api::Status::STOPPED,
        };
        Ok(api::StateResponse {
            id: req.id,
            bundle: known.bundle.display().to_string(),
            pid: known.pid,
            status: running.into(),
            stdin: known.stdio.stdin,
            stdout: known.stdio.stdout,
            stderr: known.stdio.stderr,
            terminal: known.stdio.terminal,
            exit_status,
            exited_at,
            exec_id: req.exec_id,
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, req: api::KillRequest) -> ttrpc::Result<api::Empty> {
        let id = process_id(&req.id, &req.exec_id)?;
        self.run("kill", |pod| async move { pod.kill(&id, req.signal, req.all).await }).await?;
        Ok(api::Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, req: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        let id = process_id(&req.id, &req.exec_id)?;
        let exit = self.pod.wait(&id).await?;
        let (exit_status, exited_at) = exited(Some(exit));
        Ok(api::WaitResponse { exit_status, exited_at, ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, req: api::DeleteRequest) -> ttrpc::Result<api::DeleteResponse> {
        let id = process_id(&req.id, &req.exec_id)?;
        let deleted = self.run("delete", |pod| async move { pod.delete(&id).await }).await?;
        let (exit_status, exited_at) = exited(deleted.exit);
        Ok(api::DeleteResponse { pid: deleted.pid, exit_status, exited_at, ..Default::default() })
    }

    async fn pids(&self, _: &TtrpcContext, req: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        let pids = self.pod.pids(&ContainerId::parse(&req.id)?)?;
        let info = |pid| api::ProcessInfo { pid, ..Default::default() };
        Ok(api::PidsResponse { processes: pids.into_iter().map(info).collect(), ..Default::default() })
    }

    async fn close_io(&self, _: &TtrpcContext, req: api::CloseIORequest) -> ttrpc::Result<api::Empty> {
        let id = process_id(&req.id, &req.exec_id)?;
        if req.stdin {
            self.pod.close_io(&id)?;
        }
        Ok(api::Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, req: api::ResizePtyRequest) -> ttrpc::Result<api::Empty> {
        let id = process_id(&req.id, &req.exec_id)?;
        self.pod.resize(&id, req.width, req.height).await?;
        Ok(api::Empty::new())
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        req: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        let task_pid = self.pod.connect(&ContainerId::parse(&req.id)?)?;
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: "v2".to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, req: api::ShutdownRequest) -> ttrpc::Result<api::Empty> {
        self.run("shutdown", |pod| async move { pod.shutdown(req.now).await }).await?;
        Ok(api::Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, req: api::PauseRequest) -> ttrpc::Result<api::Empty> {
        let id = ContainerId::parse(&req.id)?;
        self.run("pause", |pod| async move { pod.pause(&id).await }).await?;
        Ok(api::Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, req: api::ResumeRequest) -> ttrpc::Result<api::Empty> {
        let id = ContainerId::parse(&req.id)?;
        self.run("resume", |pod| async move { pod.resume(&id).await }).await?;
        Ok(api::Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, req: api::UpdateTaskRequest) -> ttrpc::Result<api::Empty> {
        let id = ContainerId::parse(&req.id)?;
        let json = resources_json(req.resources.into_option())?;
        self.run("update", |pod| async move { pod.update(&id, &json).await }).await?;
        Ok(api::Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, req: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        let id = ContainerId::parse(&req.id)?;
        let stats = self.pod.stats(&id).await?;
        let stats = MessageField::some(stats::metrics(&stats)?);
        Ok(api::StatsResponse { stats, ..Default::default() })
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> ttrpc::Result<api::Empty> {
        Err(Error::unimplemented("Checkpoint: the state of a confidential guest cannot be taken out of it")
            .into())
    }
}

/// The OCI resources in Update's `Any`, as JSON.
fn resources_json(any: Option<Any>) -> Result<Vec<u8>> {
    const NAME: &str = "LinuxResources";
    let any = any.ok_or_else(|| Error::invalid("update: no resources"))?;
    if any.type_url.rsplit('/').next() != Some(NAME) {
        return Err(Error::invalid(format!("update: resources of type {:?}, expected {NAME}", any.type_url)));
    }
    Ok(any.value)
}
