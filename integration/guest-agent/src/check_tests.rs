//! One row per rule: a request with one mistake, and the text of its refusal.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::messages::agent::{Device, FSGroup};
use crate::messages::oci::{Hooks, LinuxCapabilities, LinuxNamespace, LinuxPids, LinuxSeccomp, Mount, Root};

fn storage_of(driver: &str, source: &str, fstype: &str, mount_point: &str) -> Storage {
    Storage {
        driver: driver.into(),
        source: source.into(),
        fstype: fstype.into(),
        mount_point: mount_point.into(),
        ..Default::default()
    }
}

fn good() -> CreateContainerRequest {
    let namespace = |t: &str| LinuxNamespace { Type: t.into(), ..Default::default() };
    let linux = Linux { Namespaces: KEPT.map(namespace).to_vec(), ..Default::default() };
    let spec = Spec {
        Version: "1.1.0".into(),
        Process: Some(Process {
            Args: vec!["sh".into()],
            Cwd: "/".into(),
            Capabilities: Some(LinuxCapabilities::default()).into(),
            ..Default::default()
        })
        .into(),
        Root: Some(Root { Path: "/run/kata-containers/c1/rootfs".into(), ..Default::default() }).into(),
        Annotations: [(CONTAINER_TYPE.to_owned(), "pod_container".to_owned())].into(),
        Linux: Some(linux).into(),
        ..Default::default()
    };
    let mut overlay = storage_of("overlayfs", "overlay", "overlay", "/run/kata-containers/c1/rootfs");
    overlay.options = vec!["lowerdir=/run/kata-containers/sandbox/layers/l1".into()];
    let layer = storage_of("blk-ccw", "0.0.0007", "erofs", "/run/kata-containers/sandbox/layers/l1");
    CreateContainerRequest {
        container_id: "c1".into(),
        exec_id: "c1".into(),
        storages: vec![layer, overlay],
        OCI: Some(spec).into(),
        ..Default::default()
    }
}

type Change = fn(&mut CreateContainerRequest);

const WRONG: &[(&str, Change)] = &[
    ("invalid container ID -c", |r| r.container_id = "-c".into()),
    ("invalid container ID c", |r| r.container_id = "c".into()),
    ("is not the container's id", |r| r.exec_id = "x".into()),
    ("stdio ports", |r| r.stdout_port = 1),
    ("without a spec", |r| r.OCI = None.into()),
    ("hooks are set", |r| r.OCI.as_mut().unwrap().Hooks = Some(Hooks::new()).into()),
    ("Sysctl vm.swappiness is not", |r| {
        linux_of(r).Sysctl.insert("vm.swappiness".into(), "1".into());
    }),
    ("seccomp is set", |r| linux_of(r).Seccomp = Some(LinuxSeccomp::new()).into()),
    ("not /run/kata-containers/c1/rootfs", |r| {
        r.OCI.as_mut().unwrap().Root.as_mut().unwrap().Path = "/rootfs".into()
    }),
    ("is None, not one of", |r| r.OCI.as_mut().unwrap().Annotations.clear()),
    ("against CRI's", |r| {
        r.OCI
            .as_mut()
            .unwrap()
            .Annotations
            .insert("io.kubernetes.cri.container-type".into(), "sandbox".into());
    }),
    ("namespace \"network\": policies know", |r| linux_of(r).Namespaces[0].Type = "network".into()),
    ("namespace \"uts\" 0 times", |r| linux_of(r).Namespaces.truncate(1)),
    ("has a path of the host", |r| linux_of(r).Namespaces[0].Path = "/proc/1/ns/ipc".into()),
    ("MountLabel", |r| linux_of(r).MountLabel = "x".into()),
    ("SelinuxLabel", |r| r.OCI.as_mut().unwrap().Process.as_mut().unwrap().SelinuxLabel = "x".into()),
    ("Resources.Pids", |r| {
        linux_of(r).Resources.mut_or_insert_default().Pids = Some(LinuxPids::new()).into();
    }),
    ("CPU.Cpus", |r| {
        linux_of(r).Resources.mut_or_insert_default().CPU.mut_or_insert_default().Cpus = "0-3".into();
    }),
    ("`..` in a path", |r| {
        r.OCI.as_mut().unwrap().Mounts.push(Mount { destination: "/a/../b".into(), ..Default::default() });
    }),
    ("handler of \"virtio-fs\"", |r| r.storages[0].driver = "virtio-fs".into()),
    ("below the container's directory", |r| {
        r.storages[0].mount_point = "/run/kata-containers/c1/layer".into()
    }),
    ("not below /run/kata-containers", |r| r.storages[0].mount_point = "/mnt".into()),
    ("not a CCW bus id", |r| r.storages[0].source = "fe.0.0007".into()),
    ("no lowerdir", |r| r.storages[1].options.clear()),
    ("the process has no args", |r| r.OCI.as_mut().unwrap().Process.as_mut().unwrap().Args.clear()),
];

