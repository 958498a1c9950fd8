//! QEMU's share of the host, set before the guest runs: its rank for the OOM killer, and a core scheduling
//! domain of its own. A node that does not give a privilege gets a warning, and the pod starts.

use slog::warn;

use crate::oci::bundle::Bundle;
use crate::plan::oom_score::oom_score_adj;
use crate::plan::size::{Capacity, Size};
use crate::pod::Pod;
use crate::qemu::launch::Vm;

/// What is to be set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    oom_score_adj: i32,
}

impl Share {
    pub(crate) fn of(bundle: &Bundle, size: Size, machine: Capacity) -> Self {
        let own = bundle.spec.process().as_ref().and_then(|process| process.oom_score_adj());
        let path = bundle.cgroups_path().unwrap_or_default();
        Self { oom_score_adj: oom_score_adj(&path, own, size, machine) }
    }

    pub(crate) fn give(self, pod: &Pod, vm: &Vm) {
        if let Err(e) = vm.set_oom_score(self.oom_score_adj) {
            warn!(pod.log(), "{}: the OOM killer ranks QEMU as it ranks containerd", e);
        }
        if pod.parts.core_scheduling {
            if let Err(e) = vm.set_core_scheduling() {
                warn!(pod.log(), "{}: QEMU shares CPU cores with others", e);
            }
        }
    }
}
