//! What the guest receives, by the counters of its taps: they are QEMU's, and their counters the kernel's.

use std::path::{Path, PathBuf};

use crate::host::begun::blocking;
use crate::host::{netlink, tap};
use crate::ids::PodKey;

/// A pod's taps, by name.
#[derive(Clone, Debug)]
pub(crate) struct Taps {
    netns: Option<PathBuf>,
    names: Vec<String>,
}

impl Taps {
    /// The taps of this many interfaces; without a namespace there are none.
    pub(crate) fn of(key: &PodKey, netns: Option<&Path>, interfaces: usize) -> Self {
        let names = (0..interfaces).map(|index| tap::name(key, index)).collect();
        Self { netns: netns.map(Path::to_path_buf), names }
    }

    /// Bytes that the guest has received so far. None: they cannot be read, and nothing depends on them.
    pub(crate) async fn received(&self) -> Option<u64> {
        let Self { netns, names } = self.clone();
        let netns = netns?;
        blocking("read counters", move || netlink::sent_to(&netns, &names)).await.ok()
    }
}
