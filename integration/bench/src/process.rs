//! A process's resources according to /proc.

use std::fs;
use std::time::Duration;

/// Resources of an idle process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Idle {
    /// Its share of memory, in MB.
    pub(crate) pss_mb: f64,
    pub(crate) threads: f64,
    pub(crate) files: f64,
}

pub(crate) fn idle(pid: u32) -> Idle {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).expect("/proc");
        let line = text.lines().find_map(|l| l.strip_prefix(name)).expect("field").to_owned();
        line.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).expect("number")
    };
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("fds").count();
    Idle {
        pss_mb: field("smaps_rollup", "Pss:") * 1024.0 / 1e6,
        threads: field("status", "Threads:"),
        files: f64::from(u32::try_from(files).unwrap_or(u32::MAX)),
    }
}

/// Time on a CPU so far, its threads included, from the scheduler's own clock.
pub(crate) fn cpu(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("tasks").flatten();
    let of = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    Duration::from_nanos(tasks.map(of).sum())
}

/// Time on CPUs of this process and of its children that ended.
pub(crate) fn spent() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let of = |who| {
        let usage = getrusage(who).expect("getrusage");
        [usage.user_time(), usage.system_time()].map(|time| {
            let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
            Duration::from_micros(u64::try_from(micros).unwrap_or_default())
        })
    };
    [of(UsageWho::RUSAGE_SELF), of(UsageWho::RUSAGE_CHILDREN)].iter().flatten().sum()
}

/// The only process whose command line contains `text`.
pub(crate) fn only(text: &str) -> u32 {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if pid != std::process::id() && String::from_utf8_lossy(&line).replace('\0', " ").contains(text) {
            found.push(pid);
        }
    }
    assert_eq!(found.len(), 1, "processes with {text:?}: {found:?}");
    found.first().copied().unwrap_or(0)
}
