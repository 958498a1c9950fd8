//! Refuses what only containers that share the host's kernel can have, and what the guest's agent does not take,
//! each with one clear error and before a guest is booted for it. Mounts are decided in `volume`, block devices in
//! `device`.

use std::collections::HashMap;
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxNamespaceType};

use crate::error::{Error, Result};
use crate::oci::device::is_block;
use crate::oci::resources;
use crate::oci::role::Role;
use crate::oci::spec::Bundle;

/// Devices that every Linux has under these numbers (major, minor), the guest's kernel included.
const SAME_EVERYWHERE: [(i64, i64); 12] = [
    (1, 3),    // null
    (1, 5),    // zero
    (1, 7),    // full
    (1, 8),    // random
    (1, 9),    // urandom
    (5, 0),    // tty
    (5, 1),    // console
    (5, 2),    // ptmx
    (10, 200), // net/tun
    (10, 229), // fuse
    (10, 236), // mapper/control
    (10, 237), // loop-control
];

/// Namespaces that a VM cannot share with its host: the kernel's name, what is shared, and the pod's setting.
const HOST_NAMESPACES: [(LinuxNamespaceType, &str, &str, &str); 3] = [
    (LinuxNamespaceType::Network, "net", "network", "hostNetwork"),
    (LinuxNamespaceType::Pid, "pid", "process ids", "hostPID"),
    (LinuxNamespaceType::Ipc, "ipc", "inter-process communication", "hostIPC"),
];

/// Refuses the host's network, process ids and inter-process communication, in this order.
pub(crate) fn host_namespaces(requested: [bool; 3]) -> Result<()> {
    let Some((_, (_, _, what, setting))) =
        requested.iter().zip(HOST_NAMESPACES).find(|(requested, _)| **requested)
    else {
        return Ok(());
    };
    Err(Error::invalid(format!(
        "{setting}: a guest has its own kernel and cannot share the host's {what}: remove {setting}"
    )))
}

/// Refuses a spec that no guest can have. `is_the_hosts`: whether a path is the host's namespace of that name (CRI-O
/// names every namespace by a path, the host's as well).
pub(crate) fn check(bundle: &Bundle, is_the_hosts: impl Fn(&str, &Path) -> bool) -> Result<()> {
    // The network is the pod's: a member's network namespace is ignored. The paths of its other namespaces are
    // those of its sandbox's process, which is QEMU: the host's.
    let is_member = matches!(bundle.role, Role::Member { .. });
    let is_hosts = |typ, name| match bundle.namespace(typ) {
        None => !(is_member && typ == LinuxNamespaceType::Network),
        Some(path) => !is_member && path.is_some_and(|path| is_the_hosts(name, path)),
    };
    host_namespaces(HOST_NAMESPACES.map(|(typ, name, ..)| is_hosts(typ, name)))?;
    if let Some(all) = bundle.spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref()) {
        sysctls(all)?;
    }
    if bundle.spec.process().as_ref().is_some_and(|process| process.capabilities().is_none()) {
        return Err(Error::invalid(
            "config.json: no process.capabilities: the guest's agent starts no process without them: add them \
             ({} for none)",
        ));
    }
    if let Some(resources) = bundle.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()) {
        resources::check_huge_pages(resources)?;
    }
    let devices = bundle.spec.linux().as_ref().and_then(|linux| linux.devices().as_ref());
    let of_host: Vec<&LinuxDevice> =
        devices.into_iter().flatten().filter(|d| !is_block(d) && !is_same_everywhere(d)).collect();
    let Some(first) = of_host.first() else { return Ok(()) };
    Err(Error::invalid(format!(
        "device {}{}: a device of the host cannot be passed to a confidential guest: remove it; for privileged \
         containers set privileged_without_host_devices = true for this runtime",
        first.path().display(),
        if of_host.len() > 1 { format!(" and {} more", of_host.len() - 1) } else { String::new() },
    )))
}

