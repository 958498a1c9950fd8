//! Our types as the agent's messages.

use std::net::IpAddr;

use oci_spec::runtime as oci;
use protobuf::{EnumOrUnknown, MessageField};

use crate::agent::messages::{agent as pb, oci as grpc, types};
use crate::ccw::DevNo;
use crate::oci::device::GuestDevice;
use crate::oci::guest_spec::{GuestProcess, GuestSpec};
use crate::oci::storage::Storage;
use crate::plan::network::{InterfacePlan, NeighbourPlan, RoutePlan};

pub(super) fn storage(storage: &Storage) -> pb::Storage {
    pb::Storage {
        driver: storage.driver.clone(),
        driver_options: storage.driver_options.clone(),
        source: storage.source.clone(),
        fstype: storage.fstype.clone(),
        options: storage.options.clone(),
        mount_point: storage.mount_point.clone(),
        fs_group: storage.fs_group.map(fs_group).into(),
        shared: storage.shared,
        ..Default::default()
    }
}

fn fs_group(group_id: u32) -> pb::FSGroup {
    let group_change_policy = types::FSGroupChangePolicy::Always.into();
    pb::FSGroup { group_id, group_change_policy, ..Default::default() }
}

pub(super) fn guest_device(device: &GuestDevice) -> pb::Device {
    pb::Device {
        id: device.id.clone(),
        type_: device.driver.clone(),
        container_path: device.container_path.clone(),
        ..Default::default()
    }
}

fn family(v6: bool) -> EnumOrUnknown<types::IPFamily> {
    EnumOrUnknown::new(if v6 { types::IPFamily::v6 } else { types::IPFamily::v4 })
}

fn address(ip: IpAddr, mask: String) -> types::IPAddress {
    types::IPAddress { family: family(ip.is_ipv6()), address: ip.to_string(), mask, ..Default::default() }
}

pub(super) fn interface(plan: &InterfacePlan, devno: DevNo) -> pb::UpdateInterfaceRequest {
    const IFF_NOARP: u32 = 0x80;
    let interface = types::Interface {
        device: plan.name.clone(),
        name: plan.name.clone(),
        IPAddresses: plan.addresses.iter().map(|(ip, prefix)| address(*ip, prefix.to_string())).collect(),
        mtu: plan.mtu.into(),
        hwAddr: plan.mac.to_string(),
        devicePath: devno.guest(),
        raw_flags: if plan.no_arp { IFF_NOARP } else { 0 },
        ..Default::default()
    };
    pb::UpdateInterfaceRequest { interface: Some(interface).into(), ..Default::default() }
}

pub(super) fn routes(plans: &[RoutePlan]) -> pb::UpdateRoutesRequest {
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    let route = |plan: &RoutePlan| types::Route {
        dest: plan.destination.map(|(ip, prefix)| format!("{ip}/{prefix}")).unwrap_or_default(),
        gateway: text(plan.gateway),
        device: plan.device.clone(),
        source: text(plan.source),
        scope: plan.scope.into(),
        family: family(plan.ipv6),
        flags: plan.flags,
        mtu: plan.mtu,
        ..Default::default()
    };
    let routes = pb::Routes { Routes: plans.iter().map(route).collect(), ..Default::default() };
    pb::UpdateRoutesRequest { routes: Some(routes).into(), ..Default::default() }
}

pub(super) fn neighbours(plans: &[NeighbourPlan]) -> pb::AddARPNeighborsRequest {
    let neighbour = |plan: &NeighbourPlan| types::ARPNeighbor {
        toIPAddress: Some(address(plan.address, String::new())).into(),
        device: plan.device.clone(),
        lladdr: plan.mac.to_string(),
        state: plan.state.into(),
        flags: plan.flags.into(),
        ..Default::default()
    };
    let neighbours =
        pb::ARPNeighbors { ARPNeighbors: plans.iter().map(neighbour).collect(), ..Default::default() };
    pb::AddARPNeighborsRequest { neighbors: Some(neighbours).into(), ..Default::default() }
}

fn list<T: Clone>(value: Option<&Vec<T>>) -> Vec<T> {
    value.cloned().unwrap_or_default()
}

