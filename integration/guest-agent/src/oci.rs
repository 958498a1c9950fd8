//! The spec of a request as the `config.json` that crun reads.

use serde_json::{Map, Value, json};

use crate::messages::oci::{LinuxCapabilities, LinuxResources, LinuxSeccomp, LinuxSyscall, Process, Spec};

/// The namespaces that all containers of the sandbox share, as files.
pub(crate) const SHARED_NAMESPACES: &str = "/run/sandbox-ns";

/// The cgroup of a container below the hierarchy's root.
pub(crate) fn cgroup(id: &str) -> String {
    format!("/pods/{id}")
}

/// `pid_namespace`: of a running process to share, else a new one.
pub(crate) fn config(spec: &Spec, id: &str, pid_namespace: Option<&str>) -> Value {
    let linux = &spec.Linux;
    let mut pid = json!({ "type": "pid" });
    if let Some(path) = pid_namespace {
        pid["path"] = path.into();
    }
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": process(&spec.Process, None),
        "root": { "path": spec.Root.Path, "readonly": spec.Root.Readonly },
        "mounts": spec.Mounts.iter().map(|m| json!({
            "destination": m.destination, "source": m.source, "type": m.type_, "options": m.options,
        })).collect::<Vec<_>>(),
        "annotations": spec.Annotations,
        "linux": {
            "namespaces": [
                pid,
                { "type": "mount" },
                { "type": "cgroup" },
                { "type": "ipc", "path": format!("{SHARED_NAMESPACES}/ipc") },
                { "type": "uts", "path": format!("{SHARED_NAMESPACES}/uts") },
            ],
            "cgroupsPath": cgroup(id),
            "resources": resources(&linux.Resources),
            "maskedPaths": linux.MaskedPaths,
            "readonlyPaths": linux.ReadonlyPaths,
            "devices": linux.Devices.iter().map(|d| json!({
                "path": d.Path, "type": d.Type, "major": d.Major, "minor": d.Minor,
                "fileMode": if d.FileMode == 0 { 0o660 } else { d.FileMode }, "uid": d.UID, "gid": d.GID,
            })).collect::<Vec<_>>(),
        },
    });
    if let Some(profile) = linux.Seccomp.as_ref() {
        config["linux"]["seccomp"] = seccomp(profile);
    }
    config
}

fn seccomp(profile: &LinuxSeccomp) -> Value {
    let syscall = |rule: &LinuxSyscall| {
        let args = rule.Args.iter().map(
            |arg| json!({"index": arg.Index, "value": arg.Value, "valueTwo": arg.ValueTwo, "op": arg.Op}),
        );
        let mut value = json!({"names": rule.Names, "action": rule.Action, "args": args.collect::<Vec<_>>()});
        if rule.has_errnoret() {
            value["errnoRet"] = rule.errnoret().into();
        }
        value
    };
    json!({
        "defaultAction": profile.DefaultAction,
        "architectures": profile.Architectures,
        "flags": profile.Flags,
        "syscalls": profile.Syscalls.iter().map(syscall).collect::<Vec<_>>(),
    })
}

/// `inherited`: the capabilities of a process that names none.
pub(crate) fn process(process: &Process, inherited: Option<&LinuxCapabilities>) -> Value {
    let user = &process.User;
    let mut value = json!({
        "terminal": process.Terminal,
        "user": { "uid": user.UID, "gid": user.GID, "additionalGids": user.AdditionalGids },
        "args": process.Args,
        "env": process.Env,
        "cwd": process.Cwd,
        "noNewPrivileges": process.NoNewPrivileges,
        "rlimits": process.Rlimits.iter().map(|limit| json!({
            "type": limit.Type, "hard": limit.Hard, "soft": limit.Soft,
        })).collect::<Vec<_>>(),
    });
    if let Some(size) = process.ConsoleSize.as_ref().filter(|size| size.Height > 0 && size.Width > 0) {
        value["consoleSize"] = json!({ "height": size.Height, "width": size.Width });
    }
    if process.OOMScoreAdj != 0 {
        value["oomScoreAdj"] = process.OOMScoreAdj.into();
    }
    if let Some(sets) = process.Capabilities.as_ref().or(inherited) {
        value["capabilities"] = json!({
            "bounding": sets.Bounding, "effective": sets.Effective, "inheritable": sets.Inheritable,
            "permitted": sets.Permitted, "ambient": sets.Ambient,
        });
    }
    value
}

/// Zero: not set in the request.
fn resources(resources: &LinuxResources) -> Value {
    fn set<T: Into<Value> + Default + PartialEq>(map: &mut Map<String, Value>, name: &str, value: T) {
        if value != T::default() {
            map.insert(name.to_owned(), value.into());
        }
    }
    let (mut memory, mut cpu) = (Map::new(), Map::new());
    set(&mut memory, "limit", resources.Memory.Limit);
    set(&mut memory, "reservation", resources.Memory.Reservation);
    set(&mut memory, "swap", resources.Memory.Swap);
    set(&mut cpu, "shares", resources.CPU.Shares);
    set(&mut cpu, "quota", resources.CPU.Quota);
    set(&mut cpu, "period", resources.CPU.Period);
    json!({ "memory": memory, "cpu": cpu })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::oci::Linux;

    #[test]
    fn what_was_not_asked_is_not_set() {
        let mut spec = Spec::new();
        spec.Linux = Some(Linux::new()).into();
        spec.Linux
            .mut_or_insert_default()
            .Resources
            .mut_or_insert_default()
            .CPU
            .mut_or_insert_default()
            .Shares = 512;
        let config = config(&spec, "c1", None);
        assert_eq!(config["linux"]["resources"], json!({ "memory": {}, "cpu": { "shares": 512 } }));
        assert_eq!(config["process"].get("capabilities"), None);
        assert_eq!(config["linux"]["cgroupsPath"], "/pods/c1");
    }
}
