//! Every key of the configuration, once: name, type, default, documentation, setter, and the rule between it and
//! other keys. `file` reads by this table; configs/kata-se.toml and the manual page are made from it.
//!
//! The rows take effect from top to bottom. A key that selects a variant, like `guest.confidential`, has to come
//! before the keys that fill it in.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{
    Accelerator, AgentConfig, AnnotationsConfig, Boot, Config, EmptyDirMode, LogLevel, QemuConfig,
    RootfsConfig, RootfsMode, Unknown, VolumesConfig, VsockConfig,
};
use crate::error::{Error, Result};
use crate::limits;

/// Where the configuration is read from, for the documentation.
pub(crate) const FILES: &[&str] = &[
    " The file is the one that the runtime's option ConfigPath names, else $KATA_SE_CONFIG, else",
    " /etc/kata-se/config.toml, else /usr/share/kata-se/config.toml. The files config.d/*.toml next to it are read",
    " after it, sorted by name. Where a key is given more than once, the last one counts.",
];

/// Annotations, by the names that config/annotations.rs has for them, which need the owner's permission.
pub(super) const CAN_BE_ENABLED: &[&str] = &["hypervisor.default_memory", "hypervisor.default_vcpus"];

/// One row of the table.
pub(crate) struct Key {
    /// `section.key`
    pub(crate) name: &'static str,
    /// The lines of its comment in configs/kata-se.toml; the manual page has them as a paragraph.
    pub(crate) doc: &'static [&'static str],
    pub(crate) kind: Kind,
    rules: &'static [Rule],
}

