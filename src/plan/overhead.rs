//! What a pod costs its node beyond its containers' limits: the overhead in a RuntimeClass.
//!
//! The kubelet limits a pod's cgroup, in which QEMU runs, to the containers' limits plus this overhead. So
//! the overhead must cover all of the guest's memory that is not the containers': a guest uses all memory
//! that it has, if only as a cache, and a QEMU above the limit is killed.
//!
//! | of the overhead | | why |
//! | --- | --- | --- |
//! | the guest's base | `guest.memory_mib` | guest kernel, agent, bounce buffers, containers without limits |
//! | what `plan::size` adds | 1/64 of the limits | the guest kernel's accounting of its pages |
//! | tables | 1/128 of the VM | s390x page tables with their storage keys (1/256); the ultravisor's storage |
//! | QEMU, vsock device, shim | [`HOST_MIB`] | 72 + 4 + 17 MiB in emulation; `e2e_overhead` measures it |
//!
//! The kubelet cannot compute the shares of the limits, so the overhead is valid up to one size of pod.

use crate::config::Config;

/// QEMU without the guest's memory, the vsock device and the shim, in MiB.
pub const HOST_MIB: u32 = 128;

/// CPU time of QEMU's own threads and of the guest's kernel, in thousandths of a CPU.
const CPU_MILLIS: u32 = 250;

/// Limits of one pod, in MiB, up to which the overhead is valid if the configuration has no maximum.
const LIMITS_MIB: u32 = 8192;

/// One pod's overhead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overhead {
    pub memory_mib: u32,
    pub cpu_millis: u32,
    /// It is valid for pods whose containers' limits are at most this sum.
    pub limits_mib: u32,
}

/// The overhead with this configuration. `limits_mib`: for pods up to this size, instead of the largest that
/// is allowed.
pub fn overhead(config: &Config, limits_mib: Option<u32>) -> Overhead {
    let base = config.memory_mib;
    let largest = match config.max_memory_mib {
        0 => LIMITS_MIB,
        most => most.saturating_sub(base),
    };
    let limits = limits_mib.unwrap_or(largest);
    let accounting = limits.div_ceil(64);
    let tables = base.saturating_add(limits).saturating_add(accounting).div_ceil(128);
    let memory_mib = [accounting, tables, HOST_MIB].iter().fold(base, |sum, part| sum.saturating_add(*part));
    Overhead { memory_mib, cpu_millis: CPU_MILLIS, limits_mib: limits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    fn of(guest: &str, limits: Option<u32>) -> (u32, u32) {
        let text = format!("[guest]\n{guest}");
        let config = file::parse(&[("/c".into(), text)]).expect("config");
        let overhead = overhead(&config, limits);
        (overhead.memory_mib, overhead.limits_mib)
    }

    #[test]
    fn the_guests_base_is_part_of_the_overhead() {
        for (guest, limits, wanted) in [
            ("", None, (2048 + 128 + 81 + HOST_MIB, 8192)),
            ("", Some(0), (2048 + 16 + HOST_MIB, 0)),
            ("memory_mib = 768", Some(64), (768 + 1 + 7 + HOST_MIB, 64)),
            ("max_memory_mib = 4096", None, (2048 + 32 + 33 + HOST_MIB, 2048)),
            ("max_memory_mib = 4096", Some(128), (2048 + 2 + 18 + HOST_MIB, 128)),
        ] {
            assert_eq!(of(guest, limits), wanted, "{guest} {limits:?}");
        }
        assert_eq!(of("", Some(u32::MAX)).1, u32::MAX, "no overflow");
    }
}
