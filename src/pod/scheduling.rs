//! How the host schedules QEMU: its OOM score and a core scheduling domain, set before the guest runs; and the
//! CPUs it runs on, which follow the pod's containers. What a node does not allow is a warning, and the pod goes
//! on.

use slog::warn;

use crate::error::Result;
use crate::mutex;
use crate::oci::pod_spec::PodSpec;
use crate::plan::cpus::CpuList;
use crate::plan::oom_score::oom_score_adj;
use crate::plan::size::{Capacity, Size};
use crate::pod::Pod;
use crate::qemu::vm::Vm;

/// What is to be set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scheduling {
    oom_score_adj: i32,
    cpus: CpuList,
}

impl Scheduling {
    pub(crate) fn of(spec: &PodSpec, size: Size, machine: Capacity) -> Self {
        let path = spec.cgroups_path.as_deref().unwrap_or_default();
        let oom_score_adj = oom_score_adj(path, spec.oom_score_adj, size, machine);
        Self { oom_score_adj, cpus: spec.cpus }
    }

    pub(crate) fn apply(self, pod: &Pod, vm: &Vm) {
        if let Err(e) = vm.process().set_oom_score(self.oom_score_adj) {
            warn!(pod.log(), "{}: the OOM killer ranks QEMU as it ranks containerd", e);
        }
        if pod.parts.core_scheduling {
            if let Err(e) = vm.process().set_core_scheduling() {
                warn!(pod.log(), "{}: QEMU shares CPU cores with others", e);
            }
        }
        // QEMU was started on them.
        tell_missing(pod, &self.cpus, vm.process().cpus());
    }
}

/// Lets the VM's processes run on the CPUs that the pod's containers name together; when none names any
/// longer a CPU, on all that there are.
pub(crate) fn update_affinity(pod: &Pod) {
    let Ok(guest) = pod.guest() else { return };
    let mut placed = mutex::lock(&guest.cpus);
    let named =
        pod.lock().containers.values().fold(CpuList::default(), |all, container| all.with(&container.cpus));
    if named == *placed {
        return;
    }
    *placed = named;
    let wanted = if named.is_empty() { CpuList::all() } else { named };
    tell_missing(pod, &named, guest.vm.process().set_cpus(&wanted));
    if let Some(Err(e)) = guest.vsock_device.as_ref().map(|device| device.set_cpus(&wanted)) {
        warn!(pod.log(), "{}: the vsock device runs where it did", e);
    }
}

fn tell_missing(pod: &Pod, named: &CpuList, given: Result<CpuList>) {
    match given {
        Ok(given) if named.without(&given).is_empty() => {}
        Ok(given) => warn!(
            pod.log(),
            "CPUs {} of the pod are not there or not allowed for its cgroup: QEMU runs on {}",
            named.without(&given),
            given
        ),
        Err(e) => warn!(pod.log(), "{}: QEMU runs where it did", e),
    }
}
