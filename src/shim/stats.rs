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
        memory_oom_control: MessageField::some(v1::MemoryOomControl {
            oom_kill: stats.memory.oom_kills,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn memory_v1(stats: &Stats) -> v1::MemoryStat {
    let m = stats.memory;
    let of = |name| m.details.get(name);
    let usage = v1::MemoryEntry {
        limit: m.limit,
        usage: m.usage,
        max: m.peak,
        failcnt: m.failures,
        ..Default::default()
    };
    v1::MemoryStat {
        cache: of("file"),
        rss: of("anon"),
        rss_huge: of("anon_thp"),
        mapped_file: of("file_mapped"),
        dirty: of("file_dirty"),
        writeback: of("file_writeback"),
        pg_pg_in: of("pgpgin"),
        pg_pg_out: of("pgpgout"),
        pg_fault: of("pgfault"),
        pg_maj_fault: of("pgmajfault"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        hierarchical_memory_limit: m.limit,
        hierarchical_swap_limit: u64::MAX,
        total_cache: of("file"),
        total_rss: of("anon"),
        total_rss_huge: of("anon_thp"),
        total_mapped_file: of("file_mapped"),
        total_dirty: of("file_dirty"),
        total_writeback: of("file_writeback"),
        total_pg_pg_in: of("pgpgin"),
        total_pg_pg_out: of("pgpgout"),
        total_pg_fault: of("pgfault"),
        total_pg_maj_fault: of("pgmajfault"),
        total_inactive_anon: of("inactive_anon"),
        total_active_anon: of("active_anon"),
        total_inactive_file: of("inactive_file"),
        total_active_file: of("active_file"),
        total_unevictable: of("unevictable"),
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
            oom: stats.memory.oom_kills,
            oom_kill: stats.memory.oom_kills,
            ..Default::default()
        }),
        rdma: MessageField::some(v2::RdmaStat::default()),
        ..Default::default()
    }
}

fn memory_v2(stats: &Stats) -> v2::MemoryStat {
    let m = stats.memory;
    let of = |name| m.details.get(name);
    v2::MemoryStat {
        anon: of("anon"),
        file: of("file"),
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        anon_thp: of("anon_thp"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        workingset_refault: of("workingset_refault"),
        workingset_activate: of("workingset_activate"),
        workingset_nodereclaim: of("workingset_nodereclaim"),
        pgrefill: of("pgrefill"),
        pgscan: of("pgscan"),
        pgsteal: of("pgsteal"),
        pgactivate: of("pgactivate"),
        pgdeactivate: of("pgdeactivate"),
        pglazyfree: of("pglazyfree"),
        pglazyfreed: of("pglazyfreed"),
        thp_fault_alloc: of("thp_fault_alloc"),
        thp_collapse_alloc: of("thp_collapse_alloc"),
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
    use crate::plan::stats::{CpuStats, Details, MemoryStats, PidsStats};

    /// A value of its own in every field.
    fn stats() -> Stats {
        let next = std::cell::Cell::new(1000);
        let n = || next.replace(next.get() + 1000);
        Stats {
            cpu: CpuStats {
                total: n(),
                user: n(),
                kernel: n(),
                periods: n(),
                throttled_periods: n(),
                throttled: n(),
            },
            memory: MemoryStats {
                usage: n(),
                peak: n(),
                limit: n(),
                failures: n(),
                swap: n(),
                kernel: n(),
                oom_kills: n(),
                details: Details::of(|_| Some(n())),
            },
            pids: PidsStats { current: n(), limit: n() },
            disks: vec![DiskStats {
                major: n(),
                minor: n(),
                read_bytes: n(),
                written_bytes: n(),
                reads: n(),
                writes: n(),
            }],
        }
    }

    fn text(message: &dyn containerd_shim_protos::protobuf::MessageDyn) -> String {
        containerd_shim_protos::protobuf::text_format::print_to_string_pretty(message)
    }

    /// CRI-O 1.36 dereferences each of these.
    #[test]
    fn no_message_that_the_runc_shim_sends_is_missing() {
        let of = |message: &dyn containerd_shim_protos::protobuf::MessageDyn| {
            let text = text(message);
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

    /// The fields that the runc shim sends (containerd/cgroups, the metrics.proto of each version), but for those
    /// that are not counted here: huge pages, the CPUs apart, RDMA, pressure (PSI), the peak of swap.
    #[test]
    fn the_messages_are_complete() {
        let (v1, v2) = (text(&metrics_v1(&stats())), text(&metrics_v2(&stats())));
        assert!(v1 == include_str!("testdata/metrics-v1.txt"), "version 1 has changed:\n{v1}");
        assert!(v2 == include_str!("testdata/metrics-v2.txt"), "version 2 has changed:\n{v2}");
    }
}
