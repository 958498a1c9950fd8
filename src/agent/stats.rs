//! The agent's statistics as ours: every field that is used, by name. Nothing is checked here (see
//! `plan::stats`).

use crate::agent::messages::agent as pb;
use crate::plan::stats::{CpuStats, Details, DiskStats, MemoryStats, PidsStats, Stats};

pub(crate) fn of(answer: pb::CgroupStats) -> Stats {
    let mut stats = Stats {
        cpu: cpu(&answer.cpu_stats),
        memory: memory(&answer.memory_stats),
        pids: PidsStats { current: answer.pids_stats.current, limit: answer.pids_stats.limit },
        disks: Vec::new(),
    };
    let blkio = answer.blkio_stats.unwrap_or_default();
    for entry in &blkio.io_service_bytes_recursive {
        add(&mut stats, entry, |d| &mut d.read_bytes, |d| &mut d.written_bytes);
    }
    for entry in &blkio.io_serviced_recursive {
        add(&mut stats, entry, |d| &mut d.reads, |d| &mut d.writes);
    }
    stats
}

fn cpu(stats: &pb::CpuStats) -> CpuStats {
    let (usage, throttling) = (&stats.cpu_usage, &stats.throttling_data);
    CpuStats {
        total: usage.total_usage,
        user: usage.usage_in_usermode,
        kernel: usage.usage_in_kernelmode,
        periods: throttling.periods,
        throttled_periods: throttling.throttled_periods,
        throttled: throttling.throttled_time,
    }
}

fn memory(stats: &pb::MemoryStats) -> MemoryStats {
    MemoryStats {
        usage: stats.usage.usage,
        peak: stats.usage.max_usage,
        limit: stats.usage.limit,
        failures: stats.usage.failcnt,
        swap: stats.swap_usage.usage,
        kernel: stats.kernel_usage.usage,
        details: Details::of(|name| stats.stats.get(name).copied()),
        ..MemoryStats::default()
    }
}

/// Operations have other names in cgroup v1 (`Read`) and v2 (`read`, `rbytes`).
fn add(
    stats: &mut Stats,
    entry: &pb::BlkioStatsEntry,
    read: impl Fn(&mut DiskStats) -> &mut u64,
    write: impl Fn(&mut DiskStats) -> &mut u64,
) {
    let of = match entry.op.bytes().next() {
        Some(b'r' | b'R') => &read as &dyn Fn(&mut DiskStats) -> &mut u64,
        Some(b'w' | b'W') => &write,
        _ => return,
    };
    if let Some(disk) = stats.disk(entry.major, entry.minor) {
        let count = of(disk);
        *count = count.saturating_add(entry.value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_statistics_are_found_by_their_names() {
        let entry = |op: &str, minor, value| pb::BlkioStatsEntry {
            major: 94,
            minor,
            op: op.into(),
            value,
            ..Default::default()
        };
        let memory = pb::MemoryStats {
            usage: Some(pb::MemoryData { usage: 100, limit: 200, ..Default::default() }).into(),
            stats: [("anon".to_owned(), 60), ("inactive_file".to_owned(), 30)].into(),
            ..Default::default()
        };
        let usage = pb::CpuUsage { total_usage: 9, usage_in_usermode: 5, ..Default::default() };
        let stats = of(pb::CgroupStats {
            cpu_stats: Some(pb::CpuStats { cpu_usage: Some(usage).into(), ..Default::default() }).into(),
            memory_stats: Some(memory).into(),
            blkio_stats: Some(pb::BlkioStats {
                io_service_bytes_recursive: vec![
                    entry("Read", 0, 4096),
                    entry("write", 0, 512),
                    entry("Total", 0, 9),
                ],
                io_serviced_recursive: vec![entry("read", 0, 2), entry("read", 1, 3)],
                ..Default::default()
            })
            .into(),
            ..Default::default()
        });
        assert_eq!((stats.cpu.total, stats.cpu.user), (9, 5));
        let memory = stats.memory;
        let details = ["anon", "inactive_file"].map(|name| memory.details.get(name));
        assert_eq!((memory.usage, memory.limit, details), (100, 200, [60, 30]));
        assert_eq!(
            stats.disks,
            [
                DiskStats {
                    major: 94,
                    read_bytes: 4096,
                    written_bytes: 512,
                    reads: 2,
                    ..DiskStats::default()
                },
                DiskStats { major: 94, minor: 1, reads: 3, ..DiskStats::default() },
            ]
        );
        assert_eq!(of(pb::CgroupStats::default()), Stats::default(), "a guest that says nothing");
    }
}
