//! Parses `config.json`, and the process of an exec, and checks them. The reader bounds their length.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount, Process, Spec};

use crate::error::{Context, Error, Result, first_bytes};
use crate::ids::ContainerId;
use crate::limits;
use crate::oci::resources;
use crate::oci::role::Role;
use crate::plan::cpus::CpuList;

/// A container's spec as the client wrote it, checked.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub spec: Spec,
    pub role: Role,
}

/// Parses and checks a container's `config.json`.
pub(crate) fn parse(bytes: &[u8], id: &ContainerId) -> Result<Bundle> {
    let spec: Spec =
        serde_json::from_slice(bytes).map_err(|e| Error::invalid(format!("config.json: {e}")))?;
    let process = spec.process().as_ref().ok_or_else(|| missing("process"))?;
    check_process(process).context("config.json")?;
    if spec.root().is_none() {
        return Err(missing("root"));
    }
    if spec.linux().is_none() {
        return Err(missing("linux"));
    }
    let mounts = spec.mounts().as_ref().map_or(0, Vec::len);
    if mounts > limits::spec::SPEC_MOUNTS {
        return Err(Error::invalid(format!(
            "config.json: {mounts} mounts, at most {} are allowed",
            limits::spec::SPEC_MOUNTS
        )));
    }
    let none = HashMap::new();
    let role = Role::from_annotations(spec.annotations().as_ref().unwrap_or(&none), id)?;
    Ok(Bundle { spec, role })
}

/// Truncates a name that the kernel would refuse as too long. None: it is empty.
pub(crate) fn hostname(name: &str) -> Option<String> {
    let name = first_bytes(name, limits::spec::HOSTNAME_BYTES);
    (!name.is_empty()).then(|| name.to_owned())
}

/// An exec's process, parsed and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecProcess(pub(super) Process);

/// Parses and checks an exec's process.
pub fn parse_process(bytes: &[u8]) -> Result<ExecProcess> {
    let process: Process =
        serde_json::from_slice(bytes).map_err(|e| Error::invalid(format!("exec process: {e}")))?;
    check_process(&process).context("exec process")?;
    Ok(ExecProcess(process))
}

fn check_process(process: &Process) -> Result<()> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::invalid("process.args is empty: there is nothing to run"));
    }
    if !process.cwd().is_absolute() {
        return Err(Error::invalid(format!("process.cwd {:?} is not an absolute path", process.cwd())));
    }
    let strings = process.args().iter().flatten().chain(process.env().iter().flatten());
    // As the kernel counts them, with a pointer to each (Linux: fs/exec.c, bprm_stack_limits).
    let bytes: usize = strings.map(|s| s.len() + 1 + size_of::<usize>()).sum();
    if bytes > limits::spec::PROCESS_BYTES {
        return Err(Error::invalid(format!(
            "process: arguments and environment have {bytes} bytes, at most {} are allowed",
            limits::spec::PROCESS_BYTES
        )));
    }
    Ok(())
}

pub(crate) fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|o| o == "bind" || o == "rbind")
}

fn missing(what: &str) -> Error {
    Error::invalid(format!("config.json: no {what:?} section"))
}

impl Bundle {
    /// The pod's network namespace; None if the network is the host's.
    pub fn network_namespace(&self) -> Option<PathBuf> {
        self.namespace(LinuxNamespaceType::Network)?.map(Path::to_path_buf)
    }

    /// CRI gives a path for the pid namespace if the pod's containers share one.
    pub fn shares_pid_namespace(&self) -> bool {
        self.namespace(LinuxNamespaceType::Pid).flatten().is_some()
    }

    /// A namespace that is not listed is the host's. Some(None): it is listed without a path.
    pub(super) fn namespace(&self, wanted: LinuxNamespaceType) -> Option<Option<&Path>> {
        let linux = self.spec.linux().as_ref()?;
        let found = linux.namespaces().iter().flatten().find(|n| n.typ() == wanted)?;
        Some(found.path().as_deref().filter(|p| !p.as_os_str().is_empty()))
    }

    /// The root file system's directory on the host: `root.path`, relative to the bundle unless it is absolute.
    pub fn root(&self, bundle: &Path) -> PathBuf {
        self.spec.root().as_ref().map_or_else(|| bundle.join("rootfs"), |root| bundle.join(root.path()))
    }

