//! What a policy made by CoCo's generator (4.1) refuses of a host's requests, as far as one request shows it.
//!
//! The rules are those of its storages, mounts, annotations and files; what the generator has from a pod's manifest
//! (arguments, environment, users, names of images) is not compared. Each refusal is a line.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde_json::{Value, json};

const SHARED: &str = "/run/kata-containers/shared/containers/";
const STORAGE: &str = "/run/kata-containers/sandbox/storage/";
const EPHEMERAL: &str = "/run/kata-containers/sandbox/ephemeral/";
const SHM: &str = "/run/kata-containers/sandbox/shm";

/// Calls that generated policies allow always, or by rules that are not looked at here.
const ALLOWED: [&str; 12] = [
    "Check",
    "DestroySandbox",
    "ExecProcess",
    "GetGuestDetails",
    "GetOOMEvent",
    "RemoveContainer",
    "SignalProcess",
    "StartContainer",
    "StatsContainer",
    "TtyWinResize",
    "Version",
    "WaitProcess",
];

/// Calls about the network, which rules allow.
const NETWORK: [&str; 3] = ["AddARPNeighbors", "UpdateInterface", "UpdateRoutes"];

/// What it has against one entry of a record of requests; `pulled_without_options`: the generator is newer than 4.1.
pub fn refusals(entry: &Value, pulled_without_options: bool) -> Vec<String> {
    let mut found = Refusals(Vec::new());
    let request = &entry["request"];
    match entry["call"].as_str().unwrap_or_default() {
        call if ALLOWED.contains(&call) || NETWORK.contains(&call) => {}
        "CreateSandbox" => found.sandbox(request),
        "CreateContainer" => found.container(request, pulled_without_options),
        "CopyFile" => found.file(request),
        call => found.refuse(format!("{call} is denied by default")),
    }
    found.0
}

struct Refusals(Vec<String>);

impl Refusals {
    fn refuse(&mut self, why: impl Into<String>) {
        self.0.push(why.into());
    }

    /// The fields must have these values; null stands for a field that is absent or empty.
    fn equal(&mut self, what: &str, object: &Value, wanted: &Value) {
        for (name, wanted) in wanted.as_object().into_iter().flatten() {
            if &object[name] != wanted {
                self.refuse(format!("{what}: {name} is {}, not {wanted}", object[name]));
            }
        }
    }

    fn sandbox(&mut self, request: &Value) {
        let none = json!({"sandbox_pidns": null, "guest_hook_path": null, "kernel_modules": null});
        self.equal("sandbox", request, &none);
        let shm = json!([{
            "driver": "ephemeral", "source": "shm", "fstype": "tmpfs", "mount_point": SHM,
            "options": ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"],
        }]);
        self.equal("sandbox", request, &json!({"storages": shm}));
    }

    fn container(&mut self, request: &Value, pulled_without_options: bool) {
        let id = text(&request["container_id"]);
        let storages = list(&request["storages"]);
        let (pulled, others): (Vec<_>, Vec<_>) =
            storages.iter().partition(|storage| storage["driver"] == "image_guest_pull");
        if pulled.len() != 1 {
            self.refuse(format!("{} storages image_guest_pull, not one", pulled.len()));
        }
        for storage in pulled {
            let mount_point = format!("/run/kata-containers/{id}/rootfs");
            let none = json!({"fstype": "overlay", "options": null, "fs_group": null, "shared": null});
            self.equal("image_guest_pull", storage, &none);
            self.equal("image_guest_pull", storage, &json!({"mount_point": mount_point}));
            if pulled_without_options {
                self.equal("image_guest_pull", storage, &json!({"driver_options": null}));
            }
        }
        for storage in others {
            self.storage(storage);
        }
        let spec = &request["OCI"];
        for mount in list(&spec["Mounts"]) {
            self.mount(mount, id, storages);
        }
        self.annotations(spec, id);
        self.equal("spec", spec, &json!({"Hooks": null}));
        self.equal("root", &spec["Root"], &json!({"Path": format!("/run/kata-containers/{id}/rootfs")}));
        let linux = json!({"Seccomp": null, "MountLabel": null, "RootfsPropagation": null, "IntelRdt": null});
        self.equal("linux", &spec["Linux"], &linux);
        let resources = json!({"Devices": null, "Pids": null, "BlockIO": null, "Network": null});
        self.equal("resources", &spec["Linux"]["Resources"], &resources);
        self.equal("process", &spec["Process"], &json!({"SelinuxLabel": null}));
        for namespace in list(&spec["Linux"]["Namespaces"]) {
            self.equal("namespace", namespace, &json!({"Path": null}));
        }
        for device in list(&request["devices"]) {
            let path = &device["container_path"];
            if !list(&spec["Linux"]["Devices"]).iter().any(|listed| &listed["Path"] == path) {
                self.refuse(format!("device {path} is not in Linux.Devices"));
            }
        }
    }

