//! What a pod's annotations may do: the table of all settings of Kata Containers' documentation, each obeyed where it
//! has a meaning here, or refused by name with the reason.
//!
//! A pod's author is not the node's owner: what costs or endangers the node needs a key of the configuration, what only
//! the guest sees does not. Nothing is ignored in silence: a pod must not run as something other than it asked for, and
//! without what it relies on.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::initdata::Initdata;
use crate::config::policy::Policy;
use crate::config::{Boot, Config, RootfsMode, Unknown, keys};
use crate::error::{Code, Context, Error, Result};
use crate::limits;

/// All of Kata's annotations.
const KATA: &str = "io.katacontainers.";

/// Kata's settings for one pod.
const PREFIX: &str = "io.katacontainers.config.";

/// What a pod is started with: the configuration as its annotations change it, and what they bring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) config: Config,
    pub(crate) initdata: Option<Initdata>,
    pub(crate) policy: Option<Policy>,
    /// The base of the VM's size is the pod's word, not the owner's.
    pub(crate) own_size: bool,
    /// Lines about annotations that were passed over, as the owner wants it.
    pub(crate) ignored: Vec<String>,
}

/// What becomes of a setting.
enum Rule {
    /// Changes what the pod is started with. The error says what is possible.
    Takes(Setter),
    /// The same, if `annotations.enabled` lists its name: it takes more of the node than the owner gave.
    IfEnabled(Setter),
    /// A document for the guest. It may have secrets: no error quotes it.
    Document(fn(&mut Applied, &str) -> Result<()>),
    /// What is so anyway: only these values, and why.
    Only(&'static [&'static str], &'static str),
    /// Why it is not for a pod to say.
    Refused(&'static str),
}

type Setter = fn(&mut Applied, &str) -> std::result::Result<(), String>;

use Rule::{Document, IfEnabled, Only, Refused, Takes};

const OFF: &[&str] = &["false"];
const ON: &[&str] = &["true"];

const SEALED: &str = "kernel, initrd and kernel parameters are sealed in the image";
const OWNER: &str = "the node's owner alone chooses programs, files and devices of the node";
const HASHES: &str = "attestation tells what a guest runs, not a hash that the node compares";
const NO_FIRMWARE: &str = "a guest of IBM Z has no firmware";
const NO_PCI: &str = "devices of a guest are on IBM Z's channel subsystem, without ports and slots";
const MEMORY: &str = "the memory of a protected guest is fixed and is neither shared nor huge pages";
const CPUS: &str = "the CPUs of a protected guest are fixed at its start";
const DISKS: &str = "how the guest's disks are attached and read is not for a pod to choose";
const NOT_SHARED: &str = "a protected guest shares no files with its node";
const IN_THE_GUEST: &str = "it is sealed in the guest's image: build one with it";
const NOT_HERE: &str = "kata-se has nothing of the kind";

/// Every setting of Kata's how-to-set-sandbox-config-kata.md and of its annotations' source, by its name behind the
/// prefix.
static TABLE: &[(&str, Rule)] = &[
    ("agent.cdh_api_timeout", Refused(IN_THE_GUEST)),
    ("agent.cdh_api_timeout_ms", Refused(IN_THE_GUEST)),
    ("agent.container_pipe_size", Refused(IN_THE_GUEST)),
    ("agent.enable_tracing", Only(OFF, NOT_HERE)),
    ("agent.kernel_modules", Refused(IN_THE_GUEST)),
    ("agent.policy", Document(policy)),
    ("hypervisor.asset_hash_type", Refused(HASHES)),
    ("hypervisor.blk_logical_sector_size", Refused(DISKS)),
    ("hypervisor.blk_physical_sector_size", Refused(DISKS)),
    ("hypervisor.block_device_aio", Refused(DISKS)),
    ("hypervisor.block_device_cache_direct", Refused(DISKS)),
    ("hypervisor.block_device_cache_noflush", Refused(DISKS)),
    ("hypervisor.block_device_cache_set", Refused(DISKS)),
    ("hypervisor.block_device_driver", Refused(DISKS)),
    ("hypervisor.block_device_num_queues", Refused(DISKS)),
    ("hypervisor.block_device_queue_size", Refused(DISKS)),
    ("hypervisor.cc_init_data", Document(initdata)),
    ("hypervisor.cold_plug_vfio", Only(&["no-port"], NO_PCI)),
    ("hypervisor.cpu_features", Refused("a protected guest has the CPU of its machine")),
    ("hypervisor.ctlpath", Refused(OWNER)),
    ("hypervisor.default_gpu_model", Refused(NOT_HERE)),
    ("hypervisor.default_gpus", Only(&["0"], NOT_HERE)),
    ("hypervisor.default_max_vcpus", Refused(CPUS)),
    ("hypervisor.default_memory", IfEnabled(default_memory)),
    ("hypervisor.default_vcpus", IfEnabled(default_vcpus)),
    ("hypervisor.disable_block_device_use", Only(OFF, "layers and volumes are disks of the guest")),
    ("hypervisor.disable_image_nvdimm", Only(ON, "IBM Z has no NVDIMM")),
    ("hypervisor.disable_vhost_net", Only(ON, NOT_HERE)),
    ("hypervisor.enable_guest_swap", Only(OFF, MEMORY)),
    ("hypervisor.enable_hugepages", Only(OFF, MEMORY)),
    ("hypervisor.enable_iommu", Only(OFF, "a guest of IBM Z has no such device")),
    ("hypervisor.enable_iommu_platform", Only(ON, "devices of a protected guest always have it")),
    ("hypervisor.enable_iothreads", Only(OFF, DISKS)),
    ("hypervisor.enable_mem_prealloc", Only(OFF, MEMORY)),
    ("hypervisor.enable_swap", Only(OFF, MEMORY)),
    ("hypervisor.enable_vhost_user_store", Only(OFF, DISKS)),
    ("hypervisor.enable_virtio_mem", Only(OFF, MEMORY)),
    ("hypervisor.entropy_source", Refused(OWNER)),
    ("hypervisor.file_mem_backend", Refused(MEMORY)),
    ("hypervisor.firmware", Refused(NO_FIRMWARE)),
    ("hypervisor.firmware_hash", Refused(NO_FIRMWARE)),
    ("hypervisor.firmware_volume", Refused(NO_FIRMWARE)),
    ("hypervisor.firmware_volume_hash", Refused(NO_FIRMWARE)),
    ("hypervisor.guest_hook_path", Refused("policies of guests refuse hooks")),
    ("hypervisor.hot_plug_vfio", Only(&["no-port"], NO_PCI)),
    ("hypervisor.hotplug_vfio_on_root_bus", Only(OFF, NO_PCI)),
    ("hypervisor.hypervisor_hash", Refused(HASHES)),
    ("hypervisor.hypervisorctl_hash", Refused(HASHES)),
    ("hypervisor.image", Takes(image)),
    ("hypervisor.image_hash", Refused(HASHES)),
    ("hypervisor.initrd", Refused(SEALED)),
    ("hypervisor.initrd_hash", Refused(HASHES)),
    ("hypervisor.jailer_hash", Refused(HASHES)),
    ("hypervisor.jailer_path", Refused(OWNER)),
    ("hypervisor.kernel", Refused(SEALED)),
    ("hypervisor.kernel_hash", Refused(HASHES)),
    ("hypervisor.kernel_params", Refused(SEALED)),
    ("hypervisor.kernel_verity_params", Refused(SEALED)),
    ("hypervisor.machine_accelerators", Refused(OWNER)),
    ("hypervisor.machine_type", Only(&["s390-ccw-virtio"], "a guest of IBM Z has one type only")),
    ("hypervisor.memory_offset", Refused("IBM Z has no NVDIMM")),
    ("hypervisor.memory_slots", Refused(MEMORY)),
    ("hypervisor.msize_9p", Refused(NOT_SHARED)),
    ("hypervisor.path", Refused(OWNER)),
    ("hypervisor.path_hash", Refused(HASHES)),
    ("hypervisor.pcie_root_port", Only(&["0"], NO_PCI)),
    ("hypervisor.pcie_switch_port", Only(&["0"], NO_PCI)),
    ("hypervisor.reclaim_guest_freed_memory", Only(OFF, MEMORY)),
    ("hypervisor.rootless", Refused(OWNER)),
    ("hypervisor.rx_rate_limiter_max_rate", Only(&["0"], NOT_HERE)),
    ("hypervisor.shared_fs", Only(&["none"], NOT_SHARED)),
    ("hypervisor.tx_rate_limiter_max_rate", Only(&["0"], NOT_HERE)),
    ("hypervisor.use_legacy_serial", Only(OFF, NOT_HERE)),
    ("hypervisor.use_vsock", Only(ON, "the agent is reached by nothing else")),
    ("hypervisor.vhost_user_reconnect_timeout_sec", Refused(DISKS)),
    ("hypervisor.vhost_user_store_path", Refused(OWNER)),
    ("hypervisor.virtio_fs_cache", Refused(NOT_SHARED)),
    ("hypervisor.virtio_fs_cache_size", Refused(NOT_SHARED)),
    ("hypervisor.virtio_fs_daemon", Refused(NOT_SHARED)),
    ("hypervisor.virtio_fs_extra_args", Refused(NOT_SHARED)),
    ("runtime.agent_name", Refused(OWNER)),
    ("runtime.create_container_timeout", Takes(create_timeout)),
    ("runtime.disable_guest_seccomp", Takes(disable_guest_seccomp)),
    ("runtime.disable_new_netns", Only(OFF, "QEMU is never in the node's network")),
    ("runtime.enable_pprof", Only(OFF, NOT_HERE)),
    ("runtime.enable_vcpus_pinning", Only(OFF, "QEMU runs on the CPUs of the pod's containers")),
    ("runtime.experimental", Only(OFF, NOT_HERE)),
    ("runtime.experimental_force_guest_pull", Takes(force_guest_pull)),
    ("runtime.guest_selinux_label", Refused("labels mean nothing in the guest")),
    ("runtime.hypervisor_name", Refused(OWNER)),
    ("runtime.internetworking_model", Only(&["tcfilter"], "a pod's interfaces are mirrored to the guest")),
    ("runtime.name", Refused(OWNER)),
    ("runtime.sandbox_cgroup_only", Only(ON, "QEMU is always in its pod's cgroup")),
    ("runtime.vfio_mode", Refused(OWNER)),
];

/// Settings of Kata's without that prefix.
const OTHERS: [(&str, &str); 5] = [
    ("asset_hash_type", HASHES),
    ("config_path", "the node's owner alone chooses the configuration"),
    ("container.resource.swap_in_bytes", MEMORY),
    ("container.resource.swappiness", MEMORY),
    ("enable_vcpus_pinning", "QEMU runs on the CPUs of the pod's containers"),
];

/// What callers write for the guest and for volumes; each is looked at where it is used.
const NO_SETTINGS: [&str; 3] = ["pkg.oci.", "volume", "fs-opt."];

/// Applies the annotations of a pod, those of its first container.
pub(crate) fn apply(config: Config, annotations: &HashMap<String, String>) -> Result<Applied> {
    let mut applied = Applied { config, initdata: None, policy: None, own_size: false, ignored: Vec::new() };
    let of_kata = |(key, value)| Some((str::strip_prefix(key, KATA)?, value));
    let mut given: Vec<(&str, &String)> =
        annotations.iter().filter_map(|(key, value)| of_kata((key.as_str(), value))).collect();
    given.sort_unstable(); // always the same one is refused
    for (name, value) in given {
        match name.strip_prefix("config.") {
            Some(name) => applied.setting(name, value)?,
            None => applied.other(name, value)?,
        }
    }
    Ok(applied)
}

impl Applied {
    fn setting(&mut self, name: &str, value: &str) -> Result<()> {
        let refused = |why: &str| Err(refused(PREFIX, name, value, why));
        let Some((_, rule)) = TABLE.iter().find(|(known, _)| *known == name) else {
            return self.unknown(PREFIX, name, value);
        };
        match rule {
            Takes(set) => set(self, value).or_else(|why| refused(&why)),
            IfEnabled(set) if self.config.annotations.enabled.contains(&name) => {
                set(self, value).or_else(|why| refused(&why))
            }
            IfEnabled(_) => refused(
                "the node's owner has not allowed it: have it listed in annotations.enabled, or remove the annotation",
            ),
            Document(take) => take(self, value).with_context(|| format!("annotation {PREFIX}{name}")),
            Only(values, _) if values.contains(&value.trim()) => Ok(()),
            Only(values, why) => {
                refused(&format!("only {:?} is possible: {why}: remove the annotation", values.join(" or ")))
            }
            Refused(why) => refused(&format!("{why}: remove the annotation")),
        }
    }

