//! Block devices of the host, opened for a guest: found by their numbers, and never one that the host itself or
//! another guest uses.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::stat::makedev;

use crate::error::{Code, Context, Error, Result};
use crate::host::files::read_bounded;
use crate::limits;
use crate::oci::device::DeviceNumber;

/// The node below /dev of a device, by the kernel's own name for it.
pub(crate) fn node(number: DeviceNumber) -> Result<PathBuf> {
    let described = format!("/sys/dev/block/{number}/uevent");
    let text = match read_bounded(Path::new(&described), limits::host::FACT_BYTES) {
        Err(e) if e.code() == Code::NotFound => {
            return Err(Error::new(e.code(), format!("the host has no block device {number}")));
        }
        text => text?,
    };
    let text = String::from_utf8_lossy(&text);
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| Error::internal(format!("{described} names no device")))?;
    Ok(Path::new("/dev").join(name))
}

/// Opens the device with this number.
pub(crate) fn open(number: DeviceNumber, read_only: bool) -> Result<File> {
    let path = node(number)?;
    let file = open_alone(&path, read_only, libc::O_DIRECT)?;
    let meta = file.metadata().with_context(|| path.display().to_string())?;
    let wanted = makedev(number.major.into(), number.minor.into());
    if !meta.file_type().is_block_device() || meta.rdev() != wanted {
        return Err(Error::precondition(format!("{} is not the block device {number}", path.display())));
    }
    Ok(file)
}

/// Opens a disk's file, or a device that nobody else writes to. `flags`: left out where the file does not take them.
pub(crate) fn open_alone(path: &Path, read_only: bool, flags: i32) -> Result<File> {
    let context = || path.display().to_string();
    // O_EXCL on a device: nobody else has it mounted or has opened it so (open(2)), as long as QEMU has the
    // descriptor. What is only read may be shared by several guests.
    let is_device = fs::metadata(path).with_context(context)?.file_type().is_block_device();
    let exclusive = if is_device && !read_only { libc::O_EXCL } else { 0 };
    let open = |flags| -> io::Result<File> {
        let always = libc::O_CLOEXEC | libc::O_NONBLOCK | exclusive;
        OpenOptions::new().read(true).write(!read_only).custom_flags(always | flags).open(path)
    };
    let opened = match open(flags) {
        Err(e) if flags != 0 && e.raw_os_error() == Some(libc::EINVAL) => open(0),
        opened => opened,
    };
    if opened.as_ref().is_err_and(|e| e.kind() == ErrorKind::ResourceBusy) {
        return Err(Error::precondition(format!(
            "{}: the host uses this device, or another guest has it: unmount it, or give the container another one \
             (EBUSY)",
            path.display()
        )));
    }
    opened.with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_number_and_not_written_to_by_two() {
        let none = DeviceNumber { major: 4000, minor: 77 };
        assert_eq!(open(none, true).expect_err("none").to_string(), "the host has no block device 4000:77");
        // Machines without the module have no such device.
        let number = DeviceNumber { major: 7, minor: 6 };
        let Ok(path) = node(number) else { return };
        assert_eq!(path, Path::new("/dev/loop6"));
        // A mount holds a device as this does.
        let Ok(held) = open(number, false) else { return };
        let e = open(number, false).expect_err("held").to_string();
        assert!(e.starts_with("/dev/loop6: the host uses this device, or another guest has it"), "{e}");
        open(number, true).expect("several guests may read one device");
        drop(held);
        open(number, false).expect("free");
    }
}
