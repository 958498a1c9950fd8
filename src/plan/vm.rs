//! The virtual machine to be launched, as plain data.
//!
//! `qemu::args` turns it into QEMU's argument vector; a descriptor is named by the number that it will
//! have in QEMU, so that descriptor and option cannot disagree.

use std::path::PathBuf;

use crate::ccw::DevNo;
use crate::config::{Accelerator, Boot};
use crate::ids::SandboxId;

/// The number a descriptor has in the launched program (3 and up).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChildFd(pub i32);

impl ChildFd {
    /// The path by which the child opens the file again.
    pub fn path(self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0).into()
    }
}

/// Everything that QEMU's command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmPlan {
    pub sandbox: SandboxId,
    pub accelerator: Accelerator,
    pub boot: Boot,
    pub memory_mib: u32,
    pub vcpus: u32,
    /// One end of a socketpair for QMP.
    pub qmp: ChildFd,
    /// One end of a socketpair that carries the guest console.
    pub console: ChildFd,
    pub vsock: VsockPlan,
    pub nics: Vec<NicPlan>,
    /// The controller to which volumes are plugged as disks.
    pub scsi: DevNo,
    pub disks: Vec<DiskPlan>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VsockPlan {
    /// `vhost-vsock-ccw` on an opened /dev/vhost-vsock.
    Vhost { fd: ChildFd, cid: u32, devno: DevNo },
    /// `vhost-user-vsock-pci` on the Unix socket of a device program.
    VhostUser { socket: PathBuf },
}

/// One network interface on an opened tap device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicPlan {
    pub tap: ChildFd,
    pub mac: MacAddr,
    pub devno: DevNo,
}

/// A 48-bit hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl std::fmt::Display for MacAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// One disk present at boot, on an opened file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    pub file: ChildFd,
    pub read_only: bool,
    pub devno: DevNo,
    /// At most 20 bytes: the disk's serial number in the guest.
    pub serial: String,
}
