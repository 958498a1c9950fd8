//! The CPUs that a child's threads may run on (`sched_setaffinity`); the kernel keeps them within its cpuset.
//!
//! They are named by number, and a number may be another's once the child is reaped: the child's pidfd tells
//! that it was not when its threads were listed.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::error::{Context, Result};
use crate::limits;
use crate::plan::cpus::CpuList;

/// None for the empty list, which is no restriction.
pub(super) fn set_of(cpus: &CpuList) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    cpus.cpus().for_each(|cpu| set.set(cpu).unwrap_or(()));
    (!cpus.is_empty()).then_some(set)
}

/// A child of ours, by both of its names.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnChild<'a> {
    pub pid: u32,
    pub pidfd: BorrowedFd<'a>,
}

impl OwnChild<'_> {
    /// Fails if the child is reaped; one that has ended still has its number.
    fn check_not_reaped(self) -> Result<()> {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(Id::PIDFd(self.pidfd), peek)
            .map(drop)
            .with_context(|| format!("process {} has ended", self.pid))
    }

    /// Restricts all its threads to `cpus`. Tries every thread and returns the first error.
    pub(super) fn set(self, cpus: &CpuList) -> Result<()> {
        let Some(set) = set_of(cpus) else { return Ok(()) };
        let context = || format!("let process {} run on CPUs {cpus}", self.pid);
        let mut done = BTreeSet::new();
        let mut failed = None;
        for _ in 0..limits::host::PROCESS_SCANS {
            let threads: Vec<i32> = fs::read_dir(format!("/proc/{}/task", self.pid))
                .with_context(context)?
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
                .filter(|thread| !done.contains(thread))
                .collect();
            self.check_not_reaped().with_context(context)?;
            if threads.is_empty() {
                break;
            }
            for thread in threads {
                done.insert(thread);
                match sched_setaffinity(Pid::from_raw(thread), &set) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(e) => failed = failed.or(Some(e)),
                }
            }
        }
        failed.map_or(Ok(()), Err).with_context(context)
    }

    /// The CPUs that its first thread may run on.
    pub(super) fn get(self) -> Result<CpuList> {
        let context = || format!("CPUs of process {}", self.pid);
        let set = sched_getaffinity(Pid::from_raw(i32::try_from(self.pid).with_context(context)?));
        self.check_not_reaped().with_context(context)?;
        let set = set.with_context(context)?;
        let mut list = CpuList::default();
        (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).for_each(|cpu| list.add(cpu));
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::process::Launch;
    use rustix::process::{PidfdFlags, pidfd_open};
    use std::os::fd::AsFd;

    /// The number of a reaped child may be another's by then: here it is this process' own.
    #[tokio::test]
    async fn a_number_whose_child_was_reaped_is_not_used() {
        let child = Launch { program: "/bin/true".into(), ..Launch::default() }.spawn().expect("spawn");
        let pid = i32::try_from(child.pid()).ok().and_then(rustix::process::Pid::from_raw).expect("pid");
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("pidfd");
        let reused = OwnChild { pid: std::process::id(), pidfd: pidfd.as_fd() };
        let cpus = reused.get().expect("not reaped");
        child.wait().await.expect("reaped");
        for refused in [reused.set(&cpus), reused.get().map(drop), child.set_cpus(&cpus).map(drop)] {
            let e = refused.expect_err("reaped").to_string();
            assert!(e.contains("has ended") || e.contains("No such file"), "{e}");
        }
    }
}
