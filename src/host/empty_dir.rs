//! The disk of an emptyDir: a sparse file in the folder that the kubelet made for the volume, so that the kubelet
//! counts its blocks. Only root can open it; QEMU has it by descriptor.
//!
//! A file is used by one VM and once: its key is in that guest's memory only, and what an earlier VM has left is
//! removed. A lock that ends with the last descriptor, QEMU's included, tells whether a VM still has it.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, openat};
use nix::libc;
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, unlinkat};
use rustix::fs::{FlockOperation, flock};

use crate::error::{Context, Error, Result};
use crate::limits;
use crate::oci::volume::EMPTY_DIR_PLUGIN;

/// The file's name in the volume's folder.
const DISK: &str = "disk.img";

/// Where the disk of a volume is.
pub(crate) fn path(volume: &Path) -> PathBuf {
    volume.join(DISK)
}

/// Makes the disk, of this size or of as much as its file system can hold.
pub(crate) fn make(volume: &Path, bytes: u64) -> Result<(File, u64)> {
    let context = || path(volume).display().to_string();
    let folder = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC).open(volume);
    let folder: OwnedFd = folder.with_context(context)?.into();
    let room = room(&folder).with_context(context)?;
    // A whole number of pages: what guests encrypt in.
    let bytes = bytes.min(room) & !4095;
    if bytes < limits::volumes::SMALLEST_DISK {
        return Err(Error::precondition(format!(
            "{}: its file system can hold {} MiB, which is too small for a disk",
            context(),
            bytes >> 20
        )));
    }
    remove_unused(&folder).with_context(context)?;
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = File::from(openat(&folder, DISK, flags, Mode::S_IRUSR | Mode::S_IWUSR).with_context(context)?);
    let made = fill(&file, bytes);
    if made.is_err() {
        unlinkat(&folder, DISK, UnlinkatFlags::NoRemoveDir).ok();
    }
    made.with_context(context)?;
    Ok((file, bytes))
}

fn fill(file: &File, bytes: u64) -> Result<()> {
    lock(file)?;
    file.set_permissions(PermissionsExt::from_mode(0o600)).context("set its mode")?;
    file.set_len(bytes).context("set its size")?;
    // Not taken by every file system: then the host's page cache is used.
    let flags = fcntl(file, FcntlArg::F_GETFL).map(OFlag::from_bits_retain).context("its flags")?;
    match fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT)) {
        Ok(_) | Err(Errno::EINVAL) => Ok(()),
        Err(e) => Err(e).context("set its flags"),
    }
}

/// Removes the file that a VM had which is gone, or that was never plugged.
fn remove_unused(folder: &OwnedFd) -> Result<()> {
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = match openat(folder, DISK, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT) => return Ok(()),
        Err(e) => return Err(e).context("open what is there"),
    };
    if !file.metadata().context("look at what is there")?.is_file() {
        return Err(Error::precondition("something else than a disk is there: remove it"));
    }
    lock(&file)?;
    unlinkat(folder, DISK, UnlinkatFlags::NoRemoveDir).context("remove what is there")
}

fn lock(file: &File) -> Result<()> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::precondition(
            "another VM has this disk: wait until it has ended (its QEMU has the file open)",
        )),
        locked => locked.context("lock"),
    }
}

/// What the file system can hold, in bytes.
fn room(folder: &OwnedFd) -> Result<u64> {
    let typ: FsType = fstatfs(folder).context("its file system")?.filesystem_type();
    if [TMPFS_MAGIC, HUGETLBFS_MAGIC].contains(&typ) {
        return Err(Error::precondition(
            "it would be in the node's memory (tmpfs): keep the kubelet's folder on a disk, or set volumes.empty_dir = \
             \"guest-local\"",
        ));
    }
    let all = fstatvfs(folder).context("its file system")?;
    Ok(all.blocks().saturating_mul(all.fragment_size()))
}

/// Removes a disk that was made, or not; nothing else has this name.
pub(crate) fn remove(disk: &Path) -> Result<()> {
    if !is_disk(disk) {
        return Err(Error::internal(format!("{} is not the disk of an emptyDir", disk.display())));
    }
    match std::fs::remove_file(disk) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(()),
        removed => removed.with_context(|| format!("remove {}", disk.display())),
    }
}

fn is_disk(disk: &Path) -> bool {
    let plugin = disk.parent().and_then(Path::parent).and_then(Path::file_name);
    let is_plain = disk.components().all(|part| !matches!(part, Component::ParentDir));
    disk.is_absolute()
        && is_plain
        && disk.ends_with(DISK)
        && plugin.is_some_and(|name| name == EMPTY_DIR_PLUGIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_disk_is_sparse_private_and_for_one_vm_at_a_time() {
        let dir = tempfile::tempdir().expect("dir");
        let (file, bytes) = make(dir.path(), 64 * MIB + 5).expect("made");
        let meta = fs::metadata(path(dir.path())).expect("there");
        assert_eq!((bytes, meta.len(), meta.blocks(), meta.mode() & 0o7777), (64 * MIB, 64 * MIB, 0, 0o600));
        // QEMU's descriptor is a copy of ours.
        let of_qemu = file.try_clone().expect("copy");
        drop(file);
        let e = make(dir.path(), 64 * MIB).expect_err("in use").to_string();
        assert!(
            e.ends_with(
                "disk.img: another VM has this disk: wait until it has ended (its QEMU has the file open)"
            ),
            "{e}"
        );
        drop(of_qemu);
        let (_file, _) = make(dir.path(), 32 * MIB).expect("a new one");
        let again = fs::metadata(path(dir.path())).expect("there");
        assert!(again.ino() != meta.ino() || again.len() != meta.len());
        assert_eq!(again.len(), 32 * MIB);
    }

    #[test]
    fn it_is_as_large_as_its_file_system_at_most_and_not_in_memory() {
        let dir = tempfile::tempdir().expect("dir");
        let (_file, bytes) = make(dir.path(), 1 << 60).expect("made");
        let all = nix::sys::statvfs::statvfs(dir.path()).expect("file system");
        assert_eq!(bytes, (all.blocks() * all.fragment_size()) & !4095);
        let memory = tempfile::tempdir_in("/dev/shm").expect("dir");
        let e = make(memory.path(), MIB).expect_err("tmpfs").to_string();
        assert!(e.contains("it would be in the node's memory (tmpfs)"), "{e}");
        assert!(!path(memory.path()).exists());
    }

    #[test]
    fn what_is_no_disk_is_neither_used_nor_removed() {
        let dir = tempfile::tempdir().expect("dir");
        let other = dir.path().join("other");
        fs::write(&other, "x").expect("file");
        std::os::unix::fs::symlink(&other, path(dir.path())).expect("link");
        make(dir.path(), 64 * MIB).expect_err("a link");
        fs::remove_file(path(dir.path())).expect("remove");
        fs::create_dir(path(dir.path())).expect("folder");
        make(dir.path(), 64 * MIB).expect_err("a folder");
        for foreign in
            [other.as_path(), &path(dir.path()), Path::new("/a/kubernetes.io~empty-dir/../disk.img")]
        {
            remove(foreign).expect_err("not ours");
        }
        let volume = dir.path().join("volumes/kubernetes.io~empty-dir/cache");
        fs::create_dir_all(&volume).expect("folder");
        remove(&path(&volume)).expect("none is there");
        make(&volume, 64 * MIB).expect("made");
        remove(&path(&volume)).expect("removed");
        assert!(!path(&volume).exists());
        remove(&path(&volume.join("gone"))).expect_err("not ours");
    }
}