    /// The host's CPUs that the container may use; empty: no restriction.
    pub fn cpus(&self) -> Result<CpuList> {
        resources::cpus(self.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()))
    }

    /// Adds kernel settings; those of the container take precedence.
    pub(crate) fn add_sysctls(&mut self, more: &HashMap<String, String>) {
        let Some(linux) = self.spec.linux_mut() else { return };
        let mut all = more.clone();
        all.extend(linux.sysctl().clone().unwrap_or_default());
        if !all.is_empty() {
            linux.set_sysctl(Some(all));
        }
    }

    /// Adds a bind mount of the host, unless the spec already mounts something at `destination`.
    pub(crate) fn add_bind(&mut self, destination: &Path, source: &Path) {
        let mut mounts = self.spec.mounts().clone().unwrap_or_default();
        if mounts.iter().any(|mount| mount.destination() == destination) {
            return;
        }
        let read_only = self.spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
        let mut mount = Mount::default();
        mount
            .set_destination(destination.into())
            .set_typ(Some("bind".into()))
            .set_source(Some(source.into()));
        let access = if read_only { "ro" } else { "rw" };
        mount.set_options(Some(["rbind", "rprivate", access].map(str::to_owned).to_vec()));
        mounts.push(mount);
        self.spec.set_mounts(Some(mounts));
    }

    /// The user of the container's process.
    pub(crate) fn uid(&self) -> u32 {
        self.spec.process().as_ref().map_or(0, |process| process.user().uid())
    }

    pub fn cgroups_path(&self) -> Option<String> {
        self.spec.linux().as_ref()?.cgroups_path().as_ref().map(|p| p.display().to_string())
    }

    /// None: not specified.
    pub fn hostname(&self) -> Option<String> {
        self.spec.hostname().as_deref().and_then(hostname)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn whole() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/", "env": ["A=b"]},
            "root": {"path": "rootfs"},
            "hostname": "h",
            "mounts": [],
            "linux": {"cgroupsPath": "/default/c1", "namespaces": [
                {"type": "pid"}, {"type": "network", "path": "/run/netns/x"}, {"type": "mount"}
            ]},
        })
    }

    fn read(value: &Value) -> Result<Bundle> {
        parse(value.to_string().as_bytes(), &ContainerId::parse("c1").expect("id"))
    }

    #[test]
    fn the_root_is_below_the_bundle_unless_its_path_is_absolute() {
        let id = ContainerId::parse("c1").expect("id");
        for (path, wanted) in [("rootfs", "/b/rootfs"), ("/var/lib/merged", "/var/lib/merged")] {
            let mut config = whole();
            config["root"]["path"] = path.into();
            let bundle = parse(config.to_string().as_bytes(), &id).expect("parse");
            assert_eq!(bundle.root(Path::new("/b")), Path::new(wanted));
        }
    }

    #[test]
    fn what_the_pod_needs_is_found() {
        let bundle = read(&whole()).expect("parse");
        assert_eq!(bundle.network_namespace(), Some("/run/netns/x".into()));
        assert!(!bundle.shares_pid_namespace());
        assert_eq!(bundle.cgroups_path().as_deref(), Some("/default/c1"));
        assert_eq!((bundle.hostname().as_deref(), bundle.role), (Some("h"), Role::Single));
    }

    #[test]
    fn what_a_sandbox_adds_does_not_replace_what_a_container_has() {
        let mut value = whole();
        value["mounts"] = json!([{"destination": "/etc/hosts", "type": "bind", "source": "/own"}]);
        value["linux"]["sysctl"] = json!({"a": "own"});
        value["root"]["readonly"] = true.into();
        let mut bundle = read(&value).expect("parse");
        for name in ["/etc/hosts", "/etc/hostname"] {
            bundle.add_bind(Path::new(name), Path::new("/pod"));
        }
        bundle.add_sysctls(&[("a".into(), "pod".into()), ("b".into(), "pod".into())].into());
        let spec = serde_json::to_value(&bundle.spec).expect("json");
        let options = json!(["rbind", "rprivate", "ro"]);
        let added =
            json!({"destination": "/etc/hostname", "type": "bind", "source": "/pod", "options": options});
        assert_eq!(spec["mounts"], json!([value["mounts"][0], added]));
        assert_eq!(spec["linux"]["sysctl"], json!({"a": "own", "b": "pod"}));
    }

    #[test]
    fn each_missing_part_is_an_error_that_names_it() {
        for (part, wanted) in [
            ("process", "config.json: no \"process\" section"),
            ("root", "config.json: no \"root\" section"),
            ("linux", "config.json: no \"linux\" section"),
        ] {
            let mut value = whole();
            value.as_object_mut().expect("object").remove(part);
            assert_eq!(read(&value).expect_err(part).to_string(), wanted);
        }
        for (pointer, bad, wanted) in [
            ("/process/args", json!([]), "config.json: process.args is empty: there is nothing to run"),
            ("/process/cwd", json!("x"), "config.json: process.cwd \"x\" is not an absolute path"),
        ] {
            let mut value = whole();
            *value.pointer_mut(pointer).expect(pointer) = bad;
            assert_eq!(read(&value).expect_err(pointer).to_string(), wanted);
        }
    }

    #[test]
    fn oversized_specs_are_refused() {
        let mut value = whole();
        value["mounts"] = Value::Array(vec![json!({"destination": "/x"}); 5000]);
        assert!(read(&value).expect_err("mounts").to_string().contains("5000 mounts"));
        let mut value = whole();
        value["process"]["env"] = json!(["A".repeat(10 << 20)]);
        assert!(read(&value).expect_err("env").to_string().contains("10485"));
        assert!(parse(b"[[[[", &ContainerId::parse("c1").expect("id")).is_err());
    }
}
