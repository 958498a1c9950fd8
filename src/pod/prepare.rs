//! Before anything of a VM is started: what may boot, in which size, and the cgroup that its processes run in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use slog::{info, warn};

use crate::config::Config;
use crate::config::annotations::{self, Applied};
use crate::config::initdata::Initdata;
use crate::config::policy::Policy;
use crate::error::{Context, Result};
use crate::failpoint::{Step, hit};
use crate::host::begun::blocking;
use crate::host::confine::{self, User};
use crate::host::{cgroup, config, facts, files, shim_cgroup};
use crate::limits;
use crate::mutex;
use crate::oci::pod_spec::PodSpec;
use crate::plan::cpus::CpuList;
use crate::plan::empty_dir::EmptyDirs;
use crate::plan::size::{self, Capacity, Requested, Size, VmMaximum};
use crate::pod::Pod;
use crate::pod::cgroup as pod_cgroup;
use crate::pod::journal::Cleanup;
use crate::pod::preflight::{self, CheckedImage};

/// What a launch begins with.
#[derive(Debug)]
pub(crate) struct LaunchContext {
    pub(crate) config: Config,
    /// What the pod gives its guest's programs.
    pub(crate) initdata: Option<Initdata>,
    /// What the guest's agent is to be given before any other call, and where it is from.
    pub(crate) policy: Option<(Policy, String)>,
    /// The host's memory and CPUs.
    pub(crate) capacity: Capacity,
    pub(crate) size: Size,
    pub(crate) empty_dirs: EmptyDirs,
    /// None for a guest that is not confidential.
    pub(crate) image: Option<CheckedImage>,
    /// The host's CPUs that the pod's spec names; empty: none.
    pub(crate) cpus: CpuList,
    /// The pod's cgroup, made: every process of the pod is started in it.
    pub(crate) leaf: PathBuf,
    /// Whom QEMU and the other helpers run as. None: they have our rights.
    pub(crate) user: Option<User>,
}

/// Reads the configuration, checks what the VM is to boot, and makes the pod's cgroup.
///
/// Everything is recorded in the journal before it is made; the caller cleans up after an error.
pub(crate) async fn prepare(pod: &Pod, config_path: Option<&Path>, spec: &PodSpec) -> Result<LaunchContext> {
    let config = config::load(config_path)?;
    let annotations = spec.annotations.clone();
    let applied = blocking("annotations", move || annotations::apply(config, &annotations)).await?;
    let Applied { config, initdata, policy, own_size, ignored } = applied;
    for line in ignored {
        warn!(pod.log(), "{}", line);
    }
    let policy = match (policy, &config.policy_file) {
        (Some(policy), _) => Some((policy, "the pod's annotation".to_owned())),
        (None, Some(path)) => Some(policy_of(path)?),
        (None, None) => None,
    };
    pod.parts.level.set(config.log);
    hit(Step::ConfigRead)?;
    let empty_dirs = EmptyDirs::of(&config.volumes, &spec.annotations)?;
    let user = helpers_user(pod, &config)?;
    let capacity = blocking("host's size", || Ok(facts::capacity())).await?;
    let size = size_of(pod, &config, spec.requested, capacity, own_size)?;
    let image = preflight::check_boot(pod, &config, size, initdata.as_ref()).await?;
    let leaf = cgroup::leaf_path(spec.cgroups_path.as_deref(), &pod.parts.key)?;
    pod_cgroup::make(pod, &leaf).await?;
    hit(Step::CgroupMade)?;
    if config.shim_in_pod_cgroup {
        move_shim(pod, &leaf).await?;
    }
    Ok(LaunchContext {
        config,
        initdata,
        policy,
        capacity,
        size,
        empty_dirs,
        image,
        cpus: spec.cpus,
        leaf,
        user,
    })
}

/// The node's policy for all its guests.
fn policy_of(path: &Path) -> Result<(Policy, String)> {
    let whence = format!("agent.policy_file = {}", path.display());
    let bytes = files::read_bounded(path, limits::guest_data::POLICY_BYTES as u64);
    let policy = bytes.and_then(Policy::parse).with_context(|| whence.clone())?;
    Ok((policy, whence))
}

/// A user that does not exist is an error; that helpers keep root's rights is what was configured, and a warning.
fn helpers_user(pod: &Pod, config: &Config) -> Result<Option<User>> {
    let user = confine::user(&config.qemu.user)?;
    if user.is_none() {
        warn!(pod.log(), "qemu.user = {:?}: QEMU and its helpers have root's rights", config.qemu.user);
    }
    Ok(user)
}

/// The VM's size: the configured base and what the pod's containers may use.
fn size_of(pod: &Pod, config: &Config, requested: Requested, host: Capacity, own_size: bool) -> Result<Size> {
    let base = Size { memory_mib: config.memory_mib, vcpus: config.vcpus };
    let maximum =
        VmMaximum { memory_mib: config.max_memory_mib, vcpus: config.max_vcpus, host, of_base: own_size };
    let size = size::size(base, requested, &maximum)?;
    info!(pod.log(), "size of the VM"; "memory_mib" => size.memory_mib, "vcpus" => size.vcpus);
    Ok(size)
}

/// Moves the shim into its own leaf beside the pod's. A node that does not allow it gets a warning.
async fn move_shim(pod: &Pod, pods_leaf: &Path) -> Result<()> {
    let leaf = shim_cgroup::leaf_path(pods_leaf);
    pod.journal.record(&Cleanup::Cgroup { path: leaf.clone() })?;
    let original = Arc::clone(&pod.original_cgroup);
    // Kept by the thread: the way back is known also when the start is cancelled meanwhile.
    let entered = blocking("move the shim", move || {
        let entered = shim_cgroup::enter(&leaf)?;
        mutex::lock(&original).get_or_insert(entered);
        Ok(())
    });
    if let Err(e) = entered.await {
        warn!(pod.log(), "{}: the shim is not accounted to its pod", e);
    }
    hit(Step::ShimMoved)
}