fn text(value: Option<&String>) -> String {
    value.cloned().unwrap_or_default()
}

pub(super) fn process(process: &GuestProcess) -> grpc::Process {
    let p = &process.0;
    let user = p.user();
    grpc::Process {
        Terminal: p.terminal().unwrap_or(false),
        ConsoleSize: console_size(p),
        User: Some(grpc::User {
            UID: user.uid(),
            GID: user.gid(),
            AdditionalGids: list(user.additional_gids().as_ref()),
            Username: text(user.username().as_ref()),
            ..Default::default()
        })
        .into(),
        Args: list(p.args().as_ref()),
        Env: list(p.env().as_ref()),
        Cwd: p.cwd().display().to_string(),
        Capabilities: p.capabilities().as_ref().map(capabilities).into(),
        Rlimits: p.rlimits().iter().flatten().map(rlimit).collect(),
        NoNewPrivileges: p.no_new_privileges().unwrap_or(false),
        ApparmorProfile: text(p.apparmor_profile().as_ref()),
        OOMScoreAdj: p.oom_score_adj().unwrap_or(0).into(),
        SelinuxLabel: text(p.selinux_label().as_ref()),
        ..Default::default()
    }
}

fn console_size(p: &oci::Process) -> MessageField<grpc::Box> {
    let size = p.console_size().as_ref().map(|size| grpc::Box {
        Height: u32::try_from(size.height()).unwrap_or(u32::MAX),
        Width: u32::try_from(size.width()).unwrap_or(u32::MAX),
        ..Default::default()
    });
    size.into()
}

fn capabilities(c: &oci::LinuxCapabilities) -> grpc::LinuxCapabilities {
    // The order of the names has no meaning; sorting them makes requests comparable.
    let names = |set: &Option<oci::Capabilities>| {
        let mut names: Vec<String> =
            set.iter().flatten().map(|c| format!("CAP_{c}").replace("CAP_CAP_", "CAP_")).collect();
        names.sort();
        names
    };
    grpc::LinuxCapabilities {
        Bounding: names(c.bounding()),
        Effective: names(c.effective()),
        Inheritable: names(c.inheritable()),
        Permitted: names(c.permitted()),
        Ambient: names(c.ambient()),
        ..Default::default()
    }
}

fn rlimit(limit: &oci::PosixRlimit) -> grpc::POSIXRlimit {
    grpc::POSIXRlimit {
        Type: name_of(limit.typ()),
        Hard: limit.hard(),
        Soft: limit.soft(),
        ..Default::default()
    }
}

pub(crate) fn spec(spec: &GuestSpec) -> grpc::Spec {
    let s = &spec.0;
    grpc::Spec {
        Version: s.version().clone(),
        Process: s.process().as_ref().map(|p| process(&GuestProcess(p.clone()))).into(),
        Root: s
            .root()
            .as_ref()
            .map(|r| grpc::Root {
                Path: r.path().display().to_string(),
                Readonly: r.readonly().unwrap_or(false),
                ..Default::default()
            })
            .into(),
        Hostname: text(s.hostname().as_ref()),
        Mounts: s.mounts().iter().flatten().map(mount).collect(),
        Annotations: s.annotations().clone().unwrap_or_default(),
        Linux: s.linux().as_ref().map(linux).into(),
        ..Default::default()
    }
}

fn mount(m: &oci::Mount) -> grpc::Mount {
    grpc::Mount {
        destination: m.destination().display().to_string(),
        source: m.source().as_ref().map(|s| s.display().to_string()).unwrap_or_default(),
        type_: text(m.typ().as_ref()),
        options: list(m.options().as_ref()),
        ..Default::default()
    }
}

fn linux(l: &oci::Linux) -> grpc::Linux {
    grpc::Linux {
        Sysctl: l.sysctl().clone().unwrap_or_default(),
        Resources: l.resources().as_ref().map(resources).into(),
        CgroupsPath: l.cgroups_path().as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
        Namespaces: l.namespaces().iter().flatten().map(namespace).collect(),
        Devices: l.devices().iter().flatten().map(device).collect(),
        RootfsPropagation: text(l.rootfs_propagation().as_ref()),
        MaskedPaths: list(l.masked_paths().as_ref()),
        ReadonlyPaths: list(l.readonly_paths().as_ref()),
        MountLabel: text(l.mount_label().as_ref()),
        Seccomp: l.seccomp().as_ref().map(seccomp).into(),
        ..Default::default()
    }
}

