//! Plugging and unplugging disks over QMP, by descriptor: root file systems as virtio-blk devices, volumes as disks
//! of the SCSI controller.
//!
//! QEMU knows the file by a descriptor set, never by a path, and always reads it as raw bytes, also a
//! file whose content looks like another image format.

use std::fmt;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::stat::fstat;
use serde_json::{Value, json};

use crate::ccw::DevNo;
use crate::error::{Context, Result};
use crate::qemu::args::SCSI_CONTROLLER;
use crate::qemu::qmp::{BlockdevAdd, Qmp, add_fd, blockdev_del, device_add, remove_fd};
use crate::scsi::ScsiAddress;

/// Where in the guest a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskAddress {
    /// A virtio-blk device of its own.
    Ccw(DevNo),
    /// A disk of the VM's SCSI controller.
    Scsi(ScsiAddress),
}

impl fmt::Display for DiskAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ccw(devno) => devno.fmt(f),
            Self::Scsi(address) => write!(f, "scsi {address}"),
        }
    }
}

impl DiskAddress {
    /// As a part of QEMU's names for node and device.
    fn name(self) -> String {
        match self {
            Self::Ccw(devno) => devno.guest(),
            Self::Scsi(ScsiAddress { id, lun }) => format!("scsi-{id}-{lun}"),
        }
    }

    fn node(self) -> String {
        format!("hot-{}", self.name())
    }

    fn device(self) -> String {
        format!("disk-{}", self.name())
    }
}

/// A disk to be plugged.
#[derive(Debug)]
pub(crate) struct Disk {
    /// QEMU passes the host's page cache by where it was opened with O_DIRECT.
    pub file: OwnedFd,
    pub read_only: bool,
    /// What the guest discards is punched out of the file.
    pub discard: bool,
    pub address: DiskAddress,
    /// At most 20 bytes, shown by the guest as the disk's serial number.
    pub serial: String,
}

/// Plugs a disk; a failed step undoes those before. `confidential`: a protected guest's devices use bounce buffers.
pub(crate) async fn plug(qmp: &Qmp, disk: &Disk, confidential: bool) -> Result<()> {
    let context = || format!("plug disk {}", disk.address);
    let added = qmp
        .execute_with(add_fd { fdset_id: None, opaque: None }, Some(&disk.file))
        .await
        .with_context(context)?;
    let set = added.fdset_id;
    let opened = qmp.execute(BlockdevAdd(blockdev(disk, set))).await;
    // The set would keep its descriptor open until the connection's end.
    let removed = qmp.execute(remove_fd { fdset_id: set, fd: Some(added.fd) }).await;
    opened.with_context(context)?;
    let plugged = match removed {
        Ok(_) => qmp.execute(device(disk, confidential)).await.map(|_| ()),
        Err(e) => Err(e),
    };
    if plugged.is_err() {
        qmp.execute(blockdev_del { node_name: disk.address.node() }).await.ok();
    }
    plugged.with_context(context)
}

/// Unplugs a disk completely. The guest must have unmounted it: neither the channel nor the SCSI bus has a veto.
pub(crate) async fn unplug(qmp: &Qmp, address: DiskAddress) -> Result<()> {
    let context = || format!("unplug disk {address}");
    qmp.delete_device(&address.device()).await.with_context(context)?;
    qmp.execute(blockdev_del { node_name: address.node() }).await.with_context(context)?;
    Ok(())
}

fn blockdev(disk: &Disk, set: i64) -> Value {
    // Each of the two drivers refuses what is the other's (QEMU: block/file-posix.c).
    let is_device = fstat(&disk.file).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFBLK);
    let mut node = json!({
        "driver": "raw",
        "node-name": disk.address.node(),
        "read-only": disk.read_only,
        "file": {
            "driver": if is_device { "host_device" } else { "file" },
            "filename": format!("/dev/fdset/{set}"),
            "read-only": disk.read_only,
            // A read-only image has many users; the layer cache locks it for them.
            "locking": if disk.read_only { "off" } else { "on" },
        },
    });
    let mut both = |name: &str, value: Value| {
        node["file"][name] = value.clone();
        node[name] = value;
    };
    if disk.discard {
        both("discard", "unmap".into());
    }
    // A set has only descriptors that were opened like this.
    let flags = fcntl(&disk.file, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    if flags.is_ok_and(|flags| flags.contains(OFlag::O_DIRECT)) {
        both("cache", json!({"direct": true}));
    }
    node
}

