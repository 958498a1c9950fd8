//! What a pod's cgroup has used (QEMU with all of its guest, and the helpers), and whether the OOM killer hit it.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::cgroup;
use crate::host::files::read_bounded;
use crate::limits;
use crate::plan::stats::{CpuStats, Details, MemoryStats, PidsStats, Stats};

/// One tick of `cpuacct.stat` in nanoseconds: USER_HZ is 100 on every architecture we run on.
const TICK: u64 = 10_000_000;

/// Reads the leaf's stats; blocks for some hundred microseconds.
pub(crate) fn read(leaf: &Path) -> Result<Stats> {
    let dirs: Vec<PathBuf> = cgroup::dirs(leaf).into_iter().filter(|dir| dir.is_dir()).collect();
    if dirs.is_empty() {
        return Err(Error::not_found(format!("cgroup /{}: is gone", leaf.display())));
    }
    // Each file exists in one hierarchy only; what a kernel does not count is zero.
    let file = |name: &str| text(&dirs, name).unwrap_or_default();
    Ok(if cgroup::is_v2() { v2(file) } else { v1(file) })
}

/// A cgroup whose processes the kernel's OOM killer hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OomKill {
    /// The most memory the cgroup had, in bytes; 0: unknown.
    pub peak: u64,
    /// The lowest limit of it and its ancestors: cgroup and bytes. None: the whole machine was out of memory.
    pub limit: Option<(PathBuf, u64)>,
}

/// None: the OOM killer hit no process of the leaf.
pub(crate) fn oom_kill(leaf: &Path) -> Option<OomKill> {
    let [events, peak, maximum] = if cgroup::is_v2() {
        ["memory.events", "memory.peak", "memory.max"]
    } else {
        ["memory.oom_control", "memory.max_usage_in_bytes", "memory.limit_in_bytes"]
    };
    let dirs = cgroup::dirs(leaf);
    if entry(&text(&dirs, events)?, "oom_kill").unwrap_or(0) == 0 {
        return None;
    }
    let limited = leaf.ancestors().filter(|path| !path.as_os_str().is_empty()).filter_map(|path| {
        let bytes = limit(&text(&cgroup::dirs(path), maximum)?);
        (bytes != u64::MAX).then(|| (path.to_path_buf(), bytes))
    });
    Some(OomKill {
        peak: number(&text(&dirs, peak).unwrap_or_default()),
        limit: limited.min_by_key(|(_, bytes)| *bytes),
    })
}

/// A file of the cgroup whose directories these are, from the hierarchy that has it.
fn text(dirs: &[PathBuf], name: &str) -> Option<String> {
    let bytes = dirs.iter().find_map(|dir| read_bounded(&dir.join(name), limits::host::CGROUP_BYTES).ok());
    bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn v2(file: impl Fn(&str) -> String) -> Stats {
    let cpu = file("cpu.stat");
    let of_cpu = |name| entry(&cpu, name).unwrap_or(0);
    let details = file("memory.stat");
    let mut stats = Stats {
        cpu: CpuStats {
            total: of_cpu("usage_usec").saturating_mul(1000),
            user: of_cpu("user_usec").saturating_mul(1000),
            kernel: of_cpu("system_usec").saturating_mul(1000),
            periods: of_cpu("nr_periods"),
            throttled_periods: of_cpu("nr_throttled"),
            throttled: of_cpu("throttled_usec").saturating_mul(1000),
        },
        memory: MemoryStats {
            usage: number(&file("memory.current")),
            peak: number(&file("memory.peak")),
            limit: limit(&file("memory.max")),
            failures: entry(&file("memory.events"), "max").unwrap_or(0),
            swap: number(&file("memory.swap.current")),
            kernel: entry(&details, "kernel").unwrap_or(0),
            oom_kills: entry(&file("memory.events"), "oom_kill").unwrap_or(0),
            details: Details::of(|name| entry(&details, name)),
        },
        pids: pids(&file("pids.current"), &file("pids.max")),
        disks: Vec::new(),
    };
    for line in file("io.stat").lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(device) else { continue };
        let Some(disk) = stats.disk(major, minor) else { break };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            match name {
                "rbytes" => disk.read_bytes = number(value),
                "wbytes" => disk.written_bytes = number(value),
                "rios" => disk.reads = number(value),
                "wios" => disk.writes = number(value),
                _ => {}
            }
        }
    }
    stats
}

