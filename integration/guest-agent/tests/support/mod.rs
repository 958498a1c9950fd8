//! A client of the agent, and requests that the real agent accepted.

#![allow(dead_code, unreachable_pub, missing_debug_implementations, clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use guest_agent::messages::agent as pb;
use guest_agent::messages::agent_ttrpc::AgentServiceClient;
use guest_agent::messages::health::CheckRequest;
use guest_agent::messages::health_ttrpc::HealthClient;
use guest_agent::messages::oci;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{Context, with_duration, with_timeout};

pub mod host;

/// A call that takes longer has failed.
pub fn limit() -> Context {
    with_duration(Duration::from_secs(20))
}

/// Connects by the handshake of a vsock device in user space; `None` while the guest does not listen.
pub async fn dial(socket: &Path) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(socket).await.ok()?;
    stream.write_all(b"CONNECT 1024\n").await.ok()?;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(stream.read_u8().await.ok()?);
    }
    line.starts_with(b"OK ").then_some(stream)
}

#[derive(Clone)]
pub struct Agent {
    pub calls: AgentServiceClient,
    pub health: HealthClient,
}

/// The result of a process: both streams and its status.
#[derive(Debug, PartialEq, Eq)]
pub struct Left {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub status: i32,
}

impl Left {
    pub fn out(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

impl Agent {
    pub fn new(stream: UnixStream) -> Self {
        let client = Client::new(Socket::new(stream));
        Self { calls: AgentServiceClient::new(client.clone()), health: HealthClient::new(client) }
    }

    pub async fn check(&self) -> ttrpc::Result<()> {
        self.health.check(limit(), &CheckRequest::new()).await.map(drop)
    }

    pub async fn sandbox(&self) -> ttrpc::Result<()> {
        self.calls.create_sandbox(limit(), &sandbox()).await.map(drop)
    }

    /// Makes and starts a container.
    pub async fn run(&self, req: &pb::CreateContainerRequest) -> ttrpc::Result<()> {
        self.calls.create_container(limit(), req).await?;
        let start =
            pb::StartContainerRequest { container_id: req.container_id.clone(), ..Default::default() };
        self.calls.start_container(limit(), &start).await.map(drop)
    }

    pub async fn exec(&self, id: &str, exec_id: &str, process: oci::Process) -> ttrpc::Result<()> {
        let req = pb::ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            process: Some(process).into(),
            ..Default::default()
        };
        self.calls.exec_process(limit(), &req).await.map(drop)
    }

    pub async fn read(&self, id: &str, exec_id: &str, stderr: bool, len: u32) -> ttrpc::Result<Vec<u8>> {
        let req = pb::ReadStreamRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            len,
            ..Default::default()
        };
        let ctx = with_timeout(0);
        let read = if stderr {
            self.calls.read_stderr(ctx, &req).await
        } else {
            self.calls.read_stdout(ctx, &req).await
        };
        read.map(|answer| answer.data)
    }

    pub async fn wait(&self, id: &str, exec_id: &str) -> ttrpc::Result<i32> {
        let req =
            pb::WaitProcessRequest { container_id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.calls.wait_process(with_timeout(0), &req).await.map(|answer| answer.status)
    }

    pub async fn write(&self, id: &str, exec_id: &str, data: &[u8]) -> ttrpc::Result<u32> {
        let req = pb::WriteStreamRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            data: data.to_vec(),
            ..Default::default()
        };
        self.calls.write_stdin(limit(), &req).await.map(|answer| answer.len)
    }

    pub async fn close_stdin(&self, id: &str, exec_id: &str) -> ttrpc::Result<()> {
        let req =
            pb::CloseStdinRequest { container_id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.calls.close_stdin(limit(), &req).await.map(drop)
    }

    pub async fn signal(&self, id: &str, exec_id: &str, signal: u32) -> ttrpc::Result<()> {
        let req = pb::SignalProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            signal,
            ..Default::default()
        };
        self.calls.signal_process(limit(), &req).await.map(drop)
    }

    pub async fn remove(&self, id: &str) -> ttrpc::Result<()> {
        let req = pb::RemoveContainerRequest { container_id: id.into(), timeout: 10, ..Default::default() };
        self.calls.remove_container(limit(), &req).await.map(drop)
    }

    /// Reads a stream to its end.
    pub async fn read_all(&self, id: &str, exec_id: &str, stderr: bool, len: u32) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.read(id, exec_id, stderr, len).await {
                Ok(data) if data.is_empty() => return all,
                Ok(data) => all.extend(data),
                Err(e) if says(&e).contains("os error 5") => return all,
                Err(e) => panic!("read after {} bytes: {e}", all.len()),
            }
        }
    }

    /// As a correct host does it: both streams to their end, then the status.
    pub async fn finish(&self, id: &str, exec_id: &str) -> Left {
        let (stdout, stderr) =
            tokio::join!(self.read_all(id, exec_id, false, 32768), self.read_all(id, exec_id, true, 32768));
        let status = self.wait(id, exec_id).await.unwrap();
        Left { stdout, stderr, status }
    }
}

/// The code of an error; 4 also if this side noticed the deadline first.
pub fn code(e: &ttrpc::Error) -> i32 {
    match e {
        ttrpc::Error::RpcStatus(status) => status.code.value(),
        other if other.to_string().contains("deadline") => 4,
        other => panic!("not an answer: {other}"),
    }
}

pub fn says(e: &ttrpc::Error) -> String {
    match e {
        ttrpc::Error::RpcStatus(status) => status.message.clone(),
        other => other.to_string(),
    }
}

