//! What the agent mounts before it starts a container: the contents of its `Storage` messages.
//!
//! The strings are the agent's contract; a policy in a real guest refuses anything else.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde_json::json;

use crate::ccw::DevNo;
use crate::ids::{ContainerId, SandboxId};
use crate::scsi::ScsiAddress;

/// Size of a pod's /dev/shm in bytes: that of containerd's default mount, which policies pin.
pub(crate) const SHM_BYTES: u64 = 64 << 20;

/// The pod's shared memory in the guest.
pub(crate) const SHM_PATH: &str = "/run/kata-containers/sandbox/shm";

/// Where the agent accepts the host's files by CopyFile.
pub(crate) const SHARED_DIR: &str = "/run/kata-containers/shared/containers";

/// Where the agent mounts disks of volumes.
pub(crate) const DISKS_DIR: &str = "/run/kata-containers/sandbox/storage";

/// One storage for the agent to mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    pub driver: String,
    pub driver_options: Vec<String>,
    pub source: String,
    pub fstype: String,
    pub options: Vec<String>,
    /// Where the guest mounts it.
    pub mount_point: String,
    /// The group that owns it with all that is in it.
    pub fs_group: Option<u32>,
    /// Kept by the agent until the sandbox ends, and mounted only once per mount point.
    pub shared: bool,
}

/// A container's directory in the guest.
fn container_dir(id: &ContainerId) -> String {
    format!("/run/kata-containers/{id}")
}

/// A container's root in the guest.
pub(crate) fn rootfs_path(id: &ContainerId) -> String {
    format!("{}/rootfs", container_dir(id))
}

/// The sandbox's shared memory.
pub(crate) fn shm() -> Storage {
    let options = ["noexec", "nosuid", "nodev", "mode=1777"].map(str::to_owned);
    Storage {
        driver: "ephemeral".into(),
        source: "shm".into(),
        fstype: "tmpfs".into(),
        options: options.into_iter().chain([format!("size={SHM_BYTES}")]).collect(),
        mount_point: SHM_PATH.into(),
        ..Storage::default()
    }
}

/// An image that the guest pulls. `metadata`: annotations that the agent looks at; None for an agent that takes none.
pub(crate) fn pulled_rootfs(
    id: &ContainerId,
    image: &str,
    metadata: Option<BTreeMap<&str, &str>>,
) -> Storage {
    let option = |metadata| format!("image_guest_pull={}", json!({"metadata": metadata}));
    Storage {
        driver: "image_guest_pull".into(),
        driver_options: metadata.map(option).into_iter().collect(),
        source: image.to_owned(),
        fstype: "overlay".into(),
        mount_point: rootfs_path(id),
        ..Storage::default()
    }
}

/// A packed image as the lower layer of an overlay whose writable layer is guest memory.
///
/// `layer` names the image's mount in this pod: it is outside the container's directory, which the agent
/// deletes while the image may still be mounted. If `shared`, it stays mounted until the sandbox ends and
/// is used by every container that names it.
pub(crate) fn packed_rootfs(id: &ContainerId, layer: &str, devno: DevNo, shared: bool) -> Vec<Storage> {
    let lower = format!("/run/kata-containers/sandbox/layers/{layer}");
    let (upper, work) = (format!("{}/upper", container_dir(id)), format!("{}/work", container_dir(id)));
    let create = |path: &str| format!("io.katacontainers.volume.overlayfs.create_directory={path}");
    let image = Storage {
        driver: "blk-ccw".into(),
        source: devno.guest(),
        fstype: "erofs".into(),
        options: vec!["ro".into()],
        mount_point: lower.clone(),
        shared,
        ..Storage::default()
    };
    let overlay = Storage {
        driver: "overlayfs".into(),
        driver_options: vec![create(&upper), create(&work)],
        source: "overlay".into(),
        fstype: "overlay".into(),
        options: vec![format!("lowerdir={lower}"), format!("upperdir={upper}"), format!("workdir={work}")],
        mount_point: rootfs_path(id),
        ..Storage::default()
    };
    vec![image, overlay]
}

/// A file system on a disk that only this container uses.
pub(crate) fn block_rootfs(id: &ContainerId, devno: DevNo, fstype: &str, options: &[String]) -> Vec<Storage> {
    vec![Storage {
        driver: "blk-ccw".into(),
        source: devno.guest(),
        fstype: fstype.to_owned(),
        options: options.to_vec(),
        mount_point: rootfs_path(id),
        ..Storage::default()
    }]
}

/// An emptyDir with medium Memory, which the pod's containers share by its name; `gid` owns it.
pub(crate) fn memory_volume(name: &str, gid: u32) -> Storage {
    Storage {
        driver: "ephemeral".into(),
        source: "tmpfs".into(),
        fstype: "tmpfs".into(),
        options: group(gid),
        mount_point: format!("/run/kata-containers/sandbox/ephemeral/{name}"),
        ..Storage::default()
    }
}

