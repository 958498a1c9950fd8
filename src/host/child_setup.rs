//! What a child does to itself between fork and exec: cgroup, CPUs, session, signals, mount, descriptors and
//! their limit, and in the end its rights.
//!
//! Nothing here may allocate or take a lock: at the fork another thread of the parent may have held the
//! allocator's lock, and nobody in the child would release it.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, setsid, write};

use crate::error::{Code, Context, Error, Result};
use crate::host::confine::Confinement;
use crate::host::sys::check;
use crate::limits;

/// The limit of open files that this process was started with: children get it again, as programs that know
/// only 1024 descriptors (select(2)) expect.
static GIVEN_LIMIT: OnceLock<rlim_t> = OnceLock::new();

/// Refuses a limit of open files that no pod could run with.
pub(crate) fn check_file_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("limit of open files (RLIMIT_NOFILE)")?;
    let needed = limits::host::DESCRIPTORS;
    if hard >= needed {
        return Ok(());
    }
    Err(Error::new(
        Code::ResourceExhausted,
        format!(
            "a limit of {hard} descriptors (RLIMIT_NOFILE), {needed} are needed: raise LimitNOFILE= of the unit that \
             starts this program"
        ),
    ))
}

/// Raises this process's own limit of open files as far as it may: each stream of a container needs some.
pub(crate) fn raise_file_limit() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    GIVEN_LIMIT.get_or_init(|| soft);
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// The set-up of one child.
#[derive(Debug)]
pub(crate) struct ChildSetup {
    /// Descriptors that become 3, 4, 5 … in this order; everything else above 2 is closed at exec.
    pub(crate) fds: Vec<OwnedFd>,
    /// Opened `cgroup.procs` files: the child enters each before the program starts.
    pub(crate) cgroup: Vec<File>,
    /// The CPUs that the child runs on, as far as it may.
    pub(crate) cpus: Option<CpuSet>,
    /// SIGKILL when the spawning thread ends. A fallback: the cgroup is what we rely on.
    pub(crate) die_with_parent: bool,
    /// A read-only overlay in a private mount namespace.
    pub(crate) mount: Option<LayerMount>,
    /// The largest file that it may write, in bytes.
    pub(crate) file_bytes: Option<u64>,
    /// What it gives up. None: it has our rights.
    pub(crate) confine: Option<Confinement>,
}

/// A read-only overlay that exists only for the child: it disappears with it.
///
/// The layers are named by descriptors. mount(2) reads one page of options and cuts the rest without an error,
/// and a path that is cut is another directory of the node: a list of paths must never get there. What was mounted
/// is compared with what was asked for all the same.
#[derive(Debug)]
pub(crate) struct LayerMount {
    /// Topmost first.
    layers: Vec<CString>,
    target: CString,
    /// Room for the options, which are complete only in the child; zeros follow them.
    options: Vec<u8>,
    /// Room for what the kernel says of its mounts.
    mounts: Vec<u8>,
}

/// The error when the kernel mounted something else than it was asked for (EUCLEAN, which no overlay returns).
pub(crate) const NOT_AS_ASKED: i32 = libc::EUCLEAN;

/// What mount(2) reads of its options, with the final zero: the smallest page of all architectures.
const MOUNT_OPTIONS: usize = 4096;

impl ChildSetup {
    /// Makes `command` apply this set-up in the child.
    pub(crate) fn attach(mut self, command: &mut Command) {
        let mut scratch: Vec<RawFd> = vec![-1; self.fds.len()];
        // SAFETY: the closure makes system calls only; all memory was allocated before the fork.
        unsafe { command.pre_exec(move || self.apply(&mut scratch)) };
    }

    fn apply(&mut self, scratch: &mut [RawFd]) -> io::Result<()> {
        for procs in &self.cgroup {
            write(procs, b"0")?;
        }
        if let Some(cpus) = &self.cpus {
            // The parent looks at what came of it and reports what the kernel refused.
            sched_setaffinity(Pid::from_raw(0), cpus).ok();
        }
        setsid().ok();
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        if let Some(bytes) = self.file_bytes {
            setrlimit(Resource::RLIMIT_FSIZE, bytes, bytes)?;
        }
        default_signals();
        if let Some(mount) = &mut self.mount {
            mount.apply()?;
        }
        self.place_fds(scratch)?;
        if let Some(limit) = GIVEN_LIMIT.get() {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            setrlimit(Resource::RLIMIT_NOFILE, *limit, hard)?;
        }
        if let Some(confinement) = self.confine {
            confinement.apply()?;
        }
        // In the end: another user is another process to the kernel, without this signal (prctl(2)).
        if self.die_with_parent {
            set_pdeathsig(Signal::SIGKILL)?;
        }
        Ok(())
    }

    /// Moves the descriptors out of each other's way first, then to 3, 4, 5 …; the rest of the
    /// table closes itself at exec.
    fn place_fds(&self, scratch: &mut [RawFd]) -> io::Result<()> {
        let first_free = libc::c_int::try_from(self.fds.len()).unwrap_or(libc::c_int::MAX - 3) + 3;
        for (fd, high) in self.fds.iter().zip(scratch.iter_mut()) {
            *high = fcntl(fd, FcntlArg::F_DUPFD(first_free)).map_err(|e| match e {
                // A number beyond RLIMIT_NOFILE (fcntl(2)): the parent names the limit.
                Errno::EINVAL => Errno::EMFILE,
                other => other,
            })?;
        }
        // SAFETY: plain descriptor calls; descriptors of this process are closed at exec, not now.
        unsafe {
            check(libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC))?;
            for (number, high) in (3..).zip(scratch.iter()) {
                check(libc::dup2(*high, number).into())?;
            }
        }
        Ok(())
    }
}

