//! The TOML file and its drop-ins, as written, to the checked configuration: pure.
//!
//! Every key is listed once, in `KEYS`, with what it takes. An unknown key, a wrong type or an
//! impossible value is an error that names file, line, key, and what would be right.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::{
    Accelerator, AgentConfig, Boot, Config, LogLevel, QemuConfig, RootfsConfig, VsockConfig,
};
use crate::error::{Error, Result};

/// What a key takes.
#[derive(Clone, Copy, Debug)]
enum Takes {
    /// An absolute path.
    Path,
    /// A list of absolute paths, at most this many.
    Paths(usize),
    Text,
    Switch,
    /// A whole number between the two, and its unit for messages.
    Number(u32, u32, &'static str),
    OneOf(&'static [&'static str]),
}

/// The VM of a pod without limits.
const MEMORY_MIB: u32 = 2048;
const VCPUS: u32 = 1;

/// Every key, `section.name`.
const KEYS: [(&str, Takes); 26] = [
    ("qemu.path", Takes::Path),
    ("qemu.accelerator", Takes::OneOf(&["kvm", "tcg"])),
    ("guest.confidential", Takes::Switch),
    ("guest.image", Takes::Path),
    ("guest.allowed_images", Takes::Paths(64)),
    ("guest.host_key_documents", Takes::Paths(64)),
    ("guest.verify_digest", Takes::Switch),
    ("guest.seccomp", Takes::Switch),
    ("guest.kernel", Takes::Path),
    ("guest.initrd", Takes::Path),
    ("guest.kernel_parameters", Takes::Text),
    ("guest.memory_mib", Takes::Number(256, 16 << 20, "MiB")),
    ("guest.vcpus", Takes::Number(1, 247, "CPUs")),
    ("guest.max_memory_mib", Takes::Number(0, 16 << 20, "MiB")),
    ("guest.max_vcpus", Takes::Number(0, 247, "CPUs")),
    ("host.shim_in_pod_cgroup", Takes::Switch),
    ("vsock.device", Takes::OneOf(&["vhost", "vhost-user"])),
    ("vsock.program", Takes::Path),
    ("agent.connect_timeout_s", Takes::Number(1, 3600, "s")),
    ("agent.create_timeout_s", Takes::Number(1, 3600, "s")),
    ("agent.call_timeout_s", Takes::Number(1, 3600, "s")),
    ("agent.health_timeout_s", Takes::Number(1, 3600, "s")),
    ("rootfs.cache_dir", Takes::Path),
    ("rootfs.cache_mib", Takes::Number(0, u32::MAX, "MiB")),
    ("rootfs.mkfs", Takes::Path),
    ("log.level", Takes::OneOf(&["error", "warning", "info", "debug"])),
];

/// One key's value and where it was written.
#[derive(Clone, Debug)]
struct Given {
    value: Value,
    place: String,
}

#[derive(Clone, Debug)]
enum Value {
    Text(String),
    List(Vec<String>),
    Number(u32),
    Switch(bool),
}

/// Reads the files in order; a later one wins key by key.
pub(crate) fn parse(files: &[(PathBuf, String)]) -> Result<Config> {
    let mut given = BTreeMap::new();
    for (path, text) in files {
        read_file(path, text, &mut given)?;
    }
    resolve(&Keys(given))
}

fn read_file(path: &Path, text: &str, given: &mut BTreeMap<&'static str, Given>) -> Result<()> {
    let line = |offset: usize| text.get(..offset).unwrap_or(text).matches('\n').count() + 1;
    let table = DeTable::parse(text).map_err(|e| {
        let at = e.span().map_or(1, |span| line(span.start));
        Error::invalid(format!("{}:{at}: {}", path.display(), e.message()))
    })?;
    for (section, value) in table.get_ref() {
        let place = format!("{}:{}", path.display(), line(section.span().start));
        let name = section.get_ref();
        let DeValue::Table(entries) = value.get_ref() else {
            return Err(unknown(&place, name));
        };
        for (key, value) in entries {
            let place = format!("{}:{}", path.display(), line(key.span().start));
            let full = format!("{name}.{}", key.get_ref());
            let Some((known, takes)) = KEYS.iter().find(|(known, _)| *known == full) else {
                return Err(unknown(&place, &full));
            };
            let value = read_value(value, *takes).map_err(|why| {
                Error::invalid(format!("{place}: {full} = {}: {why}", text.get(value.span()).unwrap_or("?")))
            })?;
            given.insert(known, Given { value, place });
        }
    }
    Ok(())
}

