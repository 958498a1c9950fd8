//! A container's bundle, as containerd creates it.

use std::path::Path;

use serde_json::{Value, json};

/// A container's OCI specification, as a test describes it.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub config: Value,
}

impl Bundle {
    /// A standalone container that runs `args`.
    pub fn new(args: &[&str]) -> Self {
        Self {
            config: json!({
                "ociVersion": "1.0.2",
                "process": {
                    "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/",
                    "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
                    "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
                },
                "root": {"path": "rootfs"},
                "mounts": [
                    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
                    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid"]},
                ],
                "linux": {
                    "cgroupsPath": "/kata-se-tests/x",
                    "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                    "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
                },
            }),
        }
    }

    /// A shell script.
    pub fn sh(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }

    /// The sandbox container of a pod, by containerd's annotations.
    pub fn sandbox(mut self) -> Self {
        self.config["annotations"] = json!({"io.kubernetes.cri.container-type": "sandbox"});
        self
    }

    /// A container of the pod `sandbox`.
    pub fn member(mut self, sandbox: &str) -> Self {
        self.config["annotations"] =
            json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": sandbox});
        self
    }

    /// The same by CRI-O's annotations.
    pub fn crio_sandbox(mut self, sandbox: &str) -> Self {
        self.config["annotations"] =
            json!({"io.kubernetes.cri-o.ContainerType": "sandbox", "io.kubernetes.cri-o.SandboxID": sandbox});
        self
    }

    pub fn crio_member(mut self, sandbox: &str) -> Self {
        self.config["annotations"] = json!({"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": sandbox});
        self
    }

    /// With one more annotation.
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.config["annotations"][name] = value.into();
        self
    }

    /// With an emptyDir of the kubelet, which is this folder.
    pub fn empty_dir(mut self, destination: &str, folder: &Path) -> Self {
        self.config["mounts"].as_array_mut().expect("list").push(json!({
            "destination": destination, "type": "bind", "source": folder, "options": ["rbind", "rprivate", "rw"],
        }));
        self
    }

    pub fn terminal(mut self) -> Self {
        self.config["process"]["terminal"] = true.into();
        self
    }

    /// In this network namespace.
    pub fn network(mut self, path: &str) -> Self {
        let list = self.config["linux"]["namespaces"].as_array_mut().expect("list");
        list.retain(|namespace| namespace["type"] != "network");
        list.push(json!({"type": "network", "path": path}));
        self
    }

    /// An exec's process.
    pub fn process(args: &[&str]) -> Vec<u8> {
        json!({"user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/", "env": ["PATH=/usr/bin:/bin"]})
            .to_string()
            .into_bytes()
    }
}
