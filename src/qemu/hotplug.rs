//! Plugging and unplugging disks over QMP, by descriptor.
//!
//! QEMU knows the file by a descriptor set, never by a path, and always reads it as raw bytes, also a
//! file whose content looks like another image format.

use std::os::fd::OwnedFd;

use nix::libc;
use nix::sys::stat::fstat;
use serde_json::{Value, json};

use crate::ccw::DevNo;
use crate::error::{Context, Result};
use crate::qemu::qmp::{BlockdevAdd, Qmp, add_fd, blockdev_del, device_add, remove_fd};

/// A disk to be plugged.
#[derive(Debug)]
pub(crate) struct Disk {
    pub file: OwnedFd,
    pub read_only: bool,
    pub devno: DevNo,
    /// At most 20 bytes, shown by the guest as the disk's serial number.
    pub serial: String,
    /// A protected guest's devices use bounce buffers.
    pub confidential: bool,
}

fn node(devno: DevNo) -> String {
    format!("hot-{}", devno.guest())
}

fn device(devno: DevNo) -> String {
    format!("disk-{}", devno.guest())
}

/// Plugs a disk; a failed step undoes those before.
pub(crate) async fn plug(qmp: &Qmp, disk: &Disk) -> Result<()> {
    let added = qmp
        .execute_with(add_fd { fdset_id: None, opaque: None }, Some(&disk.file))
        .await
        .with_context(|| format!("plug disk {}", disk.devno))?;
    let set = added.fdset_id;
    let opened = qmp.execute(BlockdevAdd(blockdev(disk, set))).await;
    // The set would keep its descriptor open until the connection's end.
    let removed = qmp.execute(remove_fd { fdset_id: set, fd: Some(added.fd) }).await;
    opened.with_context(|| format!("plug disk {}", disk.devno))?;
    let plugged = match removed {
        Ok(_) => qmp.execute(virtio_blk(disk)).await.map(|_| ()),
        Err(e) => Err(e),
    };
    if plugged.is_err() {
        qmp.execute(blockdev_del { node_name: node(disk.devno) }).await.ok();
    }
    plugged.with_context(|| format!("plug disk {}", disk.devno))
}

/// Unplugs a disk completely. The guest must have unmounted it: the CCW bus has no veto.
pub(crate) async fn unplug(qmp: &Qmp, devno: DevNo) -> Result<()> {
    let context = || format!("unplug disk {devno}");
    qmp.delete_device(&device(devno)).await.with_context(context)?;
    qmp.execute(blockdev_del { node_name: node(devno) }).await.with_context(context)?;
    Ok(())
}

fn blockdev(disk: &Disk, set: i64) -> Value {
    // Each of the two drivers refuses what is the other's (QEMU: block/file-posix.c).
    let is_device = fstat(&disk.file).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFBLK);
    json!({
        "driver": "raw",
        "node-name": node(disk.devno),
        "read-only": disk.read_only,
        "file": {
            "driver": if is_device { "host_device" } else { "file" },
            "filename": format!("/dev/fdset/{set}"),
            "read-only": disk.read_only,
            // A read-only image has many users; the layer cache locks it for them.
            "locking": if disk.read_only { "off" } else { "on" },
        },
    })
}

fn virtio_blk(disk: &Disk) -> device_add {
    let mut arguments = qapi::Dictionary::new();
    arguments.insert("drive".into(), node(disk.devno).into());
    arguments.insert("devno".into(), disk.devno.host().into());
    arguments.insert("serial".into(), disk.serial.clone().into());
    if disk.confidential {
        arguments.insert("iommu_platform".into(), true.into());
    }
    device_add { bus: None, id: Some(device(disk.devno)), driver: "virtio-blk-ccw".into(), arguments }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_block_device_has_qemus_driver_for_devices_and_a_file_that_for_files() {
        let disk = |path: &str| {
            let file = File::open(path).ok()?.into();
            let (devno, serial) = (DevNo::new(1), String::new());
            Some(Disk { file, read_only: true, devno, serial, confidential: true })
        };
        let driver = |disk: &Disk| blockdev(disk, 3)["file"]["driver"].clone();
        assert_eq!(driver(&disk("/proc/self/exe").expect("file")), "file");
        // Machines without the module have no such device.
        if let Some(device) = disk("/dev/loop7") {
            assert_eq!(driver(&device), "host_device");
        }
    }
}