    fn other(&mut self, name: &str, value: &str) -> Result<()> {
        if NO_SETTINGS.iter().any(|prefix| name.starts_with(prefix)) {
            return Ok(());
        }
        match OTHERS.iter().find(|(known, _)| *known == name) {
            Some((_, why)) => Err(refused(KATA, name, value, &format!("{why}: remove the annotation"))),
            None => self.unknown(KATA, name, value),
        }
    }

    fn unknown(&mut self, prefix: &str, name: &str, value: &str) -> Result<()> {
        match self.config.annotations.unknown {
            Unknown::Refuse => {
                let why = "kata-se has no such setting for a pod: remove the annotation, or have it passed over by \
                           annotations.unknown = \"warn\"";
                Err(refused(prefix, name, value, why))
            }
            Unknown::Warn => {
                if self.ignored.len() < limits::guest_data::IGNORED_ANNOTATIONS {
                    let name = bounded(name);
                    self.ignored.push(format!(
                        "annotation {prefix}{name}: kata-se has no such setting: passed over (annotations.unknown)"
                    ));
                }
                Ok(())
            }
        }
    }
}

fn image(applied: &mut Applied, value: &str) -> std::result::Result<(), String> {
    let image = allowed(&applied.config, Path::new(value))?;
    applied.config.boot = Boot::Sealed { image };
    Ok(())
}

fn allowed(config: &Config, wanted: &Path) -> std::result::Result<PathBuf, String> {
    let Boot::Sealed { image } = &config.boot else {
        return Err("this node's guests boot no sealed image (guest.confidential = false)".to_owned());
    };
    // Compared byte by byte: no link and no ".." leads to an image that is not listed.
    let known = config.allowed_images.iter().chain([image]);
    known.into_iter().find(|known| known.as_os_str() == wanted.as_os_str()).cloned().ok_or_else(|| {
        "the node's owner has not allowed this image: use the configured one, or have the path added to \
         guest.allowed_images"
            .to_owned()
    })
}

fn initdata(applied: &mut Applied, value: &str) -> Result<()> {
    applied.initdata = Some(Initdata::of_annotation(value)?);
    Ok(())
}

fn policy(applied: &mut Applied, value: &str) -> Result<()> {
    applied.policy = Some(Policy::of_annotation(value)?);
    Ok(())
}

fn default_memory(applied: &mut Applied, value: &str) -> std::result::Result<(), String> {
    applied.own_size = true;
    keys::set_number(&mut applied.config, keys::MEMORY_MIB, value)
}

/// Kata's are decimal numbers: a part of a CPU is a whole one here.
fn default_vcpus(applied: &mut Applied, value: &str) -> std::result::Result<(), String> {
    applied.own_size = true;
    let whole = match value.split_once('.') {
        Some((whole, part)) if !part.is_empty() && part.bytes().all(|digit| digit.is_ascii_digit()) => {
            let more = u32::from(part.bytes().any(|digit| digit != b'0'));
            whole.parse::<u32>().ok().and_then(|whole| whole.checked_add(more)).map(|whole| whole.to_string())
        }
        _ => None,
    };
    keys::set_number(&mut applied.config, keys::VCPUS, whole.as_deref().unwrap_or(value))
}

fn create_timeout(applied: &mut Applied, value: &str) -> std::result::Result<(), String> {
    let most = applied.config.annotations.max_create_timeout;
    let seconds =
        keys::whole_number(value).filter(|seconds| (1..=most.as_secs()).contains(&u64::from(*seconds)));
    let seconds = seconds.ok_or_else(|| {
        let most = most.as_secs();
        format!("takes a whole number of seconds, 1 to {most} (annotations.max_create_timeout_s)")
    })?;
    let timeout = Duration::from_secs(seconds.into());
    applied.config.agent.create_timeout = timeout;
    applied.config.agent.image_pull_timeout = timeout;
    Ok(())
}

/// Where images are pulled is the owner's choice for every pod.
fn force_guest_pull(applied: &mut Applied, value: &str) -> std::result::Result<(), String> {
    let is_so = if applied.config.rootfs.mode == RootfsMode::GuestPull { "true" } else { "false" };
    only(value, is_so, "rootfs.mode")
}

/// What the owner has set is so for every pod.
fn disable_guest_seccomp(applied: &mut Applied, value: &str) -> std::result::Result<(), String> {
    only(value, if applied.config.seccomp { "false" } else { "true" }, "guest.seccomp")
}

/// What the owner's key has made so.
fn only(value: &str, is_so: &str, key: &str) -> std::result::Result<(), String> {
    if value == is_so {
        return Ok(());
    }
    Err(format!("only {is_so:?} is possible: it is the node owner's choice ({key}): remove the annotation"))
}

fn bounded(text: &str) -> String {
    text.chars().take(200).collect()
}

fn refused(prefix: &str, name: &str, value: &str, why: &str) -> Error {
    let (name, value) = (bounded(name), bounded(value));
    Error::new(Code::PermissionDenied, format!("annotation {prefix}{name} = {value:?}: {why}"))
}

#[cfg(test)]
#[path = "annotations_tests.rs"]
mod tests;
