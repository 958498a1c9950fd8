//! Files in memory that cannot be changed any more, for a child that gets their descriptor (memfd_create(2)).

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::error::{Context, Result};

/// A file with this content, open for reading only. Nobody can write to it, or change its length, by any way.
pub fn sealed(name: &str, content: &[u8]) -> Result<OwnedFd> {
    let context = || format!("keep {name} in memory");
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(name, flags).with_context(context)?);
    file.write_all(content).with_context(context)?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).with_context(context)?;
    // QEMU takes a descriptor that is open for writing, too, for nothing that is read only.
    let reading = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).with_context(context)?;
    Ok(reading.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn what_is_sealed_can_be_read_and_not_changed() {
        let fd = sealed("x", b"content").expect("sealed");
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mut reading = File::from(fd);
        let mut text = String::new();
        reading.read_to_string(&mut text).expect("read");
        assert_eq!(text, "content");
        assert!(reading.write_all(b"x").is_err(), "the descriptor is for reading");
        let mut writing = File::options().read(true).write(true).open(path).expect("open");
        assert!(
            writing.write_all(b"x").is_err() && writing.set_len(0).is_err() && writing.set_len(99).is_err()
        );
        writing.rewind().expect("rewind");
        text.clear();
        writing.read_to_string(&mut text).expect("read");
        assert_eq!(text, "content");
    }
}
