//! A pod's or container's stats as the message containerd expects on this host, for cgroup version 1 or 2.
//!
//! Every message within it that the runc shim sends is there, also where nothing is counted: CRI-O reads them
//! without asking whether they are, and ends when one is missing.
//!
//! Network counters are not in it: version 2 has no field for them, and the runc shim leaves that of version 1
//! empty. containerd's CRI plugin reads those of `eth0` in the pod's network namespace (`sandbox_stats_linux.go`),
//! through which all of a guest's packets pass.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};

use crate::error::{Context, Result};
use crate::host::cgroup;
use crate::plan::stats::{DiskStats, Stats};

/// The metrics for Task.Stats and SandboxMetrics.
pub(crate) fn metrics(stats: &Stats) -> Result<Any> {
    if cgroup::is_v2() {
        metrics_any("io.containerd.cgroups.v2.Metrics", &metrics_v2(stats))
    } else {
        metrics_any("io.containerd.cgroups.v1.Metrics", &metrics_v1(stats))
    }
}

fn metrics_any(type_url: &str, message: &impl Message) -> Result<Any> {
    let value = message.write_to_bytes().context("encode metrics")?;
    Ok(Any { type_url: type_url.to_owned(), value, ..Default::default() })
}

fn metrics_v1(stats: &Stats) -> v1::Metrics {
    let cpu = stats.cpu;
    let usage = v1::CPUUsage { total: cpu.total, kernel: cpu.kernel, user: cpu.user, ..Default::default() };
    let throttling = v1::Throttle {
        periods: cpu.periods,
        throttled_periods: cpu.throttled_periods,
        throttled_time: cpu.throttled,
        ..Default::default()
    };
    let pids = stats.pids;
    v1::Metrics {
        pids: MessageField::some(v1::PidsStat {
            current: pids.current,
            limit: pids.limit,
            ..Default::default()
        }),
        cpu: MessageField::some(v1::CPUStat {
            usage: MessageField::some(usage),
            throttling: MessageField::some(throttling),
            ..Default::default()
        }),
        memory: MessageField::some(memory_v1(stats)),
        blkio: MessageField::some(v1::BlkIOStat {
            io_service_bytes_recursive: blkio_v1(stats, |d| (d.read_bytes, d.written_bytes)),
            io_serviced_recursive: blkio_v1(stats, |d| (d.reads, d.writes)),
            ..Default::default()
        }),
        rdma: MessageField::some(v1::RdmaStat::default()),
        memory_oom_control: MessageField::some(v1::MemoryOomControl::default()),
        ..Default::default()
    }
}

fn memory_v1(stats: &Stats) -> v1::MemoryStat {
    let m = stats.memory;
    let usage = v1::MemoryEntry {
        limit: m.limit,
        usage: m.usage,
        max: m.peak,
        failcnt: m.failures,
        ..Default::default()
    };
    v1::MemoryStat {
        cache: m.file,
        rss: m.anon,
        mapped_file: m.mapped,
        dirty: m.dirty,
        writeback: m.writeback,
        pg_fault: m.faults,
        pg_maj_fault: m.major_faults,
        inactive_anon: m.inactive_anon,
        active_anon: m.active_anon,
        inactive_file: m.inactive_file,
        active_file: m.active_file,
        unevictable: m.unevictable,
        hierarchical_memory_limit: m.limit,
        total_cache: m.file,
        total_rss: m.anon,
        total_mapped_file: m.mapped,
        total_dirty: m.dirty,
        total_writeback: m.writeback,
        total_pg_fault: m.faults,
        total_pg_maj_fault: m.major_faults,
        total_inactive_anon: m.inactive_anon,
        total_active_anon: m.active_anon,
        total_inactive_file: m.inactive_file,
        total_active_file: m.active_file,
        total_unevictable: m.unevictable,
        usage: MessageField::some(usage),
        swap: MessageField::some(v1::MemoryEntry {
            // Version 1 counts memory and swap together.
            usage: m.usage.saturating_add(m.swap),
            ..no_limit()
        }),
        kernel: MessageField::some(v1::MemoryEntry { usage: m.kernel, ..no_limit() }),
        kernel_tcp: MessageField::some(no_limit()),
        ..Default::default()
    }
}

fn no_limit() -> v1::MemoryEntry {
    v1::MemoryEntry { limit: u64::MAX, ..Default::default() }
}

fn blkio_v1(stats: &Stats, of: impl Fn(&DiskStats) -> (u64, u64)) -> Vec<v1::BlkIOEntry> {
    let entry = |disk: &DiskStats, op: &str, value| v1::BlkIOEntry {
        op: op.to_owned(),
        major: disk.major,
        minor: disk.minor,
        value,
        ..Default::default()
    };
    let both = |disk: &DiskStats| {
        let (read, written) = of(disk);
        [entry(disk, "Read", read), entry(disk, "Write", written)]
    };
    stats.disks.iter().flat_map(both).collect()
}

