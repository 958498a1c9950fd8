//! What a request must and must not contain: the agent's contract, and what policies of real guests refuse.
//!
//! Pure, and stricter than the real agent, so that a host's mistake shows here and not on a customer's machine.

use std::collections::HashMap;

use base64::Engine;

use crate::format;
use crate::guest_pull;
use crate::messages::agent::{
    CreateContainerRequest, CreateSandboxRequest, ExecProcessRequest, FSGroup, Storage,
};
use crate::messages::oci::{Linux, Process, Spec};
use crate::messages::types::FSGroupChangePolicy;
use crate::sysctl;

/// All guest paths of the protocol are below it.
pub(crate) const GUEST_DIR: &str = "/run/kata-containers";

const CONTAINER_TYPE: &str = "io.katacontainers.pkg.oci.container_type";
const INITDATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";
const NETWORK_NAMESPACE: &str = "nerdctl/network-namespace";
/// Where CRI's implementations say whether a container is the sandbox's.
pub(crate) const CRI_TYPES: [&str; 2] =
    ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];
const SHM_OPTIONS: [&str; 4] = ["noexec", "nosuid", "nodev", "mode=1777"];

/// Where disks of volumes are mounted.
const DISKS: &str = "/run/kata-containers/sandbox/storage/";

type Checked = Result<(), String>;

/// `refuse("what", condition)` reads as: refuse if the condition holds.
fn refuse(what: impl Into<String>, wrong: bool) -> Checked {
    if wrong { Err(what.into()) } else { Ok(()) }
}

pub(crate) fn container_id(id: &str) -> Checked {
    let mut chars = id.chars();
    let good = chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && id.len() >= 2
        && chars.all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
    refuse(format!("invalid container ID {id}"), !good)
}

pub(crate) fn sandbox(req: &CreateSandboxRequest) -> Checked {
    refuse("CreateSandbox without sandbox_id", req.sandbox_id.is_empty())?;
    refuse(format!("hostname {:?} is longer than 64 bytes", req.hostname), req.hostname.len() > 64)?;
    refuse("guest_hook_path is set: policies refuse it", !req.guest_hook_path.is_empty())?;
    refuse("kernel_modules are set: policies refuse them", !req.kernel_modules.is_empty())?;
    refuse("sandbox_pidns is set: policies refuse it", req.sandbox_pidns)?;
    for s in &req.storages {
        let shm = s.driver == "ephemeral"
            && (s.source.as_str(), s.fstype.as_str(), s.mount_point.as_str())
                == ("shm", "tmpfs", "/run/kata-containers/sandbox/shm")
            && s.options.iter().take(4).eq(SHM_OPTIONS.iter())
            && s.options.len() == 5
            && s.options.iter().skip(4).all(|o| size_option(o))
            && !s.shared
            && s.fs_group.is_none();
        refuse(format!("a sandbox has one storage, its shared memory, and policies pin it: {s}"), !shm)?;
    }
    refuse("more than one storage of the sandbox", req.storages.len() > 1)
}

fn size_option(option: &str) -> bool {
    option.strip_prefix("size=").is_some_and(|n| n.parse::<u64>().is_ok_and(|n| n > 0))
}