fn read_value(value: &Spanned<DeValue<'_>>, takes: Takes) -> std::result::Result<Value, String> {
    match (takes, value.get_ref()) {
        (Takes::Path, DeValue::String(text)) if text.starts_with('/') && !text.contains('\0') => {
            Ok(Value::Text(text.to_string()))
        }
        (Takes::Path, _) => Err("takes an absolute path in quotes".to_owned()),
        (Takes::Paths(most), DeValue::Array(items)) if items.len() <= most => {
            let path = |item: &Spanned<DeValue<'_>>| match read_value(item, Takes::Path)? {
                Value::Text(path) => Ok(path),
                Value::List(_) | Value::Number(_) | Value::Switch(_) => {
                    Err("takes a list of paths".to_owned())
                }
            };
            Ok(Value::List(items.iter().map(path).collect::<std::result::Result<_, _>>()?))
        }
        (Takes::Paths(most), _) => {
            Err(format!("takes a list of at most {most} absolute paths, [\"/a\", \"/b\"]"))
        }
        (Takes::Text, DeValue::String(text)) => Ok(Value::Text(text.to_string())),
        (Takes::Text, _) => Err("takes a text in quotes".to_owned()),
        (Takes::Switch, DeValue::Boolean(on)) => Ok(Value::Switch(*on)),
        (Takes::Switch, _) => Err("takes true or false".to_owned()),
        (Takes::Number(least, most, unit), DeValue::Integer(number)) => {
            let number = u32::from_str_radix(number.as_str(), number.radix()).ok();
            let number = number.filter(|n| (least..=most).contains(n));
            number.map(Value::Number).ok_or_else(|| format!("takes {least} to {most} {unit}"))
        }
        (Takes::Number(least, most, unit), _) => {
            Err(format!("takes a whole number without quotes, {least} to {most} {unit}"))
        }
        (Takes::OneOf(words), DeValue::String(text)) if words.contains(&text.as_ref()) => {
            Ok(Value::Text(text.to_string()))
        }
        (Takes::OneOf(words), _) => Err(format!("takes one of \"{}\"", words.join("\", \""))),
    }
}

/// Words in a key's name that ask for what no protected guest can have, and why.
const IMPOSSIBLE: [(&str, &str); 5] = [
    ("huge", "the memory of a protected guest cannot be huge pages: leave it out"),
    ("balloon", "a protected guest has no balloon, its memory is fixed: set guest.memory_mib"),
    ("hotplug", "memory and CPUs of a protected guest are fixed: set guest.memory_mib and guest.vcpus"),
    ("virtio_mem", "memory of a protected guest is fixed: set guest.memory_mib"),
    ("kernel_params", "kernel parameters are sealed in the image: rebuild the image with them"),
];

fn unknown(place: &str, key: &str) -> Error {
    let plain = key.replace('-', "_").to_lowercase();
    if let Some((_, why)) = IMPOSSIBLE.iter().find(|(word, _)| plain.contains(word)) {
        return Error::invalid(format!("{place}: unknown key {key:?}: {why}"));
    }
    let nearest = KEYS.iter().map(|(known, _)| (distance(key, known), *known)).min();
    let (_, nearest) = nearest.unwrap_or_default();
    Error::invalid(format!("{place}: unknown key {key:?}: did you mean {nearest:?}?"))
}

