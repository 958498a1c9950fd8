//! A table for each kind of mount.

use super::*;
use crate::error::Code;
use crate::oci::spec;
use serde_json::{Value, json};

const EMPTY_DIR: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache";
const DIRECTORY: SourceKind = SourceKind::Directory { in_memory: false, gid: 0 };

fn bundle_of(mounts: &Value) -> Bundle {
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "linux": {},
        "mounts": mounts,
        "annotations": {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"},
    });
    spec::parse(spec.to_string().as_bytes(), &ContainerId::parse("c1").expect("id")).expect("spec")
}

fn decided(mounts: &Value, kinds: &[(&str, SourceKind)]) -> Result<Volumes> {
    let kinds = kinds.iter().map(|(path, kind)| (PathBuf::from(path), *kind)).collect();
    decide(&bundle_of(mounts), &ContainerId::parse("c1").expect("id"), &kinds, 0xab)
}

fn bind(destination: &str, source: &str) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", "ro"]})
}

#[test]
fn what_the_guest_has_itself_stays_as_it_is() {
    let mounts = json!([
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]},
    ]);
    assert_eq!(host_sources(&bundle_of(&mounts)).count(), 0);
    let volumes = decided(&mounts, &[]).expect("decide");
    assert_eq!(serde_json::to_value(&volumes.mounts).expect("json"), mounts);
    assert!(volumes.storages.is_empty() && volumes.copies.is_empty());
}

#[test]
fn shared_memory_is_the_pods_whatever_the_mount_says() {
    for mount in [
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=1k"]}),
        bind("/dev/shm", "/run/containerd/shm"),
    ] {
        let volumes = decided(&json!([mount]), &[]).expect("decide");
        let wanted = json!([{"destination": "/dev/shm", "type": "bind",
            "source": "/run/kata-containers/sandbox/shm", "options": ["rbind"]}]);
        assert_eq!(serde_json::to_value(&volumes.mounts).expect("json"), wanted);
    }
}

#[test]
fn files_and_directories_are_copied_under_unique_names() {
    let mounts =
        json!([bind("/etc/hosts", "/h/hosts"), bind("/a/config", "/h/a"), bind("/b/config", "/h/a")]);
    let volumes = decided(&mounts, &[("/h/hosts", SourceKind::File), ("/h/a", DIRECTORY)]).expect("decide");
    let targets: Vec<_> = volumes.copies.iter().map(|c| (c.source.to_str(), c.target.as_str())).collect();
    assert_eq!(
        targets,
        [
            (Some("/h/hosts"), "/run/kata-containers/shared/containers/c1-00000000000000ab-hosts"),
            (Some("/h/a"), "/run/kata-containers/shared/containers/c1-00000000000000ac-config"),
            (Some("/h/a"), "/run/kata-containers/shared/containers/c1-00000000000000ad-config"),
        ]
    );
    let sent = serde_json::to_value(&volumes.mounts).expect("json");
    for (at, (_, target)) in targets.iter().enumerate() {
        assert_eq!(sent[at]["source"], *target);
        assert_eq!(sent[at]["options"], json!(["rbind", "rprivate", "ro"]));
    }
}

#[test]
fn empty_dirs_are_in_the_guests_memory_or_where_the_pod_keeps_them() {
    let in_memory = |gid| SourceKind::Directory { in_memory: true, gid };
    let local = "/run/kata-containers/shared/containers/pod/rootfs/local/cache";
    let memory = "/run/kata-containers/sandbox/ephemeral/cache";
    for (kind, driver, typ, at, options) in [
        (DIRECTORY, "local", "local", local, &["mode=0777"][..]),
        (
            SourceKind::Directory { in_memory: false, gid: 7 },
            "local",
            "local",
            local,
            &["mode=0777", "fsgid=7"],
        ),
        (in_memory(0), "ephemeral", "bind", memory, &[]),
        (in_memory(7), "ephemeral", "bind", memory, &["fsgid=7"]),
    ] {
        let mounts = json!([bind("/cache", EMPTY_DIR), bind("/again", EMPTY_DIR)]);
        let mut volumes = decided(&mounts, &[(EMPTY_DIR, kind)]).expect("decide");
        let sandbox = crate::ids::SandboxId::parse("pod").expect("id");
        let place = |dir: &EmptyDir| Some(storage::local_volume(&sandbox, &dir.name, dir.gid));
        volumes.place_empty_dirs(place).expect("placed");
        let [storage] = volumes.storages.as_slice() else { panic!("{:?}", volumes.storages) };
        assert_eq!((storage.driver.as_str(), storage.mount_point.as_str()), (driver, at));
        assert_eq!(storage.options, options);
        for mount in &volumes.mounts {
            assert_eq!((mount.typ().as_deref(), mount.source().as_deref()), (Some(typ), Some(Path::new(at))));
        }
        assert!(volumes.copies.is_empty());
    }
}