pub(crate) fn container(req: &CreateContainerRequest, seccomp: bool) -> Checked {
    let id = &req.container_id;
    container_id(id)?;
    refuse(
        format!("exec_id {:?} of the first process is not the container's id", req.exec_id),
        req.exec_id != *id,
    )?;
    refuse("string_user is set: no host sets it", req.string_user.is_some())?;
    let ports = [req.stdin_port, req.stdout_port, req.stderr_port];
    refuse("stdio ports are set: the guest does not listen for them", ports != [0, 0, 0])?;
    refuse("shared_mounts are set", !req.shared_mounts.is_empty())?;
    for s in &req.storages {
        storage(s, id)?;
    }
    let mut names: Vec<_> = req.devices.iter().map(|device| &device.container_path).collect();
    names.sort_unstable();
    refuse("two devices have one container_path", names.windows(2).any(|pair| pair[0] == pair[1]))?;
    rootfs(&req.storages)?;
    let spec = req.OCI.as_ref().ok_or("CreateContainer without a spec")?;
    self::spec(spec, id)?;
    refuse("seccomp is set: policies refuse it", spec.Linux.Seccomp.is_some() && !seccomp)?;
    for m in &spec.Mounts {
        let from = &m.source;
        let of_call =
            req.storages.iter().any(|s| s.driver == "scsi" && s.mount_point == *from && m.type_ == "bind");
        refuse(
            format!("mount {:?}: {from} is not the mount point of a storage of the call", m.destination),
            from.starts_with(DISKS) && !of_call,
        )?;
    }
    for device in &req.devices {
        refuse(
            format!("device {:?}: not an address like 0:3", device.id),
            device.type_ == "scsi" && scsi(&device.id).is_none(),
        )?;
        let listed =
            spec.Linux.Devices.iter().any(|d| d.Path == device.container_path && "bc".contains(&d.Type));
        refuse(format!("device {}: no entry in Linux.Devices has its container_path", device.id), !listed)?;
    }
    Ok(())
}

fn spec(spec: &Spec, id: &str) -> Checked {
    refuse("the spec has no version", spec.Version.is_empty())?;
    refuse("hooks are set: policies refuse them", spec.Hooks.is_some())?;
    let root = format!("{GUEST_DIR}/{id}/rootfs");
    refuse(format!("Root.Path is {:?}, not {root}", spec.Root.Path), spec.Root.Path != root)?;
    refuse("the spec has no process", spec.Process.is_none())?;
    process(&spec.Process)?;
    refuse("missing process capabilities", spec.Process.Capabilities.is_none())?;
    annotations(&spec.Annotations)?;
    refuse("the spec has no Linux part", spec.Linux.is_none())?;
    linux(&spec.Linux)?;
    for m in &spec.Mounts {
        let what = format!("mount {:?} from {:?}", m.destination, m.source);
        refuse(format!("{what}: destination is not absolute"), !m.destination.starts_with('/'))?;
        refuse(format!("{what}: `..` in a path"), has_parent(&m.destination) || has_parent(&m.source))?;
    }
    Ok(())
}