    fn storage(&mut self, storage: &Value) {
        let source = text(&storage["source"]);
        match text(&storage["driver"]) {
            "scsi" => {
                let numbers = source.split_once(':').map(|(id, lun)| [id, lun]);
                let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
                if !numbers.is_some_and(|parts| parts.into_iter().all(digits)) {
                    self.refuse(format!("scsi: source {source:?}"));
                }
                let wanted = json!({
                    "driver_options": ["encryption_key=ephemeral", "create_filesystem"], "fstype": "ext4",
                    "options": null, "shared": true, "mount_point": format!("{STORAGE}{}", URL_SAFE.encode(source)),
                });
                self.equal("scsi", storage, &wanted);
            }
            "ephemeral" => {
                let wanted =
                    json!({"source": "tmpfs", "fstype": "tmpfs", "driver_options": null, "shared": null});
                self.equal("ephemeral", storage, &wanted);
                if !text(&storage["mount_point"]).starts_with(EPHEMERAL) {
                    self.refuse(format!("ephemeral: at {}", storage["mount_point"]));
                }
            }
            other => self.refuse(format!("no rule allows a storage {other:?}")),
        }
    }

    fn mount(&mut self, mount: &Value, id: &str, storages: &[Value]) {
        let (typ, source) = (text(&mount["type"]), text(&mount["source"]));
        let what = format!("mount {}", text(&mount["destination"]));
        if typ != "bind" {
            if !["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup"].contains(&typ) {
                self.refuse(format!("{what}: type {typ:?}"));
            }
            return;
        }
        if source == SHM {
            return self.equal(&what, mount, &json!({"options": ["rbind"]}));
        }
        let of_storage = storages.iter().any(|storage| storage["mount_point"] == mount["source"]);
        let copied = source.strip_prefix(SHARED).is_some_and(|name| is_of_container(name, id));
        if !copied && !(of_storage && (source.starts_with(STORAGE) || source.starts_with(EPHEMERAL))) {
            self.refuse(format!("{what}: source {source:?}"));
        }
        let options: Vec<_> = list(&mount["options"]).iter().map(text).collect();
        let allowed = [vec!["rbind", "rprivate", "rw"], vec!["rbind", "rprivate", "ro"], RESOLVER.to_vec()];
        if !allowed.contains(&options) {
            self.refuse(format!("{what}: options {options:?}"));
        }
    }

    fn annotations(&mut self, spec: &Value, id: &str) {
        let sandbox = spec["Annotations"]["io.katacontainers.pkg.oci.container_type"] == "pod_sandbox";
        for (key, value) in spec["Annotations"].as_object().into_iter().flatten() {
            let value = text(value);
            let allowed = match key.as_str() {
                "io.katacontainers.pkg.oci.container_type" => {
                    ["pod_sandbox", "pod_container"].contains(&value)
                }
                // Where containerd has its bundles is not looked at.
                "io.katacontainers.pkg.oci.bundle_path" => value.ends_with(&format!("/{id}")),
                "nerdctl/network-namespace" => sandbox,
                key => {
                    key.starts_with("io.kubernetes.cri.")
                        || key.starts_with("io.kubernetes.container.termination")
                }
            };
            if !allowed {
                self.refuse(format!("annotation {key} = {value:?}"));
            }
        }
        if sandbox && spec["Annotations"]["nerdctl/network-namespace"].is_null() {
            self.refuse("the sandbox container has no annotation nerdctl/network-namespace");
        }
    }

    fn file(&mut self, request: &Value) {
        const TYPE: u64 = 0o170_000;
        const LINK: u64 = 0o120_000;
        let path = text(&request["path"]);
        let Some(below) = path.strip_prefix(SHARED).filter(|below| !has_parent(below)) else {
            return self.refuse(format!("CopyFile to {path:?}"));
        };
        if request["file_mode"].as_u64().unwrap_or(0) & TYPE == LINK {
            let target = request["data"].as_str().and_then(|data| {
                String::from_utf8(base64::engine::general_purpose::STANDARD.decode(data).ok()?).ok()
            });
            let target = target.unwrap_or_default();
            if !below.contains('/') || target.starts_with('/') || has_parent(&target) {
                self.refuse(format!("CopyFile of a link at {path:?} to {target:?}"));
            }
        }
    }
}

/// The sandbox container's resolv.conf.
const RESOLVER: [&str; 5] = ["rbind", "ro", "nosuid", "nodev", "noexec"];

/// `<id>-<16 hexadecimal digits>-<name>`.
fn is_of_container(name: &str, id: &str) -> bool {
    let Some(rest) = name.strip_prefix(id).and_then(|rest| rest.strip_prefix('-')) else { return false };
    rest.split_once('-').is_some_and(|(number, name)| {
        number.len() == 16 && number.bytes().all(|b| b.is_ascii_hexdigit()) && !name.is_empty()
    })
}

fn has_parent(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