fn linux_of(r: &mut CreateContainerRequest) -> &mut Linux {
    r.OCI.as_mut().unwrap().Linux.as_mut().unwrap()
}

#[test]
fn a_container_as_the_real_agent_took_it_is_accepted() {
    assert_eq!(container(&good(), false), Ok(()));
    let mut req = good();
    linux_of(&mut req).Seccomp = Some(LinuxSeccomp::new()).into();
    assert_eq!(container(&req, true), Ok(()), "an agent that applies profiles");
}

#[test]
fn each_mistake_of_a_container_is_named() {
    for (says, change) in WRONG {
        let mut req = good();
        change(&mut req);
        let refusal = container(&req, false).unwrap_err();
        assert!(refusal.contains(says), "{says:?} is not in {refusal:?}");
    }
}

fn pulled() -> CreateContainerRequest {
    let storage = storage_of("image_guest_pull", "r.test/a:1", "overlay", "/run/kata-containers/c1/rootfs");
    CreateContainerRequest { storages: vec![storage], ..good() }
}

#[test]
fn a_guest_pull_is_as_policies_want_it() {
    let wrong: [(&str, Change); 8] = [
        ("fstype is \"\"", |r| r.storages[0].fstype.clear()),
        ("options are set", |r| r.storages[0].options.push("ro".into())),
        ("shared, but in", |r| r.storages[0].shared = true),
        ("an owner of what is no disk", |r| r.storages[0].fs_group = Some(FSGroup::new()).into()),
        ("policies want /run/kata-containers/c1/rootfs", |r| {
            r.storages[0].mount_point = "/run/kata-containers/c2/rootfs".into()
        }),
        ("no image", |r| r.storages[0].source.clear()),
        ("2 storages image_guest_pull", |r| r.storages.push(r.storages[0].clone())),
        ("storage overlayfs: beside one of image_guest_pull", |r| {
            r.storages.push(good().storages[1].clone())
        }),
    ];
    let mut req = pulled();
    assert_eq!(container(&req, false), Ok(()));
    let at = "/run/kata-containers/sandbox/ephemeral/v";
    req.storages.push(storage_of("ephemeral", "tmpfs", "tmpfs", at));
    assert_eq!(container(&req, false), Ok(()), "volumes are storages of their own");
    for (says, change) in wrong {
        let mut req = pulled();
        change(&mut req);
        let refusal = container(&req, false).unwrap_err();
        assert!(refusal.contains(says), "{says:?} is not in {refusal:?}");
    }
}

fn encrypted() -> Storage {
    let mut disk = storage_of("scsi", "0:3", "ext4", "/run/kata-containers/sandbox/storage/MDoz");
    disk.driver_options = ["encryption_key=ephemeral", "create_filesystem"].map(str::to_owned).to_vec();
    disk.shared = true;
    disk
}