/// The name of a value in OCI specs.
fn name_of(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn seccomp(s: &oci::LinuxSeccomp) -> grpc::LinuxSeccomp {
    grpc::LinuxSeccomp {
        DefaultAction: name_of(s.default_action()),
        Architectures: s.architectures().iter().flatten().map(name_of).collect(),
        Flags: s.flags().iter().flatten().map(name_of).collect(),
        Syscalls: s.syscalls().iter().flatten().map(syscall).collect(),
        ..Default::default()
    }
}

fn syscall(s: &oci::LinuxSyscall) -> grpc::LinuxSyscall {
    let arg = |a: &oci::LinuxSeccompArg| grpc::LinuxSeccompArg {
        Index: u64::try_from(a.index()).unwrap_or(u64::MAX),
        Value: a.value(),
        ValueTwo: a.value_two().unwrap_or(0),
        Op: name_of(a.op()),
        ..Default::default()
    };
    grpc::LinuxSyscall {
        Names: s.names().clone(),
        Action: name_of(s.action()),
        ErrnoRet: s.errno_ret().map(grpc::linux_syscall::ErrnoRet::Errnoret),
        Args: s.args().iter().flatten().map(arg).collect(),
        ..Default::default()
    }
}

/// By the specification's names; the crate's `Display` gives the kernel's (`mnt`).
fn namespace(n: &oci::LinuxNamespace) -> grpc::LinuxNamespace {
    grpc::LinuxNamespace { Type: name_of(n.typ()), ..Default::default() }
}

fn device(d: &oci::LinuxDevice) -> grpc::LinuxDevice {
    grpc::LinuxDevice {
        Path: d.path().display().to_string(),
        Type: d.typ().as_str().to_owned(),
        Major: d.major(),
        Minor: d.minor(),
        FileMode: d.file_mode().unwrap_or(0),
        UID: d.uid().unwrap_or(0),
        GID: d.gid().unwrap_or(0),
        ..Default::default()
    }
}

pub(super) fn resources(r: &oci::LinuxResources) -> grpc::LinuxResources {
    grpc::LinuxResources {
        Memory: r
            .memory()
            .as_ref()
            .map(|m| grpc::LinuxMemory {
                Limit: m.limit().unwrap_or(0),
                Reservation: m.reservation().unwrap_or(0),
                Swap: m.swap().unwrap_or(0),
                Swappiness: m.swappiness().unwrap_or(0),
                DisableOOMKiller: m.disable_oom_killer().unwrap_or(false),
                ..Default::default()
            })
            .into(),
        CPU: r
            .cpu()
            .as_ref()
            .map(|c| grpc::LinuxCPU {
                Shares: c.shares().unwrap_or(0),
                Quota: c.quota().unwrap_or(0),
                Period: c.period().unwrap_or(0),
                RealtimeRuntime: c.realtime_runtime().unwrap_or(0),
                RealtimePeriod: c.realtime_period().unwrap_or(0),
                ..Default::default()
            })
            .into(),
        HugepageLimits: r
            .hugepage_limits()
            .iter()
            .flatten()
            .map(|h| grpc::LinuxHugepageLimit {
                Pagesize: h.page_size().clone(),
                Limit: u64::try_from(h.limit()).unwrap_or(0),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::vm::MacAddr;

    #[test]
    fn namespaces_have_the_specifications_names() {
        use oci::LinuxNamespaceType::{Ipc, Mount, Uts};
        for (typ, name) in [(Ipc, "ipc"), (Uts, "uts"), (Mount, "mount")] {
            let mut given = oci::LinuxNamespace::default();
            given.set_typ(typ);
            assert_eq!(namespace(&given).Type, name);
        }
    }

    #[test]
    fn a_seccomp_profile_arrives_whole() {
        let profile: oci::LinuxSeccomp = serde_json::from_value(serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_S390", "SCMP_ARCH_S390X"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "listenerPath": "/run/host.sock",
            "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "args": [
                    {"index": 1, "value": 2_114_060_288, "valueTwo": 7, "op": "SCMP_CMP_MASKED_EQ"}]},
            ],
        }))
        .expect("profile");
        let sent = seccomp(&profile);
        assert_eq!(sent.DefaultAction, "SCMP_ACT_ERRNO");
        assert_eq!(sent.Architectures, ["SCMP_ARCH_S390", "SCMP_ARCH_S390X"]);
        assert_eq!(sent.Flags, ["SECCOMP_FILTER_FLAG_LOG"]);
        let [free, bound] = sent.Syscalls.as_slice() else { panic!("two rules: {sent:?}") };
        assert_eq!(
            (free.Names.as_slice(), free.Action.as_str()),
            (&["read".into(), "write".into()][..], "SCMP_ACT_ALLOW")
        );
        assert_eq!((free.ErrnoRet.clone(), free.Args.len()), (None, 0));
        assert_eq!((bound.Action.as_str(), bound.errnoret()), ("SCMP_ACT_ERRNO", 38));
        let arg = &bound.Args[0];
        assert_eq!((arg.Index, arg.Value, arg.ValueTwo), (1, 2_114_060_288, 7));
        assert_eq!(arg.Op, "SCMP_CMP_MASKED_EQ");
    }

    #[test]
    fn network_messages_are_as_an_agent_took_them() {
        let eth0 = InterfacePlan {
            name: "eth0".into(),
            mac: MacAddr([2, 0, 0, 0, 0x66, 2]),
            mtu: 1450,
            addresses: vec![("10.66.0.2".parse().expect("ip"), 24), ("fd66::2".parse().expect("ip"), 64)],
            no_arp: false,
        };
        let sent = interface(&eth0, DevNo::new(5)).interface.unwrap_or_default();
        assert_eq!((sent.device.as_str(), sent.name.as_str(), sent.mtu), ("eth0", "eth0", 1450));
        assert_eq!((sent.hwAddr.as_str(), sent.devicePath.as_str()), ("02:00:00:00:66:02", "0.0.0005"));
        let addresses =
            sent.IPAddresses.iter().map(|a| (a.family.value(), a.address.as_str(), a.mask.as_str()));
        assert_eq!(addresses.collect::<Vec<_>>(), [(0, "10.66.0.2", "24"), (1, "fd66::2", "64")]);
        let route = |destination, gateway, source, scope| RoutePlan {
            destination,
            gateway,
            source,
            device: "eth0".into(),
            ipv6: false,
            scope,
            flags: 0,
            mtu: 0,
        };
        let ip = |t: &str| t.parse::<IpAddr>().expect("ip");
        let sent = routes(&[
            route(Some((ip("10.66.0.0"), 24)), None, Some(ip("10.66.0.2")), 253),
            route(None, Some(ip("10.66.0.1")), None, 0),
        ]);
        let sent = sent.routes.unwrap_or_default().Routes;
        let sent: Vec<_> = sent
            .iter()
            .map(|r| (r.dest.as_str(), r.gateway.as_str(), r.device.as_str(), r.source.as_str(), r.scope))
            .collect();
        let wanted = [("10.66.0.0/24", "", "eth0", "10.66.0.2", 253), ("", "10.66.0.1", "eth0", "", 0)];
        assert_eq!(sent, wanted);
        let known = NeighbourPlan {
            address: ip("10.66.0.77"),
            mac: MacAddr([2, 0, 0, 0, 0x66, 0x77]),
            device: "eth0".into(),
            state: 128,
            flags: 0,
        };
        let sent = neighbours(&[known]).neighbors.unwrap_or_default().ARPNeighbors;
        let [sent] = sent.as_slice() else { panic!("one neighbour: {sent:?}") };
        let address = (sent.toIPAddress.address.as_str(), sent.toIPAddress.mask.as_str());
        assert_eq!((address, sent.device.as_str()), (("10.66.0.77", ""), "eth0"));
        assert_eq!((sent.lladdr.as_str(), sent.state), ("02:00:00:00:66:77", 128));
    }
}
