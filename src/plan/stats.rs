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
    pub anon: u64,
    pub file: u64,
    pub mapped: u64,
    pub dirty: u64,
    pub writeback: u64,
    pub inactive_anon: u64,
    pub active_anon: u64,
    /// Can be reclaimed at once: the usage without it is the working set.
    pub inactive_file: u64,
    pub active_file: u64,
    pub unevictable: u64,
    pub faults: u64,
    pub major_faults: u64,
}

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

impl MemoryStats {
    /// Takes the values of `memory.stat`, by their names in cgroup v1 (`total_`: with children) or v2.
    pub fn take_details(&mut self, find: impl Fn(&str) -> Option<u64>) {
        let first = |names: &[&str]| names.iter().find_map(|name| find(name)).unwrap_or(0);
        self.anon = first(&["total_rss", "rss", "anon"]);
        self.file = first(&["total_cache", "cache", "file"]);
        self.mapped = first(&["total_mapped_file", "mapped_file", "file_mapped"]);
        self.dirty = first(&["total_dirty", "dirty", "file_dirty"]);
        self.writeback = first(&["total_writeback", "writeback", "file_writeback"]);
        self.inactive_anon = first(&["total_inactive_anon", "inactive_anon"]);
        self.active_anon = first(&["total_active_anon", "active_anon"]);
        self.inactive_file = first(&["total_inactive_file", "inactive_file"]);
        self.active_file = first(&["total_active_file", "active_file"]);
        self.unevictable = first(&["total_unevictable", "unevictable"]);
        self.faults = first(&["total_pgfault", "pgfault"]);
        self.major_faults = first(&["total_pgmajfault", "pgmajfault"]);
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
        memory.inactive_file = memory.inactive_file.min(memory.usage);
        for part in [
            &mut memory.peak,
            &mut memory.kernel,
            &mut memory.anon,
            &mut memory.file,
            &mut memory.mapped,
            &mut memory.dirty,
            &mut memory.writeback,
            &mut memory.inactive_anon,
            &mut memory.active_anon,
            &mut memory.active_file,
            &mut memory.unevictable,
        ] {
            *part = (*part).min(bytes);
        }
        // Swap is on disks, whose size is not bounded by the VM's.
        for count in [&mut memory.swap, &mut memory.failures, &mut memory.faults, &mut memory.major_faults] {
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
            let mut stats = Stats {
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
                    ..MemoryStats::default()
                },
                pids: PidsStats { current: n, limit: n },
                disks: vec![DiskStats { major: n, ..DiskStats::default() }; 1000],
            };
            stats.memory.take_details(|_| Some(n));
            stats.clamp_to_vm(VM, Duration::from_secs(10))
        };
        let lies = all(u64::MAX);
        assert_eq!((lies.cpu.total, lies.cpu.user), (20_000_000_000, 20_000_000_000));
        assert_eq!(lies.cpu.periods, i64::MAX.unsigned_abs());
        assert_eq!((lies.memory.usage, lies.memory.inactive_file), (512 << 20, 512 << 20));
        assert_eq!((lies.memory.limit, lies.memory.faults), (u64::MAX, i64::MAX.unsigned_abs()));
        assert_eq!((lies.pids.current, lies.pids.limit), (limits::agent::GUEST_TASKS, 0));
        assert_eq!(lies.disks.len(), limits::agent::STATS_DISKS);
        let truth = all(7);
        assert_eq!((truth.cpu.total, truth.memory.usage, truth.pids.current), (7, 7, 7));
        assert_eq!(all(0).memory.limit, u64::MAX, "no limit is known");
    }

    #[test]
    fn the_working_set_is_never_negative() {
        let memory = MemoryStats { usage: 5, inactive_file: 9, limit: 3, ..MemoryStats::default() };
        let stats = Stats { memory, ..Stats::default() };
        let memory = stats.clamp_to_vm(VM, Duration::from_secs(1)).memory;
        assert_eq!((memory.usage, memory.inactive_file, memory.limit), (5, 5, 5));
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
        let mut memory = MemoryStats::default();
        memory.take_details(v1);
        assert_eq!((memory.anon, memory.inactive_file), (2, 2), "children are counted");
        memory.take_details(v2);
        assert_eq!((memory.anon, memory.file, memory.mapped, memory.major_faults), (3, 4, 5, 6));
    }
}