pub fn storage(driver: &str, source: &str, fstype: &str, mount_point: &str, options: &[&str]) -> pb::Storage {
    pb::Storage {
        driver: driver.into(),
        source: source.into(),
        fstype: fstype.into(),
        mount_point: mount_point.into(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
        ..Default::default()
    }
}

pub fn sandbox() -> pb::CreateSandboxRequest {
    let options = ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"];
    pb::CreateSandboxRequest {
        hostname: "pod1".into(),
        dns: vec!["nameserver 10.66.0.1".into(), "search x.test".into()],
        storages: vec![storage("ephemeral", "shm", "tmpfs", "/run/kata-containers/sandbox/shm", &options)],
        sandbox_id: "sb1".into(),
        ..Default::default()
    }
}

pub fn process(args: &[&str]) -> oci::Process {
    oci::Process {
        Args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        Env: vec!["PATH=/usr/bin:/bin".into(), "HOME=/".into()],
        Cwd: "/".into(),
        ..Default::default()
    }
}

pub fn terminal(args: &[&str]) -> oci::Process {
    oci::Process { Terminal: true, ..process(args) }
}

fn mount(destination: &str, source: &str, kind: &str, options: &[&str]) -> oci::Mount {
    oci::Mount {
        destination: destination.into(),
        source: source.into(),
        type_: kind.into(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
        ..Default::default()
    }
}

/// A container on a packed layer with an overlay in guest memory.
pub fn container(id: &str, process: oci::Process) -> pb::CreateContainerRequest {
    let namespace = |kind: &str| oci::LinuxNamespace { Type: kind.into(), ..Default::default() };
    let memory = oci::LinuxMemory { Limit: 64 << 20, ..Default::default() };
    let resources = oci::LinuxResources { Memory: Some(memory).into(), ..Default::default() };
    let linux = oci::Linux {
        Namespaces: ["ipc", "uts", "mount"].map(namespace).to_vec(),
        Resources: Some(resources).into(),
        CgroupsPath: format!("/kubepods/{id}"),
        MaskedPaths: vec!["/proc/kcore".into()],
        ReadonlyPaths: vec!["/proc/sys".into()],
        ..Default::default()
    };
    let capabilities = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"].map(str::to_owned).to_vec();
    let capabilities = oci::LinuxCapabilities {
        Bounding: capabilities.clone(),
        Effective: capabilities.clone(),
        Permitted: capabilities,
        ..Default::default()
    };
    let process = oci::Process { Capabilities: Some(capabilities).into(), NoNewPrivileges: true, ..process };
    let base = ["nosuid", "noexec", "nodev"];
    let spec = oci::Spec {
        Version: "1.1.0".into(),
        Process: Some(process).into(),
        Root: Some(oci::Root { Path: format!("/run/kata-containers/{id}/rootfs"), ..Default::default() })
            .into(),
        Hostname: "pod1".into(),
        Mounts: vec![
            mount("/proc", "proc", "proc", &base),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount(
                "/dev/pts",
                "devpts",
                "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            ),
            mount("/dev/mqueue", "mqueue", "mqueue", &base),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
            mount("/dev/shm", "/run/kata-containers/sandbox/shm", "bind", &["rbind"]),
        ],
        Annotations: HashMap::from([
            ("io.katacontainers.pkg.oci.container_type".into(), "pod_container".into()),
            ("io.kubernetes.cri.container-type".into(), "container".into()),
        ]),
        Linux: Some(linux).into(),
        ..Default::default()
    };
    pb::CreateContainerRequest {
        container_id: id.into(),
        exec_id: id.into(),
        storages: rootfs(id),
        OCI: Some(spec).into(),
        ..Default::default()
    }
}

/// A container whose image the guest pulls; `metadata`: what the host says of it, as JSON.
pub fn pulled(
    id: &str,
    image: &str,
    process: oci::Process,
    metadata: Option<&str>,
) -> pb::CreateContainerRequest {
    let options = metadata.map(|text| format!("image_guest_pull={{\"metadata\":{text}}}"));
    let rootfs = pb::Storage {
        driver_options: options.into_iter().collect(),
        ..storage("image_guest_pull", image, "overlay", &format!("/run/kata-containers/{id}/rootfs"), &[])
    };
    pb::CreateContainerRequest { storages: vec![rootfs], ..container(id, process) }
}

/// The same, of the pod's sandbox container by its annotations.
pub fn of_sandbox(mut req: pb::CreateContainerRequest) -> pb::CreateContainerRequest {
    let annotations = &mut req.OCI.as_mut().unwrap().Annotations;
    annotations.insert("io.katacontainers.pkg.oci.container_type".into(), "pod_sandbox".into());
    annotations.insert("io.kubernetes.cri.container-type".into(), "sandbox".into());
    req
}

fn rootfs(id: &str) -> Vec<pb::Storage> {
    let layer = "/run/kata-containers/sandbox/layers/l1";
    let dir = format!("/run/kata-containers/{id}");
    let create = |what: &str| format!("io.katacontainers.volume.overlayfs.create_directory={dir}/{what}");
    let mut image = storage("blk-ccw", "0.0.0007", "erofs", layer, &["ro"]);
    image.shared = true;
    let overlay = pb::Storage {
        driver_options: vec![create("upper"), create("work")],
        options: vec![
            format!("lowerdir={layer}"),
            format!("upperdir={dir}/upper"),
            format!("workdir={dir}/work"),
        ],
        ..storage("overlayfs", "overlay", "overlay", &format!("{dir}/rootfs"), &[])
    };
    vec![image, overlay]
}
