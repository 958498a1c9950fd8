//! Locks of flock(2): a pod's, which its shim holds while it runs, and a folder's, for a moment.
//!
//! The lock belongs to the open file description. Duplicated descriptors share it, it ends with the
//! last of them, and dropping a [`Flock`] releases it for all: hence [`PodLock::leave`].

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_send_signal};

use crate::error::{Context, Error, Result};
use crate::limits;

/// Characters of a process' number in a lock file.
const HOLDER: usize = 10;

/// The lock of a running shim; held as long as this, or a descriptor made from it, is open.
#[derive(Debug)]
pub(crate) struct PodLock(Flock<File>);

impl PodLock {
    /// As [`try_lock_file`].
    pub(crate) fn try_take(path: &Path) -> Result<Option<Self>> {
        Ok(try_lock_file(path)?.map(Self))
    }

    /// Makes room for the name of the process that will take the lock over: then it needs no free space. Until it
    /// signs, nobody is named.
    pub(crate) fn reserve(&self, path: &Path) -> Result<()> {
        let blank = format!("{:HOLDER$}\n", "");
        self.0.write_all_at(blank.as_bytes(), 0).with_context(|| format!("write {}", path.display()))
    }

    /// Names nobody as the holder: who waits for the lock is not to kill this process.
    pub(crate) fn unsign(&self) {
        self.0.set_len(0).ok(); // only shorter: no space is needed
    }

    /// A descriptor that shares the lock, for the process that takes it over.
    pub(crate) fn share(&self) -> Result<OwnedFd> {
        Ok(self.0.try_clone().context("share lock")?.into())
    }

    /// Leaves the lock to the process that has the shared descriptor: dropping would unlock both.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }

    /// Whether any process holds the lock of the file at `path`; false without such a file.
    pub(crate) fn is_held(path: &Path) -> Result<bool> {
        let context = || format!("lock {}", path.display());
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e).with_context(context),
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(false),
            Err((_, Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, e)) => Err(e).with_context(context),
        }
    }
}

/// Names this process as the holder, in the file of a lock that was left to it.
pub(crate) fn sign(lock: &File) -> Result<()> {
    let own = format!("{:HOLDER$}\n", std::process::id());
    lock.write_all_at(own.as_bytes(), 0).context("write the pod's lock file")
}

/// Kills the process that is named as the holder of the lock, if it holds it still. False: nobody is named.
pub(crate) fn kill_holder(path: &Path) -> Result<bool> {
    let Some(pid) = holder(path) else { return Ok(false) };
    let context = || format!("kill process {pid}, which holds {}", path.display());
    let process = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        opened => opened.map_err(std::io::Error::from).with_context(context)?,
    };
    // It holds the lock after it was opened: it is the process that signed, and not another one of its number.
    if PodLock::is_held(path)? && holder(path) == Some(pid) {
        match pidfd_send_signal(&process, Signal::KILL) {
            Err(rustix::io::Errno::SRCH) => {}
            sent => sent.map_err(std::io::Error::from).with_context(context)?,
        }
    }
    Ok(true)
}

/// Locks the file at `path`, which is created if needed. None: another one has locked it.
///
/// After locking, the path must still name the locked file: its last holder may have removed it in between.
pub(crate) fn try_lock_file(path: &Path) -> Result<Option<Flock<File>>> {
    let context = || format!("lock {}", path.display());
    for _ in 0..limits::host::LOCK_TRIES {
        let locked = match Flock::lock(open_or_create(path)?, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => locked,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, e)) => return Err(e).with_context(context),
        };
        let held = locked.metadata().with_context(context)?;
        match fs::symlink_metadata(path) {
            Ok(there) if there.ino() == held.ino() && there.dev() == held.dev() => return Ok(Some(locked)),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(context),
        }
    }
    Err(Error::unavailable(format!("lock {}: it keeps being replaced", path.display())))
}

fn open_or_create(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(path).with_context(|| format!("lock {}", path.display()))
}

/// Locks a folder for a short piece of work, waiting up to `limit` for other holders. None: the caller goes on
/// without the lock, because a process that holds it for so long hangs. Blocks.
#[allow(clippy::disallowed_methods)] // on a thread of `begun::blocking`, or in `delete`
pub(crate) fn lock_folder(folder: &Path, limit: Duration) -> Option<Flock<File>> {
    let until = Instant::now() + limit;
    let mut file = File::open(folder).ok()?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Some(locked),
            Err((_, e)) if e != Errno::EWOULDBLOCK || Instant::now() > until => return None,
            Err((again, _)) => file = again,
        }
        std::thread::sleep(limits::host::LOCK_PAUSE);
    }
}

/// Whoever is named in a lock file; only valid while the lock is held.
fn holder(path: &Path) -> Option<Pid> {
    let pid = fs::read_to_string(path).ok()?.trim().parse().ok().filter(|pid| *pid > 1);
    pid.and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::process::{Ended, Launch};

    #[test]
    fn a_lock_is_held_by_one_and_released_with_its_last_descriptor() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("lock");
        let first = PodLock::try_take(&path).expect("take").expect("free");
        first.reserve(&path).expect("reserve");
        assert_eq!((holder(&path), kill_holder(&path)), (None, Ok(false)));
        sign(&first.0).expect("sign");
        let own = i32::try_from(std::process::id()).ok().and_then(Pid::from_raw);
        assert_eq!(holder(&path), own);
        assert_eq!(fs::metadata(&path).expect("file").len(), 11, "no more than was reserved");
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

    #[tokio::test]
    async fn only_a_process_that_holds_the_lock_is_killed() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("lock");
        let sleep = Launch { program: "/bin/sleep".into(), args: vec!["100".into()], ..Launch::default() };
        let stranger = sleep.spawn().expect("spawn");
        // The number of a shim that has ended, taken by another process.
        fs::write(&path, format!("{}\n", stranger.pid())).expect("write");
        assert_eq!(kill_holder(&path), Ok(true));
        stranger.kill(libc::SIGTERM).expect("kill");
        assert_eq!(stranger.wait().await, Ok(Ended::Signal(libc::SIGTERM)), "it lived until now");
    }
}