/// An emptyDir on a disk that the guest formats when it mounts it, and encrypts with a key that it makes up: every
/// container that uses it names the same storage.
pub(crate) fn disk_volume(address: ScsiAddress, gid: u32, encrypted: bool) -> Storage {
    let source = address.to_string();
    let (driver_options, options): (&[&str], &[&str]) = if encrypted {
        (&["encryption_key=ephemeral", "create_filesystem"], &[])
    } else {
        (&["create_filesystem"], &["discard"])
    };
    let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
    Storage {
        driver: "scsi".into(),
        driver_options: texts(driver_options),
        fstype: "ext4".into(),
        options: texts(options),
        mount_point: format!("{DISKS_DIR}/{}", URL_SAFE.encode(&source)),
        source,
        fs_group: Some(gid).filter(|gid| *gid > 0),
        shared: true,
    }
}

/// The last kind of emptyDir: a directory of the guest's own file system, which is in its memory.
pub(crate) fn local_volume(sandbox: &SandboxId, name: &str, gid: u32) -> Storage {
    Storage {
        driver: "local".into(),
        source: "local".into(),
        fstype: "local".into(),
        options: [vec!["mode=0777".to_owned()], group(gid)].concat(),
        mount_point: format!("{SHARED_DIR}/{sandbox}/rootfs/local/{name}"),
        ..Storage::default()
    }
}

/// The kubelet sets the directory's group to the pod's fsGroup.
fn group(gid: u32) -> Vec<String> {
    if gid == 0 { Vec::new() } else { vec![format!("fsgid={gid}")] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_rootfs_is_what_the_agent_accepted() {
        let id = ContainerId::parse("hello").expect("id");
        let [image, overlay]: [Storage; 2] =
            packed_rootfs(&id, "l1", DevNo::new(7), true).try_into().expect("two storages");
        assert_eq!(
            (image.driver.as_str(), image.source.as_str(), image.fstype.as_str(), image.shared),
            ("blk-ccw", "0.0.0007", "erofs", true)
        );
        assert_eq!(image.mount_point, "/run/kata-containers/sandbox/layers/l1");
        assert_eq!(
            overlay.driver_options,
            [
                "io.katacontainers.volume.overlayfs.create_directory=/run/kata-containers/hello/upper",
                "io.katacontainers.volume.overlayfs.create_directory=/run/kata-containers/hello/work"
            ]
        );
        assert_eq!(
            overlay.options,
            [
                "lowerdir=/run/kata-containers/sandbox/layers/l1",
                "upperdir=/run/kata-containers/hello/upper",
                "workdir=/run/kata-containers/hello/work"
            ]
        );
        assert_eq!(overlay.mount_point, "/run/kata-containers/hello/rootfs");
    }

    #[test]
    fn a_pulled_image_is_what_each_generation_of_agents_takes() {
        let id = ContainerId::parse("hello").expect("id");
        let kind = ("io.kubernetes.cri.container-type", "sandbox");
        let wanted = Storage {
            driver: "image_guest_pull".into(),
            driver_options: vec![
                "image_guest_pull={\"metadata\":{\"io.kubernetes.cri.container-type\":\"sandbox\"}}".into(),
            ],
            source: "pause".into(),
            fstype: "overlay".into(),
            mount_point: "/run/kata-containers/hello/rootfs".into(),
            ..Storage::default()
        };
        assert_eq!(pulled_rootfs(&id, "pause", Some(BTreeMap::from([kind]))), wanted);
        let of_none = pulled_rootfs(&id, "pause", Some(BTreeMap::new()));
        assert_eq!(of_none.driver_options, ["image_guest_pull={\"metadata\":{}}"]);
        assert_eq!(pulled_rootfs(&id, "pause", None), Storage { driver_options: Vec::new(), ..wanted });
    }

    /// Kata's generator of policies compares each of these.
    #[test]
    fn an_empty_dir_on_a_disk_is_what_policies_take() {
        let address = ScsiAddress { id: 0, lun: 3 };
        let encrypted = disk_volume(address, 0, true);
        let wanted = Storage {
            driver: "scsi".into(),
            driver_options: vec!["encryption_key=ephemeral".into(), "create_filesystem".into()],
            source: "0:3".into(),
            fstype: "ext4".into(),
            options: vec![],
            mount_point: "/run/kata-containers/sandbox/storage/MDoz".into(),
            fs_group: None,
            shared: true,
        };
        assert_eq!(encrypted, wanted);
        let plain = disk_volume(ScsiAddress { id: 1, lun: 255 }, 7, false);
        assert_eq!(
            (plain.driver_options, plain.options),
            (vec!["create_filesystem".into()], vec!["discard".into()])
        );
        assert_eq!(plain.fs_group, Some(7));
        assert_eq!(plain.mount_point, "/run/kata-containers/sandbox/storage/MToyNTU=");
    }

    #[test]
    fn shared_memory_is_compared_whole_by_policies() {
        assert_eq!(shm().options, ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"]);
    }
}
