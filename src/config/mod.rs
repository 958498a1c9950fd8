//! The configuration. `keys` is the table of all keys, `file` reads TOML files by it, and `annotations` is what
//! a pod may change and bring, `initdata` and a `policy` among it. Here is the result: checked values, defaults included.

pub(crate) mod annotations;
pub(crate) mod file;
pub(crate) mod initdata;
pub(crate) mod keys;
pub(crate) mod policy;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The whole configuration of one shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The files that it was read from.
    pub files: Vec<PathBuf>,
    pub qemu: QemuConfig,
    pub boot: Boot,
    /// Sealed images that a pod may choose by annotation, besides the configured one.
    pub allowed_images: Vec<PathBuf>,
    /// This machine's host key documents, for kernels that do not list its keys.
    pub host_key_documents: Vec<PathBuf>,
    /// Check the image's whole content before its first start.
    pub verify_digest: bool,
    /// Read-only images that the guest finds at boot, by the names that it knows them by.
    pub extensions: BTreeMap<String, PathBuf>,
    /// Pass containers' seccomp profiles to guests whose agent can apply them.
    pub seccomp: bool,
    /// The VM of a pod without limits; the limits of a pod's containers are added.
    pub memory_mib: u32,
    pub vcpus: u32,
    /// The largest VM; 0: what the machine has.
    pub max_memory_mib: u32,
    pub max_vcpus: u32,
    /// Account the shim itself to its pod.
    pub shim_in_pod_cgroup: bool,
    pub vsock: VsockConfig,
    pub agent: AgentConfig,
    /// A policy for the agent of each guest, unless the pod brings one.
    pub policy_file: Option<PathBuf>,
    pub rootfs: RootfsConfig,
    pub volumes: VolumesConfig,
    pub annotations: AnnotationsConfig,
    pub log: LogLevel,
}

/// What pods may say in annotations that cost the node something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnotationsConfig {
    /// Names that pods may use, of those that need permission.
    pub enabled: Vec<&'static str>,
    pub unknown: Unknown,
    /// The longest limit for CreateContainer that a pod may ask for.
    pub max_create_timeout: Duration,
}

/// What becomes of a pod with an annotation of Kata's that kata-se does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    Refuse,
    Warn,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuConfig {
    pub path: PathBuf,
    pub accelerator: Accelerator,
    /// Whom QEMU and the pod's other helpers run as: a user's name, or UID:GID.
    pub user: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    Tcg,
}

/// What the VM boots. A protected guest boots a sealed image and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// A Secure Execution image: kernel, initrd and command line are sealed in it.
    Sealed { image: PathBuf },
    /// An unprotected guest, for development and emulation.
    Plain { kernel: PathBuf, initrd: PathBuf, parameters: String },
}

/// How the host reaches the guest's vsock ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VsockConfig {
    /// The kernel's vhost-vsock: AF_VSOCK on the host.
    Vhost,
    /// A vhost-user device program and its hybrid Unix socket (emulation: hosts without vhost-vsock).
    VhostUser { program: PathBuf },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// From QEMU's start to the agent's first reply.
    pub connect_timeout: Duration,
    /// For CreateContainer.
    pub create_timeout: Duration,
    /// For CreateContainer when the guest pulls the image in it.
    pub image_pull_timeout: Duration,
    /// For every other call that is not a long poll.
    pub call_timeout: Duration,
    /// How long an agent that seems dead has to answer a health check (on a new connection if the old one is
    /// lost) before its VM is stopped.
    pub health_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootfsConfig {
    pub mode: RootfsMode,
    /// Whether a confidential guest may run what the host gives it as a root file system.
    pub trust_host: bool,
    /// Where packed image layers are kept.
    pub cache_dir: PathBuf,
    /// Size in MiB above which unused layer images are evicted, least recently used first.
    pub cache_mib: u64,
    /// The program that packs a tree into an erofs image.
    pub mkfs: PathBuf,
}

/// How containers' root file systems come into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootfsMode {
    /// The guest pulls the image: nothing of the host's copy is opened.
    GuestPull,
    /// File systems on files and devices are attached as disks.
    Block,
    /// As Block, and folders are packed into an image first.
    Packed,
}

impl RootfsMode {
    /// The word in a configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::GuestPull => "guest-pull",
            Self::Block => "block",
            Self::Packed => "packed",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumesConfig {
    pub empty_dir: EmptyDirMode,
    /// Size in GiB of a disk for an emptyDir.
    pub empty_dir_gib: u32,
    /// The largest that a pod may ask for.
    pub max_empty_dir_gib: u32,
    /// What one container's volumes that are copied into its guest may have together.
    pub copied_mib: u32,
    /// Files, folders and links of them.
    pub copied_files: u32,
}

/// Where an emptyDir is kept that is not in memory by its own wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmptyDirMode {
    /// A disk that the guest encrypts with a key that it forgets.
    BlockEncrypted,
    /// The same, which the node can read.
    BlockPlain,
    /// The guest's memory.
    GuestLocal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warning,
    Info,
    Debug,
}
