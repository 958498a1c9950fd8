//! Statistics of a container or a VM, counted by the host or reported by the guest.
//!
//! A guest may report anything, and its statistics reach the kubelet's eviction and autoscalers: clamp_to_vm
//! leaves no value above what the VM has, and none that makes a caller's arithmetic overflow.

use std::time::Duration;

use crate::limits;
use crate::plan::size::Size;

/// A snapshot of all statistics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu: CpuStats,
    pub memory: MemoryStats,
    pub pids: PidsStats,
    pub disks: Vec<DiskStats>,
}

/// Nanoseconds since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuStats {
    pub total: u64,
    pub user: u64,
    pub kernel: u64,
    /// Periods of the CPU quota, those in which it was used up, and the nanoseconds of waiting for the next.
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled: u64,
}

/// Bytes; failures and faults are counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    pub usage: u64,
    pub peak: u64,
    /// `u64::MAX`: no limit.
    pub limit: u64,
    /// How often the limit was hit.
    pub failures: u64,
    pub swap: u64,
    /// The kernel's own, for this group.
    pub kernel: u64,
    /// How often the OOM killer ended one of its processes.
    pub oom_kills: u64,
    pub details: Details,
}

/// The values of memory.stat, by the names of cgroup version 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Details([u64; DETAILS.len()]);

/// What the runc shim sends of memory.stat: the name in version 2, in version 1 (`total_`: with children), and
/// whether it is in bytes; the others are counts.
const DETAILS: [(&str, &[&str], bool); 33] = [
    ("anon", &["total_rss", "rss"], true),
    ("file", &["total_cache", "cache"], true),
    ("kernel_stack", &[], true),
    ("slab", &[], true),
    ("sock", &[], true),
    ("shmem", &["total_shmem", "shmem"], true),
    ("file_mapped", &["total_mapped_file", "mapped_file"], true),
    ("file_dirty", &["total_dirty", "dirty"], true),
    ("file_writeback", &["total_writeback", "writeback"], true),
    ("anon_thp", &["total_rss_huge", "rss_huge"], true),
    ("inactive_anon", &["total_inactive_anon"], true),
    ("active_anon", &["total_active_anon"], true),
    // Can be reclaimed at once: the usage without it is the working set.
    ("inactive_file", &["total_inactive_file"], true),
    ("active_file", &["total_active_file"], true),
    ("unevictable", &["total_unevictable"], true),
    ("slab_reclaimable", &[], true),
    ("slab_unreclaimable", &[], true),
    ("pgfault", &["total_pgfault"], false),
    ("pgmajfault", &["total_pgmajfault"], false),
    // Of version 1 alone.
    ("pgpgin", &["total_pgpgin"], false),
    ("pgpgout", &["total_pgpgout"], false),
    ("workingset_refault", &[], false),
    ("workingset_activate", &[], false),
    ("workingset_nodereclaim", &[], false),
    ("pgrefill", &[], false),
    ("pgscan", &[], false),
    ("pgsteal", &[], false),
    ("pgactivate", &[], false),
    ("pgdeactivate", &[], false),
    ("pglazyfree", &[], false),
    ("pglazyfreed", &[], false),
    ("thp_fault_alloc", &[], false),
    ("thp_collapse_alloc", &[], false),
];

/// Tasks; `limit` 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PidsStats {
    pub current: u64,
    pub limit: u64,
}

/// Bytes and operations of one block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    pub major: u64,
    pub minor: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

impl Default for Details {
    fn default() -> Self {
        Self([0; DETAILS.len()]) // derived for arrays of up to 32 only
    }
}

impl Details {
    /// Takes the values of a memory.stat of either version.
    pub fn of(find: impl Fn(&str) -> Option<u64>) -> Self {
        let mut details = Self::default();
        for (value, (name, earlier, _)) in details.0.iter_mut().zip(DETAILS) {
            *value = earlier.iter().chain([&name]).find_map(|name| find(name)).unwrap_or(0);
        }
        details
    }

    /// The value of this name; 0 if it was not reported.
    pub fn get(&self, wanted: &str) -> u64 {
        let found = self.0.iter().zip(DETAILS).find(|(_, (name, ..))| *name == wanted);
        found.map_or(0, |(value, _)| *value)
    }
}

impl Stats {
    /// The disk `major:minor`, added if it is new; None if there are too many.
    pub fn disk(&mut self, major: u64, minor: u64) -> Option<&mut DiskStats> {
        let known = self.disks.iter().position(|d| (d.major, d.minor) == (major, minor));
        if known.is_none() && self.disks.len() >= limits::agent::STATS_DISKS {
            return None;
        }
        let at = known.unwrap_or_else(|| {
            self.disks.push(DiskStats { major, minor, ..DiskStats::default() });
            self.disks.len() - 1
        });
        self.disks.get_mut(at)
    }

