//! A client of the shim's Sandbox API that calls it as containerd's controller "shim" does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedOutputStream, MessageField};
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::SandboxClient;
use ttrpc::r#async::Client;
use ttrpc::context::with_duration;

use crate::task_client::{PATIENCE, Shim};
use crate::test_node::TestNode;

/// A pod's sandbox at its shim.
#[derive(Clone)]
pub struct Sandbox {
    pub id: String,
    bundle: PathBuf,
    client: SandboxClient,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.id)
    }
}

/// CRI's `PodSandboxConfig`, as encoded fields.
#[derive(Clone, Debug, Default)]
pub struct PodConfig {
    fields: Vec<u8>,
    /// Those of its `linux` message. As containerd's encoder does, we write that message once: a decoder may keep
    /// only the last one.
    linux: Vec<u8>,
}

/// One field of a protobuf message.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut out = CodedOutputStream::vec(&mut bytes);
    out.write_bytes(number, content).and_then(|()| out.flush()).expect("encode");
    drop(out);
    bytes
}

impl PodConfig {
    /// One more field, a text or a message.
    fn with(mut self, number: u32, content: &[u8]) -> Self {
        self.fields.extend(field(number, content));
        self
    }

    fn with_linux(mut self, number: u32, content: &[u8]) -> Self {
        self.linux.extend(field(number, content));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        [self.fields.clone(), field(8, &self.linux)].concat()
    }

    pub fn hostname(self, name: &str) -> Self {
        self.with(2, name.as_bytes())
    }

    pub fn nameserver(self, address: &str) -> Self {
        self.with(4, &field(1, address.as_bytes()))
    }

    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.with(7, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
    }

    pub fn cgroup_parent(self, path: &str) -> Self {
        self.with_linux(1, path.as_bytes())
    }

    pub fn sysctl(self, key: &str, value: &str) -> Self {
        self.with_linux(3, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
    }

    pub fn host_network(self) -> Self {
        // NamespaceOption.network = NODE.
        self.with_linux(2, &field(1, &[8, 2]))
    }
}

impl TestNode {
    /// The bundle that containerd creates for a sandbox of its Sandbox API: no config.json.
    pub fn sandbox_bundle(&self, id: &str) -> PathBuf {
        let dir = self.bundle(id, &crate::Bundle::sh("true"));
        std::fs::remove_file(dir.join("config.json")).expect("config.json");
        dir
    }

    /// Starts the shim of a sandbox, which is not created yet.
    pub async fn sandbox(&self, id: &str) -> (Shim, Sandbox) {
        let bundle = self.sandbox_bundle(id);
        let shim = self.shim(id, &bundle).await;
        let sandbox = Sandbox::connect(&shim.address, id, &bundle).await;
        (shim, sandbox)
    }

    /// A sandbox whose VM runs.
    pub async fn running_sandbox(&self, id: &str) -> (Shim, Sandbox) {
        let (shim, sandbox) = self.sandbox(id).await;
        sandbox.create(&PodConfig::default(), "").await.expect("create sandbox");
        sandbox.start().await.expect("start sandbox");
        (shim, sandbox)
    }
}

impl Sandbox {
    pub async fn connect(address: &str, id: &str, bundle: &Path) -> Self {
        let client = Client::connect(address).await.unwrap_or_else(|e| panic!("connect {address}: {e}"));
        Self { id: id.to_owned(), bundle: bundle.to_owned(), client: SandboxClient::new(client) }
    }

    /// The same shim asked for another sandbox.
    pub fn called(&self, id: &str) -> Self {
        Self { id: id.to_owned(), ..self.clone() }
    }

    pub async fn create(&self, config: &PodConfig, netns: &str) -> ttrpc::Result<()> {
        let options = Any {
            type_url: "runtime.v1.PodSandboxConfig".into(),
            value: config.bytes(),
            ..Default::default()
        };
        let req = api::CreateSandboxRequest {
            sandbox_id: self.id.clone(),
            bundle_path: self.bundle.display().to_string(),
            options: MessageField::some(options),
            netns_path: netns.to_owned(),
            ..Default::default()
        };
        self.client.create_sandbox(with_duration(PATIENCE), &req).await.map(|_| ())
    }

    /// The VM's process.
    pub async fn start(&self) -> ttrpc::Result<u32> {
        let req = api::StartSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
        let answer = self.client.start_sandbox(with_duration(PATIENCE), &req).await?;
        assert!(answer.created_at.seconds > 1_600_000_000, "{answer:?}");
        Ok(answer.pid)
    }

    /// Operating system and architecture.
    pub async fn platform(&self) -> ttrpc::Result<(String, String)> {
        let req = api::PlatformRequest { sandbox_id: self.id.clone(), ..Default::default() };
        let answer = self.client.platform(with_duration(PATIENCE), &req).await?;
        let platform = answer.platform.unwrap_or_default();
        Ok((platform.os, platform.architecture))
    }

    pub async fn stop(&self) -> ttrpc::Result<()> {
        let req = api::StopSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.client.stop_sandbox(with_duration(PATIENCE), &req).await.map(|_| ())
    }

    /// Its exit status, once it has ended.
    pub async fn wait(&self) -> ttrpc::Result<u32> {
        let req = api::WaitSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
        let answer = self.client.wait_sandbox(with_duration(PATIENCE), &req).await?;
        assert!(answer.exited_at.seconds > 1_600_000_000, "{answer:?}");
        Ok(answer.exit_status)
    }

    pub async fn status(&self, verbose: bool) -> ttrpc::Result<api::SandboxStatusResponse> {
        let req = api::SandboxStatusRequest { sandbox_id: self.id.clone(), verbose, ..Default::default() };
        self.client.sandbox_status(with_duration(PATIENCE), &req).await
    }

    pub async fn ping(&self) -> ttrpc::Result<()> {
        let req = api::PingRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.client.ping_sandbox(with_duration(PATIENCE), &req).await.map(|_| ())
    }

    pub async fn shutdown(&self) -> ttrpc::Result<()> {
        self.shutdown_for(PATIENCE).await
    }

    pub async fn shutdown_for(&self, deadline: Duration) -> ttrpc::Result<()> {
        let req = api::ShutdownSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.client.shutdown_sandbox(with_duration(deadline), &req).await.map(|_| ())
    }

    /// The type of the metrics and their bytes.
    pub async fn metrics(&self) -> ttrpc::Result<(String, Vec<u8>)> {
        let req = api::SandboxMetricsRequest { sandbox_id: self.id.clone(), ..Default::default() };
        let answer = self.client.sandbox_metrics(with_duration(PATIENCE), &req).await?;
        let data = answer.metrics.unwrap_or_default().data.unwrap_or_default();
        Ok((data.type_url, data.value))
    }
}