#[test]
fn a_disk_of_a_volume_is_compared_whole_by_policies() {
    let of = |change: fn(&mut Storage)| {
        let mut disk = encrypted();
        change(&mut disk);
        storage(&disk, "c1")
    };
    assert_eq!(of(|_| ()), Ok(()));
    assert_eq!(of(|s| s.fs_group = Some(FSGroup { group_id: 7, ..FSGroup::new() }).into()), Ok(()));
    let plain: fn(&mut Storage) = |s| {
        s.driver_options.remove(0);
        s.options.push("discard".into());
    };
    assert_eq!(of(plain), Ok(()));
    for (says, change) in [
        ("not an address like 0:3", (|s| s.source = "0:+3".into()) as fn(&mut Storage)),
        ("its mount point is not", |s| s.source = "0:4".into()),
        ("its mount point is not", |s| s.mount_point = "/run/kata-containers/sandbox/storage/MDoz=".into()),
        ("is shared", |s| s.shared = false),
        ("only ext4", |s| s.fstype = "xfs".into()),
        ("an encrypted disk or a plain one", |s| s.driver_options.reverse()),
        ("an encrypted disk or a plain one", |s| s.options.push("discard".into())),
        ("an encrypted disk or a plain one", |s| s.driver_options.clear()),
        ("its group is 0", |s| s.fs_group = Some(FSGroup::new()).into()),
        ("an owner of what is no disk", |s| {
            *s = storage_of("local", "local", "local", "/run/kata-containers/x");
            s.fs_group = Some(FSGroup::new()).into();
        }),
    ] {
        let refusal = of(change).unwrap_err();
        assert!(refusal.contains(says), "{says:?} is not in {refusal:?}");
    }
    let mut req = good();
    let mount = Mount {
        destination: "/cache".into(),
        type_: "bind".into(),
        source: encrypted().mount_point,
        ..Default::default()
    };
    req.OCI.as_mut().unwrap().Mounts.push(mount);
    assert!(container(&req, false).unwrap_err().contains("is not the mount point of a storage of the call"));
    req.storages.push(encrypted());
    assert_eq!(container(&req, false), Ok(()));
}

#[test]
fn devices_have_addresses_and_names_of_their_own() {
    let mut req = good();
    let listed =
        crate::messages::oci::LinuxDevice { Path: "/dev/x".into(), Type: "b".into(), ..Default::default() };
    linux_of(&mut req).Devices.push(listed);
    let device = Device {
        type_: "scsi".into(),
        id: "0:3".into(),
        container_path: "/dev/x".into(),
        ..Default::default()
    };
    req.devices.push(device.clone());
    assert_eq!(container(&req, false), Ok(()));
    req.devices.push(device);
    assert!(container(&req, false).unwrap_err().contains("two devices have one container_path"));
    req.devices.truncate(1);
    req.devices[0].id = "0".into();
    assert!(container(&req, false).unwrap_err().contains("not an address like 0:3"));
}

#[test]
fn shared_memory_is_pinned() {
    let mut shm = storage_of("ephemeral", "shm", "tmpfs", "/run/kata-containers/sandbox/shm");
    shm.options = ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"].map(str::to_owned).to_vec();
    let req = CreateSandboxRequest { sandbox_id: "s1".into(), storages: vec![shm], ..Default::default() };
    assert_eq!(sandbox(&req), Ok(()));
    let mut grouped = req.clone();
    grouped.storages[0].fs_group = Some(FSGroup::new()).into();
    assert!(sandbox(&grouped).is_err());
    let mut unsized_ = req;
    unsized_.storages[0].options.pop();
    assert!(sandbox(&unsized_).unwrap_err().contains("policies pin it"));
}

#[test]
fn ccw_ids_are_written_as_the_kernel_does() {
    assert_eq!(ccw("0.0.7").as_deref(), Some("0.0.0007"));
    assert_eq!(ccw("0.3.00fF").as_deref(), Some("0.3.00ff"));
    assert_eq!([ccw("fe.0.0007"), ccw("0.4.1"), ccw("0.0.1.2"), ccw("0.0.10000")], [const { None }; 4]);
}
