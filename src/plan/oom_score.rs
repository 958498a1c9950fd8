//! How gladly the kernel ends a VM when the host is out of memory: as the kubelet has it for the containers
//! of the same quality of service (its `pkg/kubelet/qos/policy.go`).
//!
//! Without this QEMU would have containerd's own -999, and others would be ended for what a pod uses.

use crate::plan::size::{Capacity, Size};

const GUARANTEED: i32 = -997;
const BEST_EFFORT: i32 = 1000;

/// The value for /proc/PID/oom_score_adj. The quality of service stands in the kubelet's cgroup names;
/// elsewhere the container's own wish counts.
pub(crate) fn oom_score_adj(cgroups_path: &str, own: Option<i32>, vm: Size, host: Capacity) -> i32 {
    let is_in = |word: &str| cgroups_path.contains(word);
    if !is_in("kubepods") {
        return own.unwrap_or(0).clamp(-1000, 1000);
    }
    if is_in("besteffort") {
        return BEST_EFFORT;
    }
    if !is_in("burstable") {
        return GUARANTEED;
    }
    // A VM takes what it was given, so that is what it asked for.
    let share = u64::from(vm.memory_mib) * 1000 / host.memory_mib.max(1);
    (1000 - i32::try_from(share).unwrap_or(1000)).clamp(2, 999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_ranks_with_the_containers_of_its_class() {
        let vm = Size { memory_mib: 4096, vcpus: 1 };
        let host = Capacity { memory_mib: 16384, cpus: 4 };
        for (path, own, wanted) in [
            ("/kubepods/besteffort/pod1/abc", None, 1000),
            ("kubepods-besteffort-pod1.slice:cri-containerd:abc", Some(-998), 1000),
            ("/kubepods/pod1/abc", Some(-998), -997),
            ("kubepods-pod1.slice:cri-containerd:abc", None, -997),
            ("/kubepods/burstable/pod1/abc", Some(-998), 750),
            ("/default/abc", Some(500), 500),
            ("/default/abc", Some(i32::MIN), -1000),
            ("", None, 0),
        ] {
            assert_eq!(oom_score_adj(path, own, vm, host), wanted, "{path}");
        }
        let all = Size { memory_mib: 16384, vcpus: 1 };
        assert_eq!(oom_score_adj("/kubepods/burstable/p/a", None, all, host), 2);
        assert_eq!(oom_score_adj("/kubepods/burstable/p/a", None, vm, Capacity::default()), 2, "not known");
    }
}