/// Refuses kernel settings of no namespace that a pod has to itself: the agent refuses them, without their name.
pub(crate) fn sysctls(all: &HashMap<String, String>) -> Result<()> {
    const KERNEL: [&str; 9] =
        ["domainname", "msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];
    let is_a_pods = |name: &str| {
        let of_kernel = name.strip_prefix("kernel.").is_some_and(|name| KERNEL.contains(&name));
        of_kernel || name.starts_with("fs.mqueue.") || name.starts_with("net.")
    };
    match all.keys().filter(|name| !is_a_pods(name)).min() {
        None => Ok(()),
        Some(name) => Err(Error::invalid(format!(
            "sysctl {name:?}: does not belong to a pod's own network, message queues or shared memory: leave it out"
        ))),
    }
}

fn is_same_everywhere(device: &LinuxDevice) -> bool {
    matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U)
        && SAME_EVERYWHERE.contains(&(device.major(), device.minor()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ContainerId;
    use crate::oci::spec;
    use serde_json::{Value, json};

    fn spec() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/", "capabilities": {}},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "network"}]},
        })
    }

    fn check(spec: &Value) -> Result<()> {
        let id = ContainerId::parse("c1").expect("id");
        let bundle = spec::parse(spec.to_string().as_bytes(), &id).expect("spec");
        super::check(&bundle, |_, path| path == Path::new("/run/ipcns/hosts"))
    }

    #[test]
    fn a_path_of_the_hosts_namespace_is_the_hosts() {
        let mut asked = spec();
        asked["linux"]["namespaces"][1]["path"] = json!("/run/ipcns/pods");
        assert_eq!(check(&asked), Ok(()));
        asked["linux"]["namespaces"][1]["path"] = json!("/run/ipcns/hosts");
        let e = check(&asked).expect_err("the host's");
        assert!(e.to_string().starts_with("hostIPC: a guest has its own kernel"), "{e}");
        asked["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"
        });
        assert_eq!(check(&asked), Ok(()), "a member joins its sandbox");
    }

    #[test]
    fn what_the_agent_does_not_take_is_refused_by_name() {
        let mut asked = spec();
        asked["linux"]["sysctl"] =
            json!({"net.core.somaxconn": "9", "kernel.shmmax": "1", "fs.mqueue.msg_max": "1"});
        assert_eq!(check(&asked), Ok(()));
        asked["linux"]["sysctl"] =
            json!({"net.core.somaxconn": "9", "kernel.panic": "1", "vm.swappiness": "1"});
        let e = check(&asked).expect_err("not a pod's").to_string();
        assert!(e.starts_with("sysctl \"kernel.panic\": does not belong to a pod's own"), "{e}");
        let mut asked = spec();
        asked["process"].as_object_mut().expect("process").remove("capabilities");
        let e = check(&asked).expect_err("none").to_string();
        assert!(e.ends_with("starts no process without them: add them ({} for none)"), "{e}");
    }

    #[test]
    fn huge_pages_are_refused_but_a_limit_of_none() {
        let mut asked = spec();
        asked["linux"]["resources"] = json!({"hugepageLimits": [{"pageSize": "1MB", "limit": 0}]});
        assert_eq!(check(&asked), Ok(()));
        asked["linux"]["resources"] = json!({"hugepageLimits": [{"pageSize": "1MB", "limit": 67_108_864}]});
        let e = check(&asked).expect_err("huge pages");
        assert!(e.to_string().starts_with("huge pages (1MB): a secure VM's memory has none"), "{e}");
    }

    #[test]
    fn a_namespace_that_is_not_listed_is_the_hosts() {
        assert_eq!(check(&spec()), Ok(()));
        for (at, setting) in ["hostPID", "hostIPC", "hostNetwork"].into_iter().enumerate() {
            let mut asked = spec();
            asked["linux"]["namespaces"].as_array_mut().expect("list").remove(at);
            let e = check(&asked).expect_err(setting);
            assert!(e.to_string().starts_with(&format!("{setting}: a guest has its own kernel")), "{e}");
            asked["annotations"] = json!({
                "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"
            });
            assert_eq!(check(&asked).is_ok(), setting == "hostNetwork", "{setting} of a member");
        }
    }

    #[test]
    fn devices_of_the_host_are_refused_by_name_and_number() {
        let device = |typ: &str, major: i64, minor: i64| json!({"path": "/dev/x", "type": typ, "major": major, "minor": minor});
        let with = |devices: Value| {
            let mut asked = spec();
            asked["linux"]["devices"] = devices;
            check(&asked)
        };
        assert_eq!(with(json!([device("c", 10, 229), device("c", 1, 3)])), Ok(()));
        assert_eq!(with(json!([device("b", 8, 0)])), Ok(()), "a disk for the guest");
        let e = with(json!([device("c", 240, 0)])).expect_err("of the host");
        assert!(e.to_string().starts_with("device /dev/x: a device of the host"), "{e}");
        let e =
            with(json!([device("c", 10, 229), device("c", 1, 1), device("p", 1, 3)])).expect_err("memory");
        assert!(e.to_string().starts_with("device /dev/x and 1 more: "), "{e}");
    }
}
