//! The CPUs that a process' threads may run on (`sched_setaffinity`); the kernel keeps them within its cpuset.

use std::collections::BTreeSet;
use std::fs;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
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

/// Restricts all threads of a process to `cpus`. Tries every thread and returns the first error.
pub(super) fn set(pid: u32, cpus: &CpuList) -> Result<()> {
    let Some(set) = set_of(cpus) else { return Ok(()) };
    let context = || format!("let process {pid} run on CPUs {cpus}");
    let mut done = BTreeSet::new();
    let mut failed = None;
    for _ in 0..limits::host::PROCESS_SCANS {
        let threads: Vec<i32> = fs::read_dir(format!("/proc/{pid}/task"))
            .with_context(context)?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|thread| !done.contains(thread))
            .collect();
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

/// The CPUs that a process' first thread may run on.
pub(super) fn get(pid: u32) -> Result<CpuList> {
    let context = || format!("CPUs of process {pid}");
    let set = sched_getaffinity(Pid::from_raw(i32::try_from(pid).with_context(context)?));
    let set = set.with_context(context)?;
    let mut list = CpuList::default();
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).for_each(|cpu| list.add(cpu));
    Ok(list)
}