fn has_parent(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

fn annotations(annotations: &HashMap<String, String>) -> Checked {
    let typ = annotations.get(CONTAINER_TYPE).map(String::as_str);
    let known = ["pod_sandbox", "pod_container", "single_container"];
    refuse(
        format!("annotation {CONTAINER_TYPE} is {typ:?}, not one of {known:?}"),
        !typ.is_some_and(|t| known.contains(&t)),
    )?;
    let cri = CRI_TYPES.iter().find_map(|name| annotations.get(*name)).map(String::as_str);
    let namespace = annotations.get(NETWORK_NAMESPACE);
    refuse(
        format!(
            "annotation {NETWORK_NAMESPACE} is {namespace:?} of a {typ:?}: policies want it of the sandbox alone"
        ),
        namespace.is_some_and(|path| !path.starts_with('/') || typ != Some("pod_sandbox")),
    )?;
    let agree = match cri {
        Some("sandbox") => typ == Some("pod_sandbox"),
        Some("container") => typ == Some("pod_container"),
        _ => true,
    };
    refuse(format!("container type {typ:?} against CRI's {cri:?}"), !agree)?;
    refuse(
        format!("annotation {INITDATA} must not reach the guest's spec"),
        annotations.contains_key(INITDATA),
    )
}

fn process(process: &Process) -> Checked {
    refuse("the process has no args", process.Args.first().is_none_or(String::is_empty))?;
    refuse(format!("working directory {:?} is not absolute", process.Cwd), !process.Cwd.starts_with('/'))?;
    refuse("SelinuxLabel is set: policies refuse it", !process.SelinuxLabel.is_empty())
}

fn linux(linux: &Linux) -> Checked {
    refuse("MountLabel is set: policies refuse it", !linux.MountLabel.is_empty())?;
    refuse("RootfsPropagation is set: policies refuse it", !linux.RootfsPropagation.is_empty())?;
    refuse("IntelRdt is set: policies refuse it", linux.IntelRdt.is_some())?;
    let mapped = !linux.UIDMappings.is_empty() || !linux.GIDMappings.is_empty();
    refuse("user or group mappings are set: policies refuse them", mapped)?;
    for n in &linux.Namespaces {
        refuse(
            format!("namespace {:?}: policies know ipc, uts and mount", n.Type),
            !KEPT.contains(&n.Type.as_str()),
        )?;
        refuse(format!("namespace {:?} has a path of the host: {:?}", n.Type, n.Path), !n.Path.is_empty())?;
    }
    for kept in KEPT {
        let times = linux.Namespaces.iter().filter(|n| n.Type == kept).count();
        refuse(format!("namespace {kept:?} {times} times"), times != 1)?;
    }
    linux.Sysctl.keys().try_for_each(|name| sysctl::check(name))?;
    let Some(r) = linux.Resources.as_ref() else { return Ok(()) };
    refuse("Resources.Devices is set: the agent has its own rules", !r.Devices.is_empty())?;
    refuse("Resources.Pids is set: policies refuse it", r.Pids.is_some())?;
    refuse("Resources.BlockIO is set: policies refuse it", r.BlockIO.is_some())?;
    refuse("Resources.Network is set: policies refuse it", r.Network.is_some())?;
    refuse("CPU.Cpus or CPU.Mems name the host's", !r.CPU.Cpus.is_empty() || !r.CPU.Mems.is_empty())
}

const KEPT: [&str; 3] = ["ipc", "uts", "mount"];

/// A root file system that the guest makes is the only one: policies count the storages.
fn rootfs(storages: &[Storage]) -> Checked {
    let pulls = storages.iter().filter(|s| s.driver == guest_pull::DRIVER).count();
    refuse(format!("{pulls} storages {}: policies want one", guest_pull::DRIVER), pulls > 1)?;
    let beside = storages.iter().find(|s| pulls == 1 && (s.driver == "overlayfs" || s.fstype == "erofs"));
    refuse(
        format!("storage {}: beside one of {}", beside.map_or("", |s| &s.driver), guest_pull::DRIVER),
        beside.is_some(),
    )
}

/// A storage of container `id`.
fn storage(s: &Storage, id: &str) -> Checked {
    let at = &s.mount_point;
    let what = format!("storage {} {:?} at {at:?}", s.driver, s.source);
    refuse(
        format!("{what}: not below {GUEST_DIR}"),
        !at.starts_with(&format!("{GUEST_DIR}/")) || has_parent(at),
    )?;
    refuse(format!("{what}: an owner of what is no disk"), s.fs_group.is_some() && s.driver != "scsi")?;
    let own = format!("{GUEST_DIR}/{id}/");
    let disk = matches!(s.driver.as_str(), "blk-ccw" | "scsi" | "blk");
    let below = at.starts_with(&own) && *at != format!("{own}rootfs");
    refuse(
        format!("{what}: a layer below the container's directory makes RemoveContainer fail"),
        disk && below,
    )?;
    refuse(
        format!("{what}: shared, but in the container's own directory"),
        s.shared && at.starts_with(&own),
    )?;
    match s.driver.as_str() {
        "blk-ccw" => {
            refuse(format!("{what}: policies take no such option"), !s.driver_options.is_empty())?;
            refuse(format!("{what}: not a CCW bus id like 0.0.0007"), ccw(&s.source).is_none())
        }
        "scsi" => volume_disk(s, &what),
        "ephemeral" => {
            let good = matches!(s.source.as_str(), "shm" | "tmpfs" | "nodev") && s.fstype == "tmpfs";
            refuse(format!("{what}: only tmpfs from shm, tmpfs or nodev"), !good)
        }
        "local" => {
            refuse(format!("{what}: source and fstype are local"), s.source != "local" || s.fstype != "local")
        }
        "overlayfs" => {
            let good = matches!(s.source.as_str(), "none" | "overlay") && s.fstype == "overlay";
            refuse(format!("{what}: source and fstype are overlay"), !good)?;
            refuse(format!("{what}: no lowerdir"), !s.options.iter().any(|o| o.starts_with("lowerdir=")))
        }
        guest_pull::DRIVER => {
            refuse(
                format!("{what}: fstype is {:?}, policies want overlay", s.fstype),
                s.fstype != "overlay",
            )?;
            refuse(format!("{what}: options are set: policies refuse them"), !s.options.is_empty())?;
            refuse(format!("{what}: policies want {own}rootfs"), *at != format!("{own}rootfs"))?;
            refuse(format!("{what}: no image"), s.source.is_empty())
        }
        other => Err(format!("Failed to find the storage handler of {other:?}")),
    }
}

/// A volume's disk, with all that generated policies compare.
fn volume_disk(s: &Storage, what: &str) -> Checked {
    refuse(format!("{what}: not an address like 0:3"), scsi(&s.source).is_none())?;
    let wanted = format!("{DISKS}{}", base64::engine::general_purpose::URL_SAFE.encode(&s.source));
    refuse(format!("{what}: its mount point is not {wanted}"), s.mount_point != wanted)?;
    refuse(format!("{what}: a volume's disk is shared"), !s.shared)?;
    refuse(format!("{what}: only ext4 is made"), s.fstype != "ext4")?;
    let options: Vec<&str> = s.driver_options.iter().map(String::as_str).collect();
    let mounted: Vec<&str> = s.options.iter().map(String::as_str).collect();
    match (options.as_slice(), mounted.as_slice()) {
        ([format::ENCRYPT, format::CREATE], []) | ([format::CREATE], ["discard"]) => {}
        other => {
            return Err(format!("{what}: policies know an encrypted disk or a plain one, not {other:?}"));
        }
    }
    let group = s.fs_group.as_ref();
    let always = |group: &FSGroup| group.group_change_policy == FSGroupChangePolicy::Always.into();
    refuse(
        format!("{what}: its group is 0 or not for all files"),
        group.is_some_and(|group| group.group_id == 0 || !always(group)),
    )
}

/// `0.<ssid>.<device number>` as the kernel writes it.
pub(crate) fn ccw(id: &str) -> Option<String> {
    let mut parts = id.split('.');
    let (css, ssid, devno) = (parts.next()?, parts.next()?, parts.next()?);
    let ssid = ssid.parse::<u8>().ok().filter(|n| *n <= 3)?;
    let devno = u16::from_str_radix(devno, 16).ok()?;
    (css == "0" && parts.next().is_none()).then(|| format!("0.{ssid}.{devno:04x}"))
}

/// `<id>:<lun>`, digits alone.
pub(crate) fn scsi(address: &str) -> Option<(u32, u32)> {
    let (id, lun) = address.split_once(':')?;
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    Some((number(id)?, number(lun)?))
}

pub(crate) fn exec(req: &ExecProcessRequest) -> Checked {
    refuse("ExecProcess without exec_id", req.exec_id.is_empty())?;
    refuse("string_user is set: no host sets it", req.string_user.is_some())?;
    let ports = [req.stdin_port, req.stdout_port, req.stderr_port];
    refuse("stdio ports are set: the guest does not listen for them", ports != [0, 0, 0])?;
    let p = req.process.as_ref().ok_or("ExecProcess without a process")?;
    process(p)?;
    refuse("ApparmorProfile of an exec is set: policies refuse it", !p.ApparmorProfile.is_empty())?;
    let empty = p.Capabilities.as_ref().is_none_or(|c| {
        [&c.Bounding, &c.Effective, &c.Inheritable, &c.Permitted, &c.Ambient].iter().all(|set| set.is_empty())
    });
    refuse("capabilities of an exec are set: policies refuse them, the container's are taken", !empty)
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
