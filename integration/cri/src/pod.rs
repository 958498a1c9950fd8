//! A pod, gone with its containers when it is dropped.

use std::cell::Cell;

use crate::api::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxSandboxSecurityContext, PodSandboxConfig, PodSandboxStatus,
    RemovePodSandboxRequest, StopPodSandboxRequest,
};
use crate::{BUSYBOX, Container, Node, Status};

#[derive(Debug)]
pub struct Pod<'n> {
    pub node: &'n Node,
    pub id: String,
    pub config: PodSandboxConfig,
    pub(crate) gone: Cell<bool>,
}

impl<'n> Pod<'n> {
    pub fn status(&self) -> PodSandboxStatus {
        self.node.pod_status(&self.id).expect("PodSandboxStatus")
    }

    /// Its first address.
    pub fn address(&self) -> String {
        self.status().network.expect("network").ip
    }

    pub fn stop(&self) {
        self.try_stop().expect("StopPodSandbox");
    }

    pub fn try_stop(&self) -> Result<(), Status> {
        self.node.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: self.id.clone() }).map(drop)
    }

    pub fn try_remove(&self) -> Result<(), Status> {
        self.node.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() }).map(drop)
    }

    /// Stops and removes it.
    pub fn end(self) {
        self.stop();
        self.remove();
    }

    pub fn remove(self) {
        self.try_remove().unwrap_or_else(|e| panic!("RemovePodSandbox: {}", e.message()));
        self.gone.set(true);
    }

    /// A container of busybox that runs `command`, with a log.
    pub fn plain(&self, name: &str, command: &[&str]) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec {
                image: BUSYBOX.into(),
                user_specified_image: BUSYBOX.into(),
                ..Default::default()
            }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            log_path: format!("{name}/0.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext::default()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub fn try_create(&self, config: &ContainerConfig) -> Result<Container<'n>, Status> {
        let log = std::path::Path::new(&self.config.log_directory).join(&config.log_path);
        std::fs::create_dir_all(log.parent().expect("folder")).expect("log directory");
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(self.config.clone()),
        };
        let id = self.node.create_container(request)?.container_id;
        Ok(Container { node: self.node, id, log })
    }

    pub fn create(&self, config: &ContainerConfig) -> Container<'n> {
        self.try_create(config).unwrap_or_else(|e| panic!("CreateContainer: {}", e.message()))
    }

    /// A running container.
    pub fn start(&self, config: &ContainerConfig) -> Container<'n> {
        let container = self.create(config);
        container.start();
        container
    }

    /// A running container of busybox: a shell script.
    pub fn script(&self, name: &str, script: &str) -> Container<'n> {
        self.start(&self.plain(name, &["sh", "-c", script]))
    }

    /// A running container that does nothing until it is stopped.
    pub fn idle(&self, name: &str) -> Container<'n> {
        self.script(name, IDLE)
    }
}

/// A container's security context.
pub fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    let linux = config.linux.get_or_insert_with(Default::default);
    linux.security_context.get_or_insert_with(Default::default)
}

/// The same of a pod.
pub fn pod_security(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    let linux = config.linux.get_or_insert_with(Default::default);
    linux.security_context.get_or_insert_with(Default::default)
}

/// The program of a container that does nothing; it exits with 0 on SIGTERM.
pub(crate) const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done";

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if self.gone.get() {
            return;
        }
        let ended = self.try_stop().and_then(|()| self.try_remove());
        assert!(ended.is_ok() || std::thread::panicking(), "pod {}: {ended:?}", self.id);
    }
}
