//! What a child does to itself between fork and exec: cgroup, CPUs, session, signals, mount, descriptors.
//!
//! Nothing here may allocate or take a lock: at the fork another thread of the parent may have held the
//! allocator's lock, and nobody in the child would release it.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, setsid, write};

use crate::host::sys::check;

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
    /// A read-only mount in a private mount namespace.
    pub(crate) mount: Option<PrivateMount>,
}

/// A mount that exists only for the child: it disappears with it.
#[derive(Debug)]
pub(crate) struct PrivateMount {
    pub(crate) fstype: CString,
    pub(crate) source: CString,
    pub(crate) target: CString,
    pub(crate) options: CString,
}

impl ChildSetup {
    /// Makes `command` apply this set-up in the child.
    pub(crate) fn attach(self, command: &mut Command) {
        let mut scratch: Vec<RawFd> = vec![-1; self.fds.len()];
        // SAFETY: the closure makes system calls only; all memory was allocated before the fork.
        unsafe { command.pre_exec(move || self.apply(&mut scratch)) };
    }

    fn apply(&self, scratch: &mut [RawFd]) -> io::Result<()> {
        for procs in &self.cgroup {
            write(procs, b"0")?;
        }
        if let Some(cpus) = &self.cpus {
            // The parent looks at what came of it and reports what the kernel refused.
            sched_setaffinity(Pid::from_raw(0), cpus).ok();
        }
        setsid().ok();
        if self.die_with_parent {
            set_pdeathsig(Signal::SIGKILL)?;
        }
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        default_signals();
        if let Some(mount) = &self.mount {
            mount.apply()?;
        }
        self.place_fds(scratch)
    }

    /// Moves the descriptors out of each other's way first, then to 3, 4, 5 …; the rest of the
    /// table closes itself at exec.
    fn place_fds(&self, scratch: &mut [RawFd]) -> io::Result<()> {
        let first_free = libc::c_int::try_from(self.fds.len()).unwrap_or(libc::c_int::MAX - 64) + 64;
        for (fd, high) in self.fds.iter().zip(scratch.iter_mut()) {
            *high = fcntl(fd, FcntlArg::F_DUPFD(first_free))?;
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

impl PrivateMount {
    fn apply(&self) -> io::Result<()> {
        const NONE: Option<&CStr> = None;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(NONE, c"/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let (source, target) = (self.source.as_c_str(), self.target.as_c_str());
        mount(Some(source), target, Some(self.fstype.as_c_str()), flags, Some(self.options.as_c_str()))?;
        Ok(())
    }
}