#[test]
fn an_empty_dir_on_a_disk_is_bound_from_its_mount_point_with_its_own_options() {
    let mut again = bind("/again", EMPTY_DIR);
    again["options"] = json!(["rbind", "rprivate", "rw"]);
    let kinds = [(EMPTY_DIR, SourceKind::Directory { in_memory: false, gid: 7 })];
    let mut volumes = decided(&json!([bind("/cache", EMPTY_DIR), again]), &kinds).expect("decide");
    let address = crate::scsi::ScsiAddress { id: 0, lun: 3 };
    volumes.place_empty_dirs(|dir| Some(storage::disk_volume(address, dir.gid, true))).expect("placed");
    let at = "/run/kata-containers/sandbox/storage/MDoz";
    let mount = |destination: &str, access: &str| {
        json!({"destination": destination, "type": "bind", "source": at,
        "options": ["rbind", "rprivate", access]})
    };
    let mounts = serde_json::to_value(&volumes.mounts).expect("json");
    assert_eq!(mounts, json!([mount("/cache", "ro"), mount("/again", "rw")]));
    assert_eq!(volumes.storages, [storage::disk_volume(address, 7, true)], "one for both");
    let mut unplaced = decided(&json!([bind("/cache", EMPTY_DIR)]), &kinds).expect("decide");
    assert!(unplaced.place_empty_dirs(|_| None).is_err());
}

#[test]
fn what_a_guest_cannot_have_is_refused_by_destination_and_source() {
    let shared =
        json!({"destination": "/d", "type": "bind", "source": "/h", "options": ["rbind", "rshared"]});
    let writable = json!({"destination": "/w", "type": "bind", "source": "/h", "options": ["rbind", "rw"]});
    let read_only = decided(&json!([bind("/w", "/h")]), &[("/h", SourceKind::Persistent)]);
    assert_eq!(read_only.expect("a copy").copies.len(), 1);
    for (mount, kind, wanted) in [
        (
            shared,
            DIRECTORY,
            "mount /d: mounts made in the guest cannot be propagated to the host (/h): remove",
        ),
        (bind("/d", "/h"), SourceKind::Special("socket"), "mount /d: /h is a socket of the host"),
        (
            bind("/d", "/proc/1/root"),
            DIRECTORY,
            "mount /d: /proc/1/root is a file system of the host's kernel",
        ),
        (bind("/d", "/sys/fs/bpf"), DIRECTORY, "mount /d: /sys/fs/bpf is a file system of the host's kernel"),
        (bind("/d", "/h"), SourceKind::PartOfEmptyDir, "mount /d: /h is a part of an emptyDir"),
        (writable, SourceKind::Persistent, "mount /w: /h is a writable volume that keeps its data"),
        (bind("/", "/h"), DIRECTORY, "mount /: / does not end in a name"),
        (bind("/d/..", "/h"), DIRECTORY, "mount /d/..: /d/.. does not end in a name"),
    ] {
        let e = decided(&json!([mount]), &[("/h", kind)]).expect_err(wanted);
        assert!(e.to_string().starts_with(wanted), "{e}");
        assert_eq!(e.code(), Code::InvalidArgument);
    }
    let many: Vec<_> = (0..300).map(|n| bind(&format!("/m{n}"), "/h")).collect();
    let e = decided(&many.into(), &[("/h", SourceKind::File)]).expect_err("many");
    assert_eq!(e.to_string(), "mount /m256: more than 256 volumes to copy into the guest");
}

#[test]
fn the_pods_resolver_is_found_among_its_mounts() {
    assert_eq!(resolv_conf(&bundle_of(&json!([bind("/etc/hosts", "/h")]))), None);
    let bundle = bundle_of(&json!([bind("/etc/hosts", "/h"), bind("/etc/resolv.conf", "/r")]));
    assert_eq!(resolv_conf(&bundle), Some(Path::new("/r")));
}
