//! Disks that are there when the guest boots, read-only: the pod's initdata.
//!
//! Always virtio-blk: a guest under Secure Execution does not look for SCSI disks at boot.

use crate::ccw::DevNos;
use crate::error::Result;
use crate::host::memory_file;
use crate::host::process::FdTable;
use crate::plan::vm::DiskPlan;
use crate::pod::prepare::LaunchContext;

/// The serial by which people know the disk in the guest; its agent knows it by its first bytes.
const INITDATA: &str = "initdata";

/// Opens them, for QEMU's command line.
pub(super) fn open(context: &LaunchContext, fds: &mut FdTable, devnos: &mut DevNos) -> Result<Vec<DiskPlan>> {
    let mut disks = Vec::new();
    if let Some(initdata) = &context.initdata {
        let file = fds.give(memory_file::sealed(INITDATA, &initdata.disk())?);
        disks.push(DiskPlan { file, read_only: true, devno: devnos.take()?, serial: INITDATA.to_owned() });
    }
    Ok(disks)
}