fn v1(file: impl Fn(&str) -> String) -> Stats {
    let (ticks, throttling, details) = (file("cpuacct.stat"), file("cpu.stat"), file("memory.stat"));
    let of_cpu = |name| entry(&throttling, name).unwrap_or(0);
    let mut stats = Stats {
        cpu: CpuStats {
            total: number(&file("cpuacct.usage")),
            user: entry(&ticks, "user").unwrap_or(0).saturating_mul(TICK),
            kernel: entry(&ticks, "system").unwrap_or(0).saturating_mul(TICK),
            periods: of_cpu("nr_periods"),
            throttled_periods: of_cpu("nr_throttled"),
            throttled: of_cpu("throttled_time"),
        },
        memory: MemoryStats {
            usage: number(&file("memory.usage_in_bytes")),
            peak: number(&file("memory.max_usage_in_bytes")),
            limit: limit(&file("memory.limit_in_bytes")),
            failures: number(&file("memory.failcnt")),
            swap: entry(&details, "total_swap").unwrap_or(0),
            kernel: number(&file("memory.kmem.usage_in_bytes")),
            oom_kills: entry(&file("memory.oom_control"), "oom_kill").unwrap_or(0),
            details: Details::of(|name| entry(&details, name)),
        },
        pids: pids(&file("pids.current"), &file("pids.max")),
        disks: Vec::new(),
    };
    let names = ["blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"];
    for (major, minor, operation, value) in transfers(&first(&file, names)) {
        let Some(disk) = stats.disk(major, minor) else { break };
        match operation {
            "Read" => disk.read_bytes = value,
            _ => disk.written_bytes = value,
        }
    }
    let names = ["blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced"];
    for (major, minor, operation, value) in transfers(&first(&file, names)) {
        let Some(disk) = stats.disk(major, minor) else { break };
        match operation {
            "Read" => disk.reads = value,
            _ => disk.writes = value,
        }
    }
    stats
}

fn first(file: &impl Fn(&str) -> String, names: [&str; 2]) -> String {
    names.iter().map(|name| file(name)).find(|text| !text.is_empty()).unwrap_or_default()
}

/// Lines `8:0 Read 4096`, for Read and Write.
fn transfers(text: &str) -> impl Iterator<Item = (u64, u64, &str, u64)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (major, minor) = device(words.next()?)?;
        let operation = words.next().filter(|word| matches!(*word, "Read" | "Write"))?;
        Some((major, minor, operation, number(words.next()?)))
    })
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The value of a line `name value`.
fn entry(text: &str, wanted: &str) -> Option<u64> {
    let value = |line: &str| line.split_once(' ').filter(|(name, _)| *name == wanted)?.1.trim().parse().ok();
    text.lines().find_map(value)
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// `u64::MAX`: no limit, which version 2 writes as `max` and version 1 as its largest number of pages.
fn limit(text: &str) -> u64 {
    text.trim().parse().ok().filter(|bytes| *bytes < 1 << 62).unwrap_or(u64::MAX)
}

fn pids(current: &str, max: &str) -> PidsStats {
    PidsStats { current: number(current), limit: number(max) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::stats::DiskStats;

    #[test]
    fn version_2_is_read_by_its_names() {
        let stats = v2(|name| {
            String::from(match name {
                "cpu.stat" => "usage_usec 7000\nuser_usec 4000\nsystem_usec 3000\nnr_periods 2\n",
                "memory.current" => "4096\n",
                "memory.max" => "max\n",
                "memory.events" => "max 1\noom 2\noom_kill 8\n",
                "memory.stat" => "anon 1024\ninactive_file 512\npgfault 9\n",
                "pids.current" => "3\n",
                "pids.max" => "max\n",
                "io.stat" => "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\nbad\n8:16 \n",
                _ => "",
            })
        });
        assert_eq!((stats.cpu.total, stats.cpu.user, stats.cpu.periods), (7_000_000, 4_000_000, 2));
        let memory = stats.memory;
        assert_eq!((memory.usage, memory.limit, memory.details.get("anon")), (4096, u64::MAX, 1024));
        assert_eq!(["inactive_file", "pgfault"].map(|name| memory.details.get(name)), [512, 9]);
        assert_eq!(memory.oom_kills, 8);
        assert_eq!(stats.pids, PidsStats { current: 3, limit: 0 });
        let busy = DiskStats { major: 8, minor: 0, read_bytes: 10, written_bytes: 20, reads: 1, writes: 2 };
        assert_eq!(stats.disks, [busy, DiskStats { major: 8, minor: 16, ..DiskStats::default() }]);
    }

    #[test]
    fn version_1_is_read_by_its_names() {
        let stats = v1(|name| {
            String::from(match name {
                "cpuacct.usage" => "7000000\n",
                "cpuacct.stat" => "user 4\nsystem 3\n",
                "memory.usage_in_bytes" => "4096\n",
                "memory.limit_in_bytes" => "9223372036854771712\n",
                "memory.oom_control" => "oom_kill_disable 0\nunder_oom 0\noom_kill 8\n",
                "memory.stat" => "rss 1\ntotal_rss 1024\ntotal_inactive_file 512\ntotal_pgmajfault 9\n",
                "pids.current" => "3\n",
                "blkio.throttle.io_service_bytes" => "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n",
                "blkio.throttle.io_serviced" => "8:0 Read 1\n8:0 Write 2\n",
                _ => "",
            })
        });
        assert_eq!((stats.cpu.total, stats.cpu.user), (7_000_000, 40_000_000));
        let memory = stats.memory;
        assert_eq!((memory.usage, memory.limit, memory.details.get("anon")), (4096, u64::MAX, 1024));
        assert_eq!(["inactive_file", "pgmajfault"].map(|name| memory.details.get(name)), [512, 9]);
        assert_eq!(memory.oom_kills, 8);
        let busy = DiskStats { major: 8, minor: 0, read_bytes: 10, written_bytes: 20, reads: 1, writes: 2 };
        assert_eq!(stats.disks, [busy]);
    }
}
