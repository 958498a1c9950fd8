//! The VM's OOM score adjustment, which is what the kubelet sets for containers of the same quality of
//! service (its `pkg/kubelet/qos/policy.go`).
//!
//! Without it QEMU would inherit containerd's -999, and other processes would be killed for the memory that a
//! pod uses.

use crate::plan::size::{Capacity, Size};

const GUARANTEED: i32 = -997;
const BEST_EFFORT: i32 = 1000;

/// The value for /proc/PID/oom_score_adj. The quality of service is in the kubelet's cgroup names; outside
/// of these the container's own value is used.
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
    // A VM uses all of its memory in the end, so its size is its request.
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