/// How many letters differ (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut before = i;
        let mut last = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.chars()) {
            let here = (before + usize::from(x != y)).min(*cell + 1).min(last + 1);
            before = std::mem::replace(cell, here);
            last = here;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

struct Keys(BTreeMap<&'static str, Given>);

impl Keys {
    fn text(&self, key: &str) -> Option<&str> {
        match self.0.get(key).map(|g| &g.value) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn path(&self, key: &str, default: &str) -> PathBuf {
        self.text(key).unwrap_or(default).into()
    }

    fn paths(&self, key: &str) -> Vec<PathBuf> {
        match self.0.get(key).map(|g| &g.value) {
            Some(Value::List(paths)) => paths.iter().map(PathBuf::from).collect(),
            _ => Vec::new(),
        }
    }

    fn switch(&self, key: &str, default: bool) -> bool {
        match self.0.get(key).map(|g| &g.value) {
            Some(Value::Switch(on)) => *on,
            _ => default,
        }
    }

    fn number(&self, key: &str, default: u32) -> u32 {
        match self.0.get(key).map(|g| &g.value) {
            Some(Value::Number(number)) => *number,
            _ => default,
        }
    }

    fn seconds(&self, key: &str, default: u32) -> Duration {
        Duration::from_secs(self.number(key, default).into())
    }

    /// The number of `key`, 0 when it is not given, and otherwise no less than that of `other`.
    fn at_least(&self, key: &str, other: &str, default: u32) -> Result<u32> {
        let (number, least) = (self.number(key, 0), self.number(other, default));
        if number != 0 && number < least {
            let place = self.0.get(key).map_or("", |given| given.place.as_str());
            return Err(Error::invalid(format!(
                "{place}: {key} = {number}: is less than {other} = {least}: raise it, or lower that"
            )));
        }
        Ok(number)
    }

    /// Refuses a key that has no meaning beside others.
    fn refuse(&self, keys: &[&str], why: &str) -> Result<()> {
        match keys.iter().find_map(|key| Some((key, self.0.get(*key)?))) {
            None => Ok(()),
            Some((key, given)) => Err(Error::invalid(format!("{}: {key}: {why}", given.place))),
        }
    }

    fn require(&self, key: &str, why: &str) -> Result<&str> {
        self.text(key).ok_or_else(|| Error::invalid(format!("configuration: {key} is missing: {why}")))
    }
}

fn boot(keys: &Keys, confidential: bool) -> Result<Boot> {
    if confidential {
        let sealed =
            "is sealed in the image of a confidential guest: rebuild the image with it, or leave the key out";
        keys.refuse(&["guest.kernel", "guest.initrd", "guest.kernel_parameters"], sealed)?;
        return Ok(Boot::Sealed { image: keys.path("guest.image", "/usr/share/kata-se/kata-se.img") });
    }
    keys.refuse(
        &["guest.image", "guest.allowed_images", "guest.host_key_documents", "guest.verify_digest"],
        "is for confidential guests; with confidential = false give kernel and initrd",
    )?;
    let why = "a guest that is not confidential boots kernel and initrd";
    Ok(Boot::Plain {
        kernel: keys.require("guest.kernel", why)?.into(),
        initrd: keys.require("guest.initrd", why)?.into(),
        parameters: keys.text("guest.kernel_parameters").unwrap_or_default().to_owned(),
    })
}

fn resolve(keys: &Keys) -> Result<Config> {
    let confidential = keys.switch("guest.confidential", true);
    let boot = boot(keys, confidential)?;
    let accelerator = match keys.text("qemu.accelerator") {
        Some("tcg") => Accelerator::Tcg,
        _ => Accelerator::Kvm,
    };
    if confidential && accelerator == Accelerator::Tcg {
        keys.refuse(
            &["qemu.accelerator"],
            "emulation cannot protect a guest: a confidential one needs \"kvm\"",
        )?;
    }
    let vsock = match keys.text("vsock.device") {
        Some("vhost-user") => VsockConfig::VhostUser {
            program: keys.require("vsock.program", "vsock.device = \"vhost-user\" needs a program")?.into(),
        },
        _ => {
            keys.refuse(&["vsock.program"], "only vsock.device = \"vhost-user\" has a program")?;
            VsockConfig::Vhost
        }
    };
    Ok(Config {
        qemu: QemuConfig { path: keys.path("qemu.path", "/usr/bin/qemu-system-s390x"), accelerator },
        boot,
        allowed_images: keys.paths("guest.allowed_images"),
        host_key_documents: keys.paths("guest.host_key_documents"),
        verify_digest: keys.switch("guest.verify_digest", false),
        seccomp: keys.switch("guest.seccomp", false),
        memory_mib: keys.number("guest.memory_mib", MEMORY_MIB),
        vcpus: keys.number("guest.vcpus", VCPUS),
        max_memory_mib: keys.at_least("guest.max_memory_mib", "guest.memory_mib", MEMORY_MIB)?,
        max_vcpus: keys.at_least("guest.max_vcpus", "guest.vcpus", VCPUS)?,
        shim_in_pod_cgroup: keys.switch("host.shim_in_pod_cgroup", true),
        vsock,
        agent: AgentConfig {
            connect_timeout: keys.seconds("agent.connect_timeout_s", 45),
            create_timeout: keys.seconds("agent.create_timeout_s", 60),
            call_timeout: keys.seconds("agent.call_timeout_s", 60),
            health_timeout: keys.seconds("agent.health_timeout_s", 10),
        },
        rootfs: RootfsConfig {
            cache_dir: keys.path("rootfs.cache_dir", "/var/lib/kata-se/layers"),
            cache_mib: keys.number("rootfs.cache_mib", 10240).into(),
            mkfs: keys.path("rootfs.mkfs", "/usr/bin/mkfs.erofs"),
        },
        log: match keys.text("log.level") {
            Some("error") => LogLevel::Error,
            Some("warning") => LogLevel::Warning,
            Some("debug") => LogLevel::Debug,
            _ => LogLevel::Info,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCTION: &str = include_str!("../../configs/kata-se.toml");
    const EMULATED: &str = include_str!("../../configs/kata-se-emulated.toml");

    fn of(texts: &[&str]) -> Result<Config> {
        let file = |(n, text): (usize, &&str)| (PathBuf::from(format!("/c{n}.toml")), (*text).to_owned());
        parse(&texts.iter().enumerate().map(file).collect::<Vec<_>>())
    }

    #[test]
    fn the_shipped_files_say_what_the_defaults_are_and_name_every_key() {
        assert_eq!(of(&[PRODUCTION]), of(&[]));
        let emulated = of(&[EMULATED]).expect("emulated");
        assert_eq!(emulated.qemu.accelerator, Accelerator::Tcg);
        for (key, _) in KEYS {
            let name = key.split('.').next_back().expect("name");
            assert!(PRODUCTION.contains(name) || EMULATED.contains(name), "{key} is not documented");
        }
    }

    #[test]
    fn a_later_file_wins_key_by_key() {
        let config = of(&["[guest]\nvcpus = 2\nmemory_mib = 512", "[guest]\nvcpus = 3"]).expect("parse");
        assert_eq!((config.vcpus, config.memory_mib), (3, 512));
    }

    #[test]
    fn a_list_is_read_whole() {
        let config = of(&["[guest]\nhost_key_documents = [\"/a.crt\", \"/b.crt\"]\nverify_digest = true"]);
        let config = config.expect("parse");
        assert_eq!(config.host_key_documents, [PathBuf::from("/a.crt"), "/b.crt".into()]);
        assert!(config.verify_digest);
    }

    #[test]
    fn mistakes_are_named_with_file_line_key_and_what_is_right() {
        for (text, wanted) in [
            ("[guest]\nvcpu = 2", "/c0.toml:2: unknown key \"guest.vcpu\": did you mean \"guest.vcpus\"?"),
            ("\n[gest]\nvcpus = 2", "/c0.toml:3: unknown key \"gest.vcpus\": did you mean \"guest.vcpus\"?"),
            ("vcpus = 2", "/c0.toml:1: unknown key \"vcpus\""),
            ("[guest]\nvcpus = 248", "/c0.toml:2: guest.vcpus = 248: takes 1 to 247 CPUs"),
            ("[guest]\nvcpus = -1", "/c0.toml:2: guest.vcpus = -1: takes 1 to 247 CPUs"),
            (
                "[guest]\nvcpus = \"2\"",
                "/c0.toml:2: guest.vcpus = \"2\": takes a whole number without quotes",
            ),
            ("[qemu]\npath = \"qemu\"", "/c0.toml:2: qemu.path = \"qemu\": takes an absolute path in quotes"),
            ("[log]\nlevel = \"loud\"", "takes one of \"error\", \"warning\", \"info\", \"debug\""),
            ("[guest]\nkernel = \"/k\"", "/c0.toml:2: guest.kernel: is sealed in the image"),
            ("[qemu]\naccelerator = \"tcg\"", "emulation cannot protect a guest"),
            ("[guest]\nconfidential = false", "configuration: guest.kernel is missing"),
            ("[guest\n", "/c0.toml:1: "),
            ("[guest]\nhost_key_documents = \"/d\"", "takes a list of at most 64 absolute paths"),
            ("[guest]\nhost_key_documents = [\"d\"]", "[\"d\"]: takes an absolute path in quotes"),
            (
                "[guest]\nhuge_pages = true",
                "unknown key \"guest.huge_pages\": the memory of a protected guest",
            ),
            ("[guest]\nkernel-params = \"a\"", "kernel parameters are sealed in the image: rebuild"),
            ("[guest]\ninitrd = \"/i\"", "guest.initrd: is sealed in the image"),
            ("[guest]\nkernel_parameters = \"a\"", "guest.kernel_parameters: is sealed in the image"),
            (
                "[guest]\nconfidential = false\nverify_digest = true",
                "verify_digest: is for confidential guests",
            ),
            (
                "[guest]\nmax_memory_mib = 1024",
                "/c0.toml:2: guest.max_memory_mib = 1024: is less than guest.memory_mib = 2048: raise it",
            ),
            (
                "[guest]\nvcpus = 3\nmax_vcpus = 2",
                "/c0.toml:3: guest.max_vcpus = 2: is less than guest.vcpus = 3",
            ),
            ("[guest]\nmemory_mib = 255", "takes 256 to 16777216 MiB"),
        ] {
            let e = of(&[text]).expect_err(text).to_string();
            assert!(e.contains(wanted), "{e}");
        }
    }
}