fn metrics_v2(stats: &Stats) -> v2::Metrics {
    let (cpu, pids) = (stats.cpu, stats.pids);
    let disk = |d: &DiskStats| v2::IOEntry {
        major: d.major,
        minor: d.minor,
        rbytes: d.read_bytes,
        wbytes: d.written_bytes,
        rios: d.reads,
        wios: d.writes,
        ..Default::default()
    };
    v2::Metrics {
        pids: MessageField::some(v2::PidsStat {
            current: pids.current,
            limit: pids.limit,
            ..Default::default()
        }),
        cpu: MessageField::some(v2::CPUStat {
            usage_usec: cpu.total / 1000,
            user_usec: cpu.user / 1000,
            system_usec: cpu.kernel / 1000,
            nr_periods: cpu.periods,
            nr_throttled: cpu.throttled_periods,
            throttled_usec: cpu.throttled / 1000,
            ..Default::default()
        }),
        memory: MessageField::some(memory_v2(stats)),
        io: MessageField::some(v2::IOStat {
            usage: stats.disks.iter().map(disk).collect(),
            ..Default::default()
        }),
        memory_events: MessageField::some(v2::MemoryEvents {
            max: stats.memory.failures,
            ..Default::default()
        }),
        rdma: MessageField::some(v2::RdmaStat::default()),
        ..Default::default()
    }
}

fn memory_v2(stats: &Stats) -> v2::MemoryStat {
    let m = stats.memory;
    v2::MemoryStat {
        anon: m.anon,
        file: m.file,
        file_mapped: m.mapped,
        file_dirty: m.dirty,
        file_writeback: m.writeback,
        inactive_anon: m.inactive_anon,
        active_anon: m.active_anon,
        inactive_file: m.inactive_file,
        active_file: m.active_file,
        unevictable: m.unevictable,
        pgfault: m.faults,
        pgmajfault: m.major_faults,
        usage: m.usage,
        usage_limit: m.limit,
        max_usage: m.peak,
        swap_usage: m.swap,
        swap_limit: u64::MAX,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::stats::{CpuStats, MemoryStats, PidsStats};

    fn stats() -> Stats {
        Stats {
            cpu: CpuStats { total: 9_000, user: 5_000, kernel: 4_000, ..CpuStats::default() },
            memory: MemoryStats {
                usage: 100,
                limit: 200,
                inactive_file: 30,
                anon: 40,
                faults: 5,
                major_faults: 6,
                ..MemoryStats::default()
            },
            pids: PidsStats { current: 2, limit: 0 },
            disks: vec![DiskStats { major: 8, read_bytes: 10, written_bytes: 20, ..DiskStats::default() }],
        }
    }

    /// CRI-O 1.36 dereferences each of these.
    #[test]
    fn no_message_that_the_runc_shim_sends_is_missing() {
        let of = |message: &dyn containerd_shim_protos::protobuf::MessageDyn| {
            let text = containerd_shim_protos::protobuf::text_format::print_to_string_pretty(message);
            let messages = text.lines().filter(|line| line.ends_with('{'));
            messages.map(|line| line.trim_end_matches(" {")).collect::<Vec<_>>().join(",")
        };
        let none = Stats::default();
        assert_eq!(
            of(&metrics_v1(&none)),
            "pids,cpu,  usage,  throttling,memory,  usage,  swap,  kernel,  kernel_tcp,blkio,rdma,memory_oom_control"
        );
        assert_eq!(of(&metrics_v2(&none)), "pids,cpu,memory,rdma,io,memory_events");
    }

    #[test]
    fn version_1_has_what_cri_reads() {
        let m = metrics_v1(&stats());
        assert_eq!((m.cpu.usage.total, m.cpu.usage.user), (9_000, 5_000));
        assert_eq!((m.memory.usage.usage, m.memory.usage.limit), (100, 200));
        assert_eq!((m.memory.total_inactive_file, m.memory.rss, m.memory.total_rss), (30, 40, 40));
        assert_eq!((m.memory.pg_fault, m.memory.pg_maj_fault), (5, 6));
        let io: Vec<_> =
            m.blkio.io_service_bytes_recursive.iter().map(|e| (e.op.as_str(), e.value)).collect();
        assert_eq!(io, [("Read", 10), ("Write", 20)]);
    }

    #[test]
    fn version_2_has_what_cri_reads() {
        let m = metrics_v2(&stats());
        assert_eq!((m.cpu.usage_usec, m.cpu.system_usec), (9, 4));
        assert_eq!((m.memory.usage, m.memory.usage_limit, m.memory.inactive_file), (100, 200, 30));
        assert_eq!((m.memory.pgfault, m.memory.pgmajfault, m.pids.current), (5, 6, 2));
        assert_eq!((m.io.usage[0].rbytes, m.io.usage[0].wbytes), (10, 20));
    }
}