/// Undoes what the parent ignores or handles; exec would pass on what is ignored.
fn default_signals() {
    for signal in 1..32 {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            // SAFETY: no handler is installed, only removed.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

impl LayerMount {
    pub(crate) fn new(layers: Vec<CString>, target: CString) -> Self {
        Self { layers, target, options: vec![0; MOUNT_OPTIONS], mounts: vec![0; 4 * MOUNT_OPTIONS] }
    }

    fn apply(&mut self) -> io::Result<()> {
        const NONE: Option<&CStr> = None;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(NONE, c"/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        self.name_layers()?;
        let options = CStr::from_bytes_until_nul(&self.options)
            .map_err(|_full| io::Error::from_raw_os_error(libc::E2BIG))?;
        let overlay = c"overlay";
        mount(Some(overlay), self.target.as_c_str(), Some(overlay), flags, Some(options))?;
        let mounts = File::open("/proc/thread-self/mountinfo")?;
        if is_mounted(mounts, options.to_bytes(), &mut self.mounts)? {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(NOT_AS_ASKED))
    }

    /// Opens the layers, in the namespace that they are mounted in, and writes the options. The descriptors
    /// close themselves at exec.
    fn name_layers(&mut self) -> io::Result<()> {
        let mut options = Cursor::new(self.options.as_mut_slice());
        let mut separator = "lowerdir=";
        for layer in &self.layers {
            let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
            // SAFETY: the path ends with a zero.
            let fd = unsafe { libc::open(layer.as_ptr(), flags) };
            check(fd.into())?;
            write!(options, "{separator}/proc/self/fd/{fd}")
                .map_err(|_full| io::Error::from_raw_os_error(libc::E2BIG))?;
            separator = ":";
        }
        Ok(())
    }
}

/// Whether a mount with these options is in a list of the form of mountinfo (proc(5)). `room` is longer than twice
/// the options.
fn is_mounted(mut list: impl Read, options: &[u8], room: &mut [u8]) -> io::Result<bool> {
    let mut held = 0;
    loop {
        let count = list.read(room.get_mut(held..).unwrap_or_default())?;
        held += count;
        let seen = room.get(..held).unwrap_or_default();
        // Not only a part of longer ones: another option or the line's end follows.
        let mut places = seen.windows(options.len() + 1);
        if places.any(|place| place.starts_with(options) && (place.ends_with(b",") || place.ends_with(b"\n")))
        {
            return Ok(true);
        }
        if count == 0 {
            return Ok(false);
        }
        let kept = held.min(options.len());
        room.copy_within(held - kept..held, 0);
        held = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(count: usize) -> io::Result<String> {
        let mut mount = LayerMount::new(vec![c"/".to_owned(); count], c"/".to_owned());
        mount.name_layers()?;
        Ok(CStr::from_bytes_until_nul(&mount.options).expect("zero").to_str().expect("text").to_owned())
    }

    #[test]
    fn the_options_of_the_most_layers_fit_and_more_are_an_error() {
        let options = of(crate::limits::spec::ROOTFS_LAYERS + 1).expect("options");
        let names = options.strip_prefix("lowerdir=").expect("key").split(':');
        assert!(names.clone().all(|name| name.starts_with("/proc/self/fd/")), "{options}");
        assert_eq!(names.count(), crate::limits::spec::ROOTFS_LAYERS + 1);
        assert_eq!(of(300).map_err(|e| e.raw_os_error()), Err(Some(libc::E2BIG)));
    }

    #[test]
    fn a_mount_that_is_cut_or_reordered_is_not_the_one_asked_for() {
        let is = |list: &str, options: &str| {
            let mut room = vec![0; 2 * options.len() + 3];
            is_mounted(list.as_bytes(), options.as_bytes(), &mut room).expect("read")
        };
        let others = "22 27 0:21 / /proc rw,nosuid shared:13 - proc proc rw\n".repeat(50);
        let own = |options: &str| {
            format!("{others}99 22 0:50 / /mnt ro,nosuid - overlay overlay ro,{options}\n{others}")
        };
        let asked = "lowerdir=/proc/self/fd/12:/proc/self/fd/13";
        assert!(is(&own(asked), asked) && is(&own(&format!("{asked},uuid=on")), asked));
        for other in [
            "lowerdir=/proc/self/fd/12",
            "lowerdir=/proc/self/fd/12:/proc/self/fd/1",
            "lowerdir=/proc/self/fd/12:/proc/self/fd/134",
            "lowerdir=/proc/self/fd/12:/proc/self/fd/13:/proc/self/fd/14",
            "lowerdir=/proc/self/fd/13:/proc/self/fd/12",
            "upperdir=/",
        ] {
            assert!(!is(&own(other), asked), "{other}");
        }
        assert!(!is("", asked));
    }
}
