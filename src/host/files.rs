//! Files that are ours: opened beneath our directories, read with a bound, written atomically.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::libc;

use crate::error::{Code, Context, Error, Result};

/// Reads a whole regular file of at most `max` bytes.
pub(crate) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>> {
    let context = || format!("read {}", path.display());
    // O_NONBLOCK: a fifo in the file's place must not stop us.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(|e| with_kind(&e, &context()))?;
    let meta = file.metadata().with_context(context)?;
    if !meta.is_file() {
        return Err(Error::invalid(format!("read {}: not a regular file", path.display())));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len().min(max)).unwrap_or(0));
    file.take(max + 1).read_to_end(&mut bytes).with_context(context)?;
    if bytes.len() as u64 > max {
        return Err(Error::invalid(format!("read {}: larger than {max} bytes", path.display())));
    }
    Ok(bytes)
}

fn with_kind(e: &std::io::Error, doing: &str) -> Error {
    let code = if e.kind() == ErrorKind::NotFound { Code::NotFound } else { Code::Internal };
    Error::new(code, format!("{doing}: {e}"))
}

/// Makes a directory that is ours alone (0700), or checks that an existing one is.
pub(crate) fn private_dir(path: &Path) -> Result<()> {
    let context = || format!("make directory {}", path.display());
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e).with_context(context),
    }
    let meta = fs::symlink_metadata(path).with_context(context)?;
    let own = nix::unistd::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != own || meta.mode() & 0o077 != 0 {
        return Err(Error::new(
            Code::PermissionDenied,
            format!(
                "directory {}: exists, but is not a directory of uid {own} with mode 0700 (uid {}, mode {:o}): remove it",
                path.display(),
                meta.uid(),
                meta.mode() & 0o7777
            ),
        ));
    }
    Ok(())
}

/// Writes a file whole or not at all, mode 0600.
pub(crate) fn write_atomic(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let context = || format!("write {}/{name}", dir.display());
    let temporary = dir.join(format!(".{name}.new"));
    drop(fs::remove_file(&temporary));
    let result = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut f| f.write_all(bytes))
        .and_then(|()| fs::rename(&temporary, dir.join(name)));
    if result.is_err() {
        drop(fs::remove_file(&temporary));
    }
    result.with_context(context)
}

/// A number nobody can guess, for names.
pub(crate) fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).context("read /dev/urandom")?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Makes an empty file that says something by being there, mode 0600; there already is success.
pub(crate) fn mark(path: &Path) -> Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            Err(e).with_context(|| format!("write {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The lock of a living shim; held as long as this (or a descriptor made from it) is open.
#[derive(Debug)]
pub(crate) struct PodLock(Flock<File>);

impl PodLock {
    /// Takes the lock of the file at `path`, made if needed. None: somebody else holds it.
    ///
    /// After locking, the path must still name the locked file: its last holder may have removed
    /// it in between.
    pub(crate) fn try_take(path: &Path) -> Result<Option<Self>> {
        let context = || format!("lock {}", path.display());
        for _ in 0..100 {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(path)
                .with_context(context)?;
            let locked = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => locked,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, e)) => return Err(e).with_context(context),
            };
            let held = locked.metadata().with_context(context)?;
            match fs::symlink_metadata(path) {
                Ok(there) if there.ino() == held.ino() && there.dev() == held.dev() => {
                    return Ok(Some(Self(locked)));
                }
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e).with_context(context),
            }
        }
        Err(Error::unavailable(format!("lock {}: it keeps being replaced", path.display())))
    }

    /// Writes who holds the lock into the file.
    pub(crate) fn write_pid(&mut self, pid: u32) -> Result<()> {
        self.0.set_len(0).context("write lock file")?;
        std::os::unix::fs::FileExt::write_all_at(&*self.0, format!("{pid}\n").as_bytes(), 0)
            .context("write lock file")
    }

    /// A descriptor that carries the same lock, for the process that goes on with it.
    pub(crate) fn share(&self) -> Result<OwnedFd> {
        Ok(self.0.try_clone().context("share lock")?.into())
    }

    /// Leaves the lock to the process that has its shared descriptor: dropping would unlock both.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }

    /// Is the lock of the file at `path` held by somebody? No file: no.
    pub(crate) fn is_held(path: &Path) -> Result<bool> {
        let context = || format!("lock {}", path.display());
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e).with_context(context),
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(false),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, e)) => Err(e).with_context(context),
        }
    }
}

/// Locks a folder for a moment's work, and waits for others' work up to `limit`; without it (None) the work is done
/// all the same, because whoever holds it for so long hangs. Blocks.
#[allow(clippy::disallowed_methods)] // on a thread of its own, or in `delete`
pub(crate) fn lock_folder(folder: &Path, limit: Duration) -> Option<Flock<File>> {
    let until = Instant::now() + limit;
    let mut file = File::open(folder).ok()?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Some(locked),
            Err((_, e)) if e != nix::errno::Errno::EWOULDBLOCK || Instant::now() > until => return None,
            Err((again, _)) => file = again,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The process id written into a lock file; only valid while the lock is held.
pub(crate) fn lock_holder(path: &Path) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok().filter(|pid| *pid > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_bounded_and_takes_regular_files_only() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("f");
        fs::write(&path, b"12345").expect("write");
        assert_eq!(read_bounded(&path, 5), Ok(b"12345".to_vec()));
        assert!(read_bounded(&path, 4).expect_err("large").to_string().ends_with("larger than 4 bytes"));
        assert!(read_bounded(dir.path(), 4).expect_err("dir").to_string().ends_with("not a regular file"));
        assert_eq!(read_bounded(&dir.path().join("x"), 4).expect_err("none").code(), Code::NotFound);
    }

    #[test]
    fn a_foreign_mode_of_our_directory_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("p");
        private_dir(&path).expect("new");
        private_dir(&path).expect("again");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        assert_eq!(private_dir(&path).expect_err("mode").code(), Code::PermissionDenied);
    }

    #[test]
    fn a_lock_is_held_by_one_and_released_with_its_last_descriptor() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("lock");
        let mut first = PodLock::try_take(&path).expect("take").expect("free");
        first.write_pid(42).expect("pid");
        assert_eq!(lock_holder(&path), Some(42));
        assert_eq!(PodLock::is_held(&path), Ok(true));
        let shared = first.share().expect("share");
        drop(first); // explicitly unlocks, also for the shared descriptor: that is what `leave` is for
        assert_eq!(PodLock::is_held(&path), Ok(false));
        drop(shared);
        let first = PodLock::try_take(&path).expect("take").expect("free");
        let _shared = first.share().expect("share");
        first.leave();
        assert!(PodLock::try_take(&path).expect("take").is_none());
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().expect("dir");
        for text in ["one", "two"] {
            write_atomic(dir.path(), "f", text.as_bytes()).expect("write");
            assert_eq!(fs::read_to_string(dir.path().join("f")).expect("read"), text);
        }
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }
}
