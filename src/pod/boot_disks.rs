//! Disks that are there when the guest boots, read-only: the node's extension images and the pod's initdata.
//!
//! Always virtio-blk: a guest under Secure Execution does not look for SCSI disks at boot.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

use crate::ccw::DevNos;
use crate::config::initdata::MAGIC;
use crate::error::{Context, Error, Result};
use crate::host::memory_file;
use crate::host::process::FdTable;
use crate::plan::vm::DiskPlan;
use crate::pod::prepare::LaunchContext;

/// The serial by which people know the disk in the guest; its agent knows it by its first bytes.
const INITDATA: &str = "initdata";

/// Opens them, for QEMU's command line.
pub(super) fn open(context: &LaunchContext, fds: &mut FdTable, devnos: &mut DevNos) -> Result<Vec<DiskPlan>> {
    let mut files = Vec::new();
    for (name, path) in &context.config.extensions {
        let file =
            extension(path).with_context(|| format!("guest.extensions: {name} = {}", path.display()))?;
        files.push((format!("extension-{name}"), file));
    }
    if let Some(initdata) = &context.initdata {
        files.push((INITDATA.to_owned(), memory_file::sealed(INITDATA, &initdata.disk())?));
    }
    let plan = |(serial, file)| {
        Ok(DiskPlan { file: fds.give(file), read_only: true, devno: devnos.take()?, serial })
    };
    files.into_iter().map(plan).collect()
}

/// Opens an extension image. What is in it is checked by the guest, against its sealed parameters.
fn extension(path: &Path) -> Result<OwnedFd> {
    // O_NONBLOCK: a fifo in the file's place must not block us.
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = File::options()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|e| Error::precondition(format!("{e}: check the configuration")))?;
    let meta = file.metadata().context("stat")?;
    if !meta.is_file() || meta.len() == 0 {
        return Err(Error::precondition("is not a file with an image: check the configuration"));
    }
    let mut first = [0; MAGIC.len()];
    if file.read_exact_at(&mut first, 0).is_ok() && first == *MAGIC {
        return Err(Error::precondition(
            "begins as a disk with initdata does, and the guest would take it for the pod's: build the image again",
        ));
    }
    Ok(file.into())
}
