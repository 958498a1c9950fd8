//! The running guest: its VM, its agent, and which disks it has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use slog::{Logger, warn};

use crate::agent::client::Agent;
use crate::ccw::{DevNo, DevNos};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::host::confine::User;
use crate::host::process::Child;
use crate::ids::ContainerId;
use crate::mutex;
use crate::plan::agent_version::AgentVersion;
use crate::plan::cpus::CpuList;
use crate::plan::empty_dir::EmptyDirs;
use crate::plan::size::Size;
use crate::pod::disks::VolumeDisks;
use crate::pod::taps::Taps;
use crate::qemu::vm::Vm;

#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) config: Config,
    /// What the VM was started with, and when.
    pub(crate) size: Size,
    pub(crate) began: Instant,
    /// The pod's cgroup, relative to the hierarchies' roots.
    pub(crate) leaf: PathBuf,
    pub(crate) vm: Arc<Vm>,
    pub(crate) agent: Agent,
    pub(crate) agent_version: AgentVersion,
    /// Its interfaces on the host.
    pub(crate) taps: Taps,
    /// Whom its helpers run as. None: they have our rights.
    pub(crate) user: Option<User>,
    /// The vsock device program, on hosts that need one; it ends with the pod's cgroup.
    pub(crate) vsock_device: Option<Arc<Child>>,
    /// Seccomp profiles are passed to it.
    pub(crate) seccomp: bool,
    /// The CPUs that its processes were last let run on; empty: any.
    pub(crate) cpus: Mutex<CpuList>,
    pub(crate) devnos: Mutex<DevNos>,
    /// How the pod's emptyDirs are kept.
    pub(crate) empty_dirs: EmptyDirs,
    /// Disks of its containers' volumes.
    pub(crate) disks: VolumeDisks,
    /// Layer images in this guest, by their name in the cache.
    pub(crate) images: Mutex<BTreeMap<String, SharedImage>>,
    /// Mounts made so far: the agent never mounts twice on one point, so no name is used again.
    pub(crate) mounts: AtomicU32,
    /// Containers whose creation was begun in the guest and has not succeeded: the agent cannot take such an id
    /// again.
    pub(crate) unusable: Mutex<BTreeSet<ContainerId>>,
    /// What it refuses, and was told.
    pub(crate) refused: Refused,
    /// It was ended by the shim, for a reason.
    pub(crate) condemned: AtomicBool,
}

/// Calls that a guest refuses, by its policy or for want of them, of which one line in the log is enough.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    /// Files for containers that run.
    pub(crate) files: AtomicBool,
    /// Termination messages.
    pub(crate) messages: AtomicBool,
}

/// A layer image, once it is plugged and mounted. Locked meanwhile, so that two containers do not plug it twice.
pub(crate) type SharedImage = Arc<tokio::sync::Mutex<Option<Layer>>>;

/// One plugged image.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// Its mount's name in the guest.
    pub(crate) mount: String,
    pub(crate) devno: DevNo,
}

impl Guest {
    /// Kills a VM that is of no use any more. The first reason is logged and becomes that of its end: others
    /// follow from it.
    pub(crate) fn kill_because(&self, log: &Logger, why: &Error) {
        let ended = self.vm.gone().borrow().is_some();
        if !ended && !self.condemned.swap(true, Ordering::Relaxed) {
            warn!(log, "killing the VM: {}", why);
            self.vm.kill_because(&why.to_string());
        }
    }

    pub(crate) fn next_devno(&self) -> Result<DevNo> {
        mutex::lock(&self.devnos).take()
    }

    pub(crate) fn next_mount(&self) -> String {
        format!("l{}", self.mounts.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(crate) fn image(&self, name: &str) -> SharedImage {
        Arc::clone(mutex::lock(&self.images).entry(name.to_owned()).or_default())
    }

    pub(crate) fn mark_unusable(&self, id: &ContainerId) {
        mutex::lock(&self.unusable).insert(id.clone());
    }

    pub(crate) fn mark_usable(&self, id: &ContainerId) {
        mutex::lock(&self.unusable).remove(id);
    }

    pub(crate) fn is_unusable(&self, id: &ContainerId) -> bool {
        mutex::lock(&self.unusable).contains(id)
    }
}