fn device(disk: &Disk, confidential: bool) -> device_add {
    let mut arguments = qapi::Dictionary::new();
    arguments.insert("drive".into(), disk.address.node().into());
    arguments.insert("serial".into(), disk.serial.clone().into());
    let (driver, bus) = match disk.address {
        DiskAddress::Ccw(devno) => {
            arguments.insert("devno".into(), devno.host().into());
            if confidential {
                arguments.insert("iommu_platform".into(), true.into());
            }
            ("virtio-blk-ccw", None)
        }
        // Its controller uses the bounce buffers.
        DiskAddress::Scsi(ScsiAddress { id, lun }) => {
            arguments.insert("channel".into(), 0.into());
            arguments.insert("scsi-id".into(), id.into());
            arguments.insert("lun".into(), lun.into());
            ("scsi-hd", Some(format!("{SCSI_CONTROLLER}.0")))
        }
    };
    device_add { bus, id: Some(disk.address.device()), driver: driver.into(), arguments }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};
    use std::os::unix::fs::OpenOptionsExt;

    fn disk(file: File, read_only: bool, address: DiskAddress) -> Disk {
        let discard = matches!(address, DiskAddress::Scsi(_));
        Disk { file: file.into(), read_only, discard, address, serial: "s1".into() }
    }

    /// One command per line; a changed command is a changed line in review.
    #[test]
    fn the_commands_of_each_kind_of_disk() {
        let ccw = DiskAddress::Ccw(DevNo::new(7));
        let scsi = DiskAddress::Scsi(ScsiAddress { id: 1, lun: 3 });
        let mut lines = Vec::new();
        for (address, read_only, confidential) in
            [(ccw, true, true), (ccw, false, false), (scsi, false, true)]
        {
            let disk = disk(File::open("/proc/self/exe").expect("file"), read_only, address);
            lines.push(serde_json::to_value(BlockdevAdd(blockdev(&disk, 5))).expect("json"));
            lines.push(serde_json::to_value(device(&disk, confidential)).expect("json"));
        }
        let text: Vec<_> = lines.iter().map(Value::to_string).collect();
        assert_eq!(text.join("\n"), include_str!("testdata/plug.json").trim_end());
    }

    #[test]
    fn direct_io_is_asked_for_where_the_file_was_opened_so() {
        let dir = tempfile::tempdir_in("/var/tmp").expect("dir");
        let path = dir.path().join("disk");
        File::create(&path).expect("file");
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
        let Ok(direct) = direct else { return }; // a file system without it
        let address = DiskAddress::Scsi(ScsiAddress { id: 0, lun: 0 });
        let node = blockdev(&disk(direct, true, address), 1);
        assert_eq!(
            (&node["cache"]["direct"], &node["file"]["cache"]["direct"]),
            (&true.into(), &true.into())
        );
        let node = blockdev(&disk(File::open(&path).expect("file"), true, address), 1);
        assert_eq!((node.get("cache"), node["file"].get("cache")), (None, None));
    }

    #[test]
    fn a_block_device_has_qemus_driver_for_devices_and_a_file_that_for_files() {
        let driver = |path: &str| {
            let disk = disk(File::open(path).ok()?, true, DiskAddress::Ccw(DevNo::new(1)));
            Some(blockdev(&disk, 3)["file"]["driver"].clone())
        };
        assert_eq!(driver("/proc/self/exe").expect("file"), "file");
        // Machines without the module have no such device.
        if let Some(driver) = driver("/dev/loop7") {
            assert_eq!(driver, "host_device");
        }
    }
}
