//! A node: a private containerd with its CRI plugin, and a connection to it.

use std::cell::Cell;
use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use harness::{Containerd, until};

use crate::api::{
    LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatus, PodSandboxStatusRequest,
    RunPodSandboxRequest, StatusRequest,
};
use crate::{Client, Pod, Status};

/// The image of the tests' containers: busybox.
pub const BUSYBOX: &str = "localhost/cri-busybox:latest";

/// The same with a user, a volume at /data, a working directory and SIGUSR1 as its stop signal.
pub const OWN: &str = "localhost/cri-own:latest";

/// Everything of it is gone when it is dropped. Derefs to the client.
#[derive(Debug)]
pub struct Node {
    client: Client,
    pub containerd: Containerd,
    pub version: String,
    /// Its pods are created by the Sandbox API, without a pause container.
    pub sandbox_api: bool,
    attempts: AtomicU32,
}

impl Deref for Node {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Node {
    /// Of containerd `version`: "1.6", "1.7" or "2".
    pub fn new(version: &str) -> Self {
        Self::on(Containerd::cri(version), version, false)
    }

    /// Of containerd 2, whose pods are created by the Sandbox API.
    pub fn with_sandbox_api() -> Self {
        Self::on(Containerd::cri_by("2", "shim"), "2", true)
    }

    fn on(containerd: Containerd, version: &str, sandbox_api: bool) -> Self {
        let client = Client::connect(&containerd.path("c.sock"));
        let (version, attempts) = (version.to_owned(), AtomicU32::new(0));
        let node = Self { client, containerd, version, sandbox_api, attempts };
        until("runtime and network are ready", 20, || {
            let conditions = node.status(StatusRequest::default()).ok().and_then(|answer| answer.status);
            conditions.is_some_and(|s| !s.conditions.is_empty() && s.conditions.iter().all(|c| c.status))
        });
        node
    }

    /// A new connection, after a restart of containerd.
    pub fn reconnect(&mut self) {
        self.client = Client::connect(&self.containerd.path("c.sock"));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.containerd.path(name)
    }

    /// The kubelet's configuration of a plain pod.
    pub fn config(&self, name: &str) -> PodSandboxConfig {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        let logs = self.path("logs").join(format!("{name}-{attempt}"));
        fs::create_dir_all(&logs).expect("log directory");
        let metadata = PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-{name}-{attempt}"),
            namespace: "tests".into(),
            attempt: 0,
        };
        PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.into(),
            log_directory: logs.display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/kata-se-tests-{name}-{attempt}"),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub fn try_run(&self, config: &PodSandboxConfig) -> Result<Pod<'_>, Status> {
        self.try_run_by("kata-se", config)
    }

    /// With another runtime handler.
    pub fn try_run_by(&self, handler: &str, config: &PodSandboxConfig) -> Result<Pod<'_>, Status> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        let id = self.run_pod_sandbox(request)?.pod_sandbox_id;
        Ok(Pod { node: self, id, config: config.clone(), gone: Cell::default() })
    }

    pub fn run(&self, config: &PodSandboxConfig) -> Pod<'_> {
        self.try_run(config).unwrap_or_else(|e| panic!("RunPodSandbox: {}", e.message()))
    }

    /// A plain pod.
    pub fn pod(&self, name: &str) -> Pod<'_> {
        self.run(&self.config(name))
    }

    pub fn pod_status(&self, id: &str) -> Result<PodSandboxStatus, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        self.pod_sandbox_status(request).map(|answer| answer.status.expect("status"))
    }
}