/// The type of a key, its default, and what its value sets.
pub(crate) enum Kind {
    /// An absolute path.
    Path(&'static str, fn(&mut Config, PathBuf)),
    /// An absolute path without a default, required where the key's rule holds; with an example.
    RequiredPath(&'static str, fn(&mut Config, PathBuf)),
    /// An absolute path, or "" for none, the default.
    OptionalPath(fn(&mut Config, Option<PathBuf>)),
    /// A table of at most this many absolute paths by their names, by default empty.
    NamedPaths(usize, fn(&mut Config, BTreeMap<String, PathBuf>)),
    /// A list of at most this many absolute paths, by default empty.
    Paths(usize, fn(&mut Config, Vec<PathBuf>)),
    Text(&'static str, fn(&mut Config, String)),
    Switch(bool, fn(&mut Config, bool)),
    /// A whole number in these bounds, and its unit for messages.
    Number(u32, RangeInclusive<u32>, &'static str, fn(&mut Config, u32)),
    /// One of these words.
    OneOf(&'static str, Words),
    /// One of these words; the default, of which the first one is an example, was set by a row above.
    OneOfAsAbove(Words),
    /// A list of these words, by default empty.
    SomeOf(&'static [&'static str], fn(&mut Config, Vec<&'static str>)),
}

/// Words and what each sets.
type Words = &'static [(&'static str, fn(&mut Config))];

/// A condition that depends on other keys.
enum Rule {
    /// The key has a meaning only here.
    Only(&'static Scope),
    /// 0, or no less than the value of the named key: the two values.
    NotBelow(&'static str, fn(&Config) -> (u32, u32)),
}

/// Where a key has a meaning, why it is refused elsewhere, and why a `RequiredPath` is required there.
struct Scope {
    holds: fn(&Config) -> bool,
    refused: &'static str,
    required: &'static str,
}

const SEALED: Scope = Scope {
    holds: |c| matches!(c.boot, Boot::Sealed { .. }),
    refused: "is for confidential guests; with confidential = false give kernel and initrd",
    required: "",
};

const PLAIN: Scope = Scope {
    holds: |c| matches!(c.boot, Boot::Plain { .. }),
    refused: "is sealed in the image of a confidential guest: rebuild the image with it, or leave the key out",
    required: "a guest that is not confidential boots kernel and initrd",
};

const PROTECTED_BY_KVM: Scope = Scope {
    holds: |c| c.qemu.accelerator == Accelerator::Kvm || (PLAIN.holds)(c),
    refused: "emulation cannot protect a guest: a confidential one needs \"kvm\"",
    required: "",
};

const TRUSTED_HOST: Scope = Scope {
    holds: |c| (PLAIN.holds)(c) || c.rootfs.trust_host || c.rootfs.mode == RootfsMode::GuestPull,
    refused: "the host could change what a confidential guest's containers run, and the guest could not find out: \
              use \"guest-pull\", or set rootfs.trust_host = true if that is what you want",
    required: "",
};

const VHOST_USER: Scope = Scope {
    holds: |c| matches!(c.vsock, VsockConfig::VhostUser { .. }),
    refused: "only vsock.device = \"vhost-user\" has a program",
    required: "vsock.device = \"vhost-user\" needs a program",
};

/// Makes KEYS of rows `/// documentation`, `name: kind, rules;`. With `as NAME`, other rows can refer to the key.
macro_rules! keys {
    ($($(#[doc = $doc:literal])+ $name:literal $(as $constant:ident)?: $kind:expr $(, $rule:expr)*;)+) => {
        $($(pub(super) const $constant: &str = $name;)?)+
        pub(crate) static KEYS: &[Key] = &[
            $(Key { name: $name, doc: &[$($doc),+], kind: $kind, rules: &[$($rule),*] }),+
        ];
    };
}

use Kind::{
    NamedPaths, Number, OneOf, OneOfAsAbove, OptionalPath, Path, Paths, RequiredPath, SomeOf, Switch, Text,
};
use Rule::{NotBelow, Only};

keys! {
    /// The QEMU program, version 8 or newer.
    "qemu.path": Path("/usr/bin/qemu-system-s390x", |c, path| c.qemu.path = path);

    /// "kvm", or "tcg" for emulation, which cannot protect a guest: it needs confidential = false.
    "qemu.accelerator": OneOf("kvm", &[
        ("kvm", |c| c.qemu.accelerator = Accelerator::Kvm),
        ("tcg", |c| c.qemu.accelerator = Accelerator::Tcg),
    ]), Only(&PROTECTED_BY_KVM);

    /// The user that QEMU, the vsock program and mkfs.erofs run as, without any capability but mkfs' to read: a
    /// name, or UID:GID. It needs access to /dev/kvm, best by its only group. "root": they keep root's rights.
    "qemu.user": Text("kata-se", |c, name| c.qemu.user = name);

    /// A confidential guest boots a Secure Execution image and nothing else. With false, the guest is not
    /// protected and boots the kernel and initrd given below: for development, with a runtime handler of its
    /// own, such as kata-se-unprotected.
    "guest.confidential": Switch(true, |c, on| {
        (c.boot, c.rootfs.mode) = if on { (sealed(), RootfsMode::GuestPull) } else { (plain(), RootfsMode::Packed) }
    });

    /// The sealed image. It contains kernel, initrd and kernel parameters: none of them can be set here.
    "guest.image": Path("/usr/share/kata-se/kata-se.img", |c, path| {
        if let Boot::Sealed { image } = &mut c.boot { *image = path }
    }), Only(&SEALED);

    /// Other sealed images that a pod may choose, by full path, with its annotation
    /// io.katacontainers.config.hypervisor.image.
    "guest.allowed_images": Paths(64, |c, paths| c.allowed_images = paths), Only(&SEALED);

    /// The host key documents of this machine, for kernels older than Linux 6.13. Newer kernels list the
    /// machine's keys, by which an image is checked to be sealed for this machine.
    "guest.host_key_documents": Paths(64, |c, paths| c.host_key_documents = paths), Only(&SEALED);

    /// Check the whole content of an image before its first start, not only its header: finds a damaged or
    /// incomplete copy, and takes seconds. The result is kept until the file changes.
    "guest.verify_digest": Switch(false, |c, on| c.verify_digest = on), Only(&SEALED);

    /// Extension images, which the guest finds at boot as read-only disks: { coco = "/path" } is the one that its sealed
    /// kernel parameters call kata.extension.coco. A guest that misses one, or finds another, powers itself off.
    "guest.extensions": NamedPaths(8, |c, images| c.extensions = images);

    /// Pass the containers' seccomp profiles to the guest if its agent can apply them. The policies of most
    /// confidential guests refuse a container that has one: only for images whose policy allows them.
    "guest.seccomp": Switch(false, |c, on| c.seccomp = on);

    /// The kernel of a guest that is not confidential.
    "guest.kernel": RequiredPath("/usr/share/kata-se/emulated/kernel", |c, path| {
        if let Boot::Plain { kernel, .. } = &mut c.boot { *kernel = path }
    }), Only(&PLAIN);

    /// The initrd of a guest that is not confidential.
    "guest.initrd": RequiredPath("/usr/share/kata-se/emulated/initrd.img", |c, path| {
        if let Boot::Plain { initrd, .. } = &mut c.boot { *initrd = path }
    }), Only(&PLAIN);

    /// The kernel parameters of a guest that is not confidential.
    "guest.kernel_parameters": Text("", |c, text| {
        if let Boot::Plain { parameters, .. } = &mut c.boot { *parameters = text }
    }), Only(&PLAIN);

    /// Memory of the virtual machine in MiB, fixed for its lifetime. The guest itself and containers without
    /// a memory limit use it; the limits of a pod's containers are added, plus 1/64 for the kernel's accounting.
    "guest.memory_mib" as MEMORY_MIB: Number(2048, 256..=16 << 20, "MiB", |c, n| c.memory_mib = n);

    /// Virtual CPUs of the virtual machine (at most 247), fixed for its lifetime. The CPU limits of a pod's
    /// containers are added, rounded up.
    "guest.vcpus" as VCPUS: Number(1, 1..=247, "CPUs", |c, n| c.vcpus = n);

    /// The most memory that a virtual machine may have, in MiB; 0: what this machine has. A pod that needs
    /// more is refused.
    "guest.max_memory_mib": Number(0, 0..=16 << 20, "MiB", |c, n| c.max_memory_mib = n),
        NotBelow(MEMORY_MIB, |c| (c.max_memory_mib, c.memory_mib));

    /// The most virtual CPUs that a virtual machine may have; 0: what this machine has. A pod that needs more
    /// is refused.
    "guest.max_vcpus": Number(0, 0..=247, "CPUs", |c, n| c.max_vcpus = n),
        NotBelow(VCPUS, |c| (c.max_vcpus, c.vcpus));

    /// Account the shim to its pod, like QEMU: it runs in its own cgroup below the pod's, and the overhead of
    /// the RuntimeClass covers it. With false it stays where containerd or CRI-O started it.
    "host.shim_in_pod_cgroup": Switch(true, |c, on| c.shim_in_pod_cgroup = on);

    /// How the host reaches the guest: "vhost" (kernel module vhost_vsock) or "vhost-user" (a program, for
    /// hosts without that module).
    "vsock.device": OneOf("vhost", &[
        ("vhost", |c| c.vsock = VsockConfig::Vhost),
        ("vhost-user", |c| c.vsock = VsockConfig::VhostUser { program: PathBuf::new() }),
    ]);

    /// The program of device = "vhost-user".
    "vsock.program": RequiredPath("/usr/libexec/kata-se/vhost-device-vsock", |c, path| {
        if let VsockConfig::VhostUser { program } = &mut c.vsock { *program = path }
    }), Only(&VHOST_USER);

    /// Seconds within which the guest has to boot and its agent to answer.
    "agent.connect_timeout_s": Number(45, 1..=3600, "s", |c, n| c.agent.connect_timeout = seconds(n));

    /// Seconds that creating a container in the guest may take, unless its image is pulled meanwhile.
    "agent.create_timeout_s": Number(60, 1..=3600, "s", |c, n| c.agent.create_timeout = seconds(n));

    /// Seconds that creating a container may take whose image the guest pulls. The limits of those who call are
    /// not larger for it: the kubelet's runtimeRequestTimeout (2 min by default) and CRI-O's
    /// container_create_timeout (4 min).
    "agent.image_pull_timeout_s": Number(600, 1..=7200, "s", |c, n| c.agent.image_pull_timeout = seconds(n));

    /// Seconds that every other call to the agent may take.
    "agent.call_timeout_s": Number(60, 1..=3600, "s", |c, n| c.agent.call_timeout = seconds(n));

    /// When a call times out or the connection to the agent is lost, the agent gets a health check. If it does
    /// not answer within this many seconds, its virtual machine is stopped with all containers in it.
    "agent.health_timeout_s": Number(10, 1..=3600, "s", |c, n| c.agent.health_timeout = seconds(n));

    /// A policy (Rego) that the agent of each guest is given before any other call, unless the pod brings one, by its
    /// annotation io.katacontainers.config.agent.policy or in its initdata. A guest that does not take it is not used.
    "agent.policy_file": OptionalPath(|c, path| c.policy_file = path);

    /// How a container's root file system comes into the guest. "guest-pull": the guest pulls the image itself, and
    /// nothing of the host's copy is opened. "block": what the snapshotter has on files or devices is attached as a
    /// disk. "packed": as "block", and a snapshotter's folders are packed into a disk first. By default
    /// "guest-pull" for a confidential guest and "packed" for another.
    "rootfs.mode": OneOfAsAbove(&[
        ("guest-pull", |c| c.rootfs.mode = RootfsMode::GuestPull),
        ("block", |c| c.rootfs.mode = RootfsMode::Block),
        ("packed", |c| c.rootfs.mode = RootfsMode::Packed),
    ]), Only(&TRUSTED_HOST);

    /// Let a confidential guest's containers run what the host gives them ("block" and "packed"): whoever controls
    /// the host can then read and change their programs, and neither the guest nor attestation finds out.
    "rootfs.trust_host": Switch(false, |c, on| c.rootfs.trust_host = on), Only(&SEALED);

    /// Image layers are packed into read-only images, which are kept here and shared by all pods of the node.
    "rootfs.cache_dir": Path("/var/lib/kata-se/layers", |c, path| c.rootfs.cache_dir = path);

    /// What packed images may take of the disk together, in MiB. Unused ones are removed for new ones, least recently
    /// used first; a container whose image does not fit beside those in use is refused.
    "rootfs.cache_mib": Number(10240, 1..=u32::MAX, "MiB", |c, n| c.rootfs.cache_mib = n.into());

    /// The program that packs them (package erofs-utils; version 1.5 cannot pack a file name of 255 bytes).
    "rootfs.mkfs": Path("/usr/bin/mkfs.erofs", |c, path| c.rootfs.mkfs = path);

    /// Where an emptyDir is kept, unless its medium is memory: "block-encrypted", a disk in the kubelet's folder for
    /// it that the guest formats and encrypts with a key of its own; "block-plain", the same without encryption;
    /// "guest-local", the guest's memory, which policies of most guests refuse. Disks need a guest whose agent is
    /// 3.28 or newer.
    "volumes.empty_dir": OneOf("block-encrypted", &[
        ("block-encrypted", |c| c.volumes.empty_dir = EmptyDirMode::BlockEncrypted),
        ("block-plain", |c| c.volumes.empty_dir = EmptyDirMode::BlockPlain),
        ("guest-local", |c| c.volumes.empty_dir = EmptyDirMode::GuestLocal),
    ]);

    /// The size of such a disk in GiB, at most that of its file system. It takes space when it is written to; the
    /// sizeLimit of a volume does not reach the runtime, and the kubelet evicts pods by it.
    "volumes.empty_dir_gib" as EMPTY_DIR_GIB: Number(10, 1..=16384, "GiB", |c, n| c.volumes.empty_dir_gib = n);

    /// The largest disk that a pod may ask for, in GiB, by its annotation
    /// io.katacontainers.volumes.emptydir_sizelimit.VOLUME = "20Gi".
    "volumes.max_empty_dir_gib": Number(100, 1..=16384, "GiB", |c, n| c.volumes.max_empty_dir_gib = n),
        NotBelow(EMPTY_DIR_GIB, |c| (c.volumes.max_empty_dir_gib, c.volumes.empty_dir_gib));

    /// What the files and folders of the host that are copied into a guest (configMaps, secrets, hostPath) may have
    /// together in one container, in MiB: they take the guest's memory.
    "volumes.copied_mib": Number(64, 1..=1 << 20, "MiB", |c, n| c.volumes.copied_mib = n);

    /// How many files, folders and links that may be.
    "volumes.copied_files": Number(4096, 1..=1 << 20, "files", |c, n| c.volumes.copied_files = n);

    /// Annotations io.katacontainers.config.NAME that a pod may use although they take more of the node, by NAME:
    /// "hypervisor.default_memory" and "hypervisor.default_vcpus" replace guest.memory_mib and guest.vcpus, within the
    /// maximum of both.
    "annotations.enabled": SomeOf(CAN_BE_ENABLED, |c, names| c.annotations.enabled = names);

    /// A pod with an annotation io.katacontainers.* that kata-se does not know: "refuse" it, or "warn" and pass over
    /// the annotation. Those of Kata's documentation are known: what they ask for is done or refused.
    "annotations.unknown": OneOf("refuse", &[
        ("refuse", |c| c.annotations.unknown = Unknown::Refuse),
        ("warn", |c| c.annotations.unknown = Unknown::Warn),
    ]);

    /// The most seconds that a pod may set for agent.create_timeout_s and agent.image_pull_timeout_s, with its annotation
    /// io.katacontainers.config.runtime.create_container_timeout.
    "annotations.max_create_timeout_s": Number(1200, 1..=3600, "s", |c, n| c.annotations.max_create_timeout = seconds(n));

    /// How much is logged: "error", "warning", "info" or "debug".
    "log.level": OneOf("info", &[
        ("error", |c| c.log = LogLevel::Error),
        ("warning", |c| c.log = LogLevel::Warning),
        ("info", |c| c.log = LogLevel::Info),
        ("debug", |c| c.log = LogLevel::Debug),
    ]);
}

fn sealed() -> Boot {
    Boot::Sealed { image: PathBuf::new() }
}

fn plain() -> Boot {
    Boot::Plain { kernel: PathBuf::new(), initrd: PathBuf::new(), parameters: String::new() }
}

fn seconds(n: u32) -> Duration {
    Duration::from_secs(n.into())
}

/// A number that is written in digits alone.
pub(super) fn whole_number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|_| text.bytes().all(|digit| digit.is_ascii_digit()))
}

/// Sets a number for one pod, by the rules of its key. The error is what is possible.
pub(super) fn set_number(config: &mut Config, name: &str, text: &str) -> std::result::Result<(), String> {
    let kind = KEYS.iter().find(|key| key.name == name).map(|key| &key.kind);
    let Some(Number(_, bounds, unit, set)) = kind else { return Err(format!("{name} is no number")) };
    let number = whole_number(text).filter(|number| bounds.contains(number)).ok_or_else(|| {
        format!("takes a whole number, {} to {} {unit}, as {name} does", bounds.start(), bounds.end())
    })?;
    set(config, number);
    let rules = KEYS.iter().flat_map(|key| key.rules.iter().map(move |rule| (key.name, rule)));
    for (limit, rule) in rules {
        if let NotBelow(other, values) = rule {
            let (most, number) = values(config);
            if *other == name && most != 0 && most < number {
                return Err(format!("is more than {limit} = {most} allows"));
            }
        }
    }
    Ok(())
}

/// Sets a value that was read.
pub(crate) type Setter = Box<dyn FnOnce(&mut Config)>;

/// A key's value, and the file and line of the key.
pub(crate) struct Given {
    pub(crate) place: String,
    pub(crate) set: Setter,
}

/// The configuration with the given keys, by name, and the defaults of all others.
pub(crate) fn resolve(mut given: BTreeMap<&'static str, Given>) -> Result<Config> {
    let mut config = empty();
    let mut places = BTreeMap::new();
    for key in KEYS {
        match given.remove(key.name) {
            Some(Given { place, set }) => {
                set(&mut config);
                places.insert(key.name, place);
            }
            None => key.kind.set_default(&mut config),
        }
    }
    KEYS.iter().try_for_each(|key| key.check(&config, places.get(key.name)))?;
    Ok(config)
}

impl Key {
    /// Section and name in it.
    pub(crate) fn parts(&self) -> (&'static str, &'static str) {
        self.name.split_once('.').unwrap_or(("", self.name))
    }

    /// Whether the key may be given beside these values.
    fn check(&self, config: &Config, place: Option<&String>) -> Result<()> {
        let name = self.name;
        for rule in self.rules {
            let refusal = match (rule, place) {
                (Only(scope), Some(place)) if !(scope.holds)(config) => {
                    format!("{place}: {name}: {}", scope.refused)
                }
                (Only(scope), None) if (scope.holds)(config) && matches!(self.kind, RequiredPath(..)) => {
                    format!("configuration: {name} is missing: {}", scope.required)
                }
                (NotBelow(other, values), Some(place)) => match values(config) {
                    (number, least) if number != 0 && number < least => format!(
                        "{place}: {name} = {number}: is less than {other} = {least}: raise it, or lower that"
                    ),
                    _ => continue,
                },
                (Only(_) | NotBelow(..), _) => continue,
            };
            return Err(Error::invalid(refusal));
        }
        Ok(())
    }
}

impl Kind {
    /// What a value has to be, after "takes".
    pub(crate) fn takes(&self) -> String {
        match self {
            Path(..) | RequiredPath(..) => "an absolute path in quotes".to_owned(),
            OptionalPath(..) => "an absolute path in quotes, or \"\" for none".to_owned(),
            SomeOf(words, _) => format!("a list of some of \"{}\"", words.join("\", \"")),
            NamedPaths(most, _) => format!(
                "a table of at most {most} absolute paths, {{ a = \"/a\", b = \"/b\" }}; a name has up to {} letters, \
                 digits, - and _",
                limits::qemu::EXTENSION_NAME_BYTES
            ),
            Paths(most, _) => format!("a list of at most {most} absolute paths, [\"/a\", \"/b\"]"),
            Text(..) => "a text in quotes".to_owned(),
            Switch(..) => "true or false".to_owned(),
            Number(_, bounds, unit, _) => {
                format!("a whole number without quotes, {} to {} {unit}", bounds.start(), bounds.end())
            }
            OneOf(_, words) | OneOfAsAbove(words) => {
                let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                format!("one of \"{}\"", words.join("\", \""))
            }
        }
    }

    /// The default, or the example of a required path, as it is written in a file.
    pub(crate) fn written(&self) -> String {
        match self {
            Path(text, _) | RequiredPath(text, _) | Text(text, _) | OneOf(text, _) => format!("\"{text}\""),
            OneOfAsAbove(words) => format!("\"{}\"", words.first().map_or("", |(word, _)| word)),
            Paths(..) | SomeOf(..) => "[]".to_owned(),
            NamedPaths(..) => "{}".to_owned(),
            OptionalPath(..) => "\"\"".to_owned(),
            Switch(on, _) => on.to_string(),
            Number(number, ..) => number.to_string(),
        }
    }

    fn set_default(&self, config: &mut Config) {
        match self {
            Path(path, set) => set(config, path.into()),
            RequiredPath(..) | OneOfAsAbove(_) => {}
            Paths(_, set) => set(config, Vec::new()),
            SomeOf(_, set) => set(config, Vec::new()),
            NamedPaths(_, set) => set(config, BTreeMap::new()),
            OptionalPath(set) => set(config, None),
            Text(text, set) => set(config, (*text).to_owned()),
            Switch(on, set) => set(config, *on),
            Number(number, _, _, set) => set(config, *number),
            OneOf(default, words) => {
                words.iter().filter(|(word, _)| word == default).for_each(|(_, set)| set(config));
            }
        }
    }
}

/// Where `resolve` starts: no value here is used.
fn empty() -> Config {
    let nothing = PathBuf::new;
    let never = Duration::ZERO;
    Config {
        files: Vec::new(),
        qemu: QemuConfig { path: nothing(), accelerator: Accelerator::Kvm, user: String::new() },
        boot: sealed(),
        allowed_images: Vec::new(),
        host_key_documents: Vec::new(),
        verify_digest: false,
        extensions: BTreeMap::new(),
        seccomp: false,
        memory_mib: 0,
        vcpus: 0,
        max_memory_mib: 0,
        max_vcpus: 0,
        shim_in_pod_cgroup: false,
        vsock: VsockConfig::Vhost,
        agent: AgentConfig {
            connect_timeout: never,
            create_timeout: never,
            image_pull_timeout: never,
            call_timeout: never,
            health_timeout: never,
        },
        policy_file: None,
        rootfs: RootfsConfig {
            mode: RootfsMode::GuestPull,
            trust_host: false,
            cache_dir: nothing(),
            cache_mib: 0,
            mkfs: nothing(),
        },
        volumes: VolumesConfig {
            empty_dir: EmptyDirMode::BlockEncrypted,
            empty_dir_gib: 0,
            max_empty_dir_gib: 0,
            copied_mib: 0,
            copied_files: 0,
        },
        annotations: AnnotationsConfig {
            enabled: Vec::new(),
            unknown: Unknown::Refuse,
            max_create_timeout: never,
        },
        log: LogLevel::Info,
    }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