    /// Reduces each value to what is possible in a VM of this size and age.
    #[must_use]
    pub fn clamp_to_vm(mut self, vm: Size, age: Duration) -> Self {
        let time = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX).saturating_mul(vm.vcpus.into());
        let cpu = &mut self.cpu;
        cpu.total = cpu.total.min(time);
        for part in [&mut cpu.user, &mut cpu.kernel] {
            *part = (*part).min(cpu.total);
        }
        for count in [&mut cpu.periods, &mut cpu.throttled_periods, &mut cpu.throttled] {
            *count = counter(*count);
        }
        let bytes = u64::from(vm.memory_mib) << 20;
        let memory = &mut self.memory;
        memory.usage = memory.usage.min(bytes);
        for part in [&mut memory.peak, &mut memory.kernel] {
            *part = (*part).min(bytes);
        }
        for (value, (name, _, is_bytes)) in memory.details.0.iter_mut().zip(DETAILS) {
            let most = if name == "inactive_file" { memory.usage } else { bytes };
            *value = if is_bytes { (*value).min(most) } else { counter(*value) };
        }
        // Swap is on disks, whose size is not bounded by the VM's.
        for count in [&mut memory.swap, &mut memory.failures, &mut memory.oom_kills] {
            *count = counter(*count);
        }
        // Callers subtract the usage from it; agents report 0 if there is no limit.
        memory.limit = if memory.limit == 0 { u64::MAX } else { memory.limit.max(memory.usage) };
        self.pids.current = self.pids.current.min(limits::agent::GUEST_TASKS);
        self.pids.limit = if self.pids.limit > limits::agent::GUEST_TASKS { 0 } else { self.pids.limit };
        self.disks.truncate(limits::agent::STATS_DISKS);
        for disk in &mut self.disks {
            let DiskStats { major, minor, read_bytes, written_bytes, reads, writes } = disk;
            for count in [major, minor, read_bytes, written_bytes, reads, writes] {
                *count = counter(*count);
            }
        }
        self
    }
}

/// Callers store counters in signed numbers.
fn counter(count: u64) -> u64 {
    count.min(i64::MAX.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: Size = Size { memory_mib: 512, vcpus: 2 };

    #[test]
    fn a_guests_statistics_are_clamped_to_what_its_vm_has() {
        let all = |n: u64| {
            let stats = Stats {
                cpu: CpuStats {
                    total: n,
                    user: n,
                    kernel: n,
                    periods: n,
                    throttled_periods: n,
                    throttled: n,
                },
                memory: MemoryStats {
                    usage: n,
                    limit: n,
                    peak: n,
                    failures: n,
                    swap: n,
                    kernel: n,
                    oom_kills: n,
                    details: Details::of(|_| Some(n)),
                },
                pids: PidsStats { current: n, limit: n },
                disks: vec![DiskStats { major: n, ..DiskStats::default() }; 1000],
            };
            stats.clamp_to_vm(VM, Duration::from_secs(10))
        };
        let lies = all(u64::MAX);
        assert_eq!((lies.cpu.total, lies.cpu.user), (20_000_000_000, 20_000_000_000));
        assert_eq!(lies.cpu.periods, i64::MAX.unsigned_abs());
        assert_eq!((lies.memory.usage, lies.memory.details.get("inactive_file")), (512 << 20, 512 << 20));
        assert_eq!(
            (lies.memory.limit, lies.memory.details.get("pgfault")),
            (u64::MAX, i64::MAX.unsigned_abs())
        );
        assert_eq!((lies.pids.current, lies.pids.limit), (limits::agent::GUEST_TASKS, 0));
        assert_eq!(lies.disks.len(), limits::agent::STATS_DISKS);
        let truth = all(7);
        assert_eq!((truth.cpu.total, truth.memory.usage, truth.pids.current), (7, 7, 7));
        assert_eq!(all(0).memory.limit, u64::MAX, "no limit is known");
    }

    #[test]
    fn the_working_set_is_never_negative() {
        let memory = MemoryStats {
            usage: 5,
            limit: 3,
            details: Details::of(|name| (name == "inactive_file").then_some(9)),
            ..MemoryStats::default()
        };
        let stats = Stats { memory, ..Stats::default() };
        let memory = stats.clamp_to_vm(VM, Duration::from_secs(1)).memory;
        assert_eq!((memory.usage, memory.details.get("inactive_file"), memory.limit), (5, 5, 5));
    }

    #[test]
    fn details_have_the_names_of_both_cgroup_versions() {
        let v1 = |name: &str| match name {
            "rss" | "inactive_file" => Some(1),
            "total_rss" | "total_inactive_file" => Some(2),
            _ => None,
        };
        let v2 = |name: &str| match name {
            "anon" => Some(3),
            "file" => Some(4),
            "file_mapped" => Some(5),
            "pgmajfault" => Some(6),
            _ => None,
        };
        let of = |details: Details, names: [&str; 4]| names.map(|name| details.get(name));
        let names = ["anon", "inactive_file", "file", "pgmajfault"];
        assert_eq!(of(Details::of(v1), names), [2, 2, 0, 0], "children are counted");
        let names = ["anon", "file", "file_mapped", "pgmajfault"];
        assert_eq!(of(Details::of(v2), names), [3, 4, 5, 6]);
    }
}
