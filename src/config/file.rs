//! TOML files to the values that they give, each with its file and line; `keys` says what a key takes. Pure.
//!
//! An unknown key, a wrong type or an impossible value is an error that names file, line, key, and what would
//! be right.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::config::Config;
use crate::config::keys::{self, Given, KEYS, Key, Kind, Setter};
use crate::error::{Error, Result};
use crate::limits;

/// Reads the files in order; a later one wins key by key.
pub(crate) fn parse(files: &[(PathBuf, String)]) -> Result<Config> {
    let mut given = BTreeMap::new();
    for (path, text) in files {
        read_file(path, text, &mut given)?;
    }
    keys::resolve(given)
}

fn read_file(path: &Path, text: &str, given: &mut BTreeMap<&'static str, Given>) -> Result<()> {
    let place = |offset: usize| {
        let line = text.get(..offset).unwrap_or(text).matches('\n').count() + 1;
        format!("{}:{line}", path.display())
    };
    let table = DeTable::parse(text).map_err(|e| {
        let start = e.span().map_or(0, |span| span.start);
        Error::invalid(format!("{}: {}", place(start), e.message()))
    })?;
    if let Some((name, section)) = kata_section(table.get_ref()) {
        return Err(Error::invalid(format!(
            "{}: [{name}]: this is a configuration of Kata Containers, in another format: write its values into a \
             file for kata-se, see kata-se.toml(5)",
            place(section.span().start)
        )));
    }
    for (section, value) in table.get_ref() {
        let name = section.get_ref();
        let DeValue::Table(entries) = value.get_ref() else {
            return Err(unknown(&place(section.span().start), name));
        };
        for (key, value) in entries {
            let place = place(key.span().start);
            let full = format!("{name}.{}", key.get_ref());
            let Some(known) = KEYS.iter().find(|known| known.name == full) else {
                return Err(unknown(&place, &full));
            };
            let set = setter(&known.kind, value.get_ref()).map_err(|why| {
                let value = text.get(value.span()).unwrap_or("?");
                Error::invalid(format!("{place}: {full} = {value}: takes {why}"))
            })?;
            given.insert(known.name, Given { place, set });
        }
    }
    Ok(())
}

/// Sets this value in the configuration. The error is what the key takes.
fn setter(kind: &'static Kind, value: &DeValue<'_>) -> std::result::Result<Setter, String> {
    Ok(match (kind, value) {
        (Kind::Path(_, set) | Kind::RequiredPath(_, set), DeValue::String(text)) if is_path(text) => {
            let path = PathBuf::from(text.as_ref());
            Box::new(|config| set(config, path))
        }
        (Kind::OptionalPath(set), DeValue::String(text)) if text.is_empty() || is_path(text) => {
            let path = Some(PathBuf::from(text.as_ref())).filter(|path| !path.as_os_str().is_empty());
            Box::new(|config| set(config, path))
        }
        (Kind::SomeOf(words, set), DeValue::Array(items)) => {
            let word = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
                DeValue::String(text) => words.iter().copied().find(|word| word == text),
                _ => None,
            };
            let names: Option<Vec<_>> = items.iter().map(word).collect();
            let names = names.ok_or_else(|| kind.takes())?;
            Box::new(|config| set(config, names))
        }
        (Kind::NamedPaths(most, set), DeValue::Table(items)) if items.len() <= *most => {
            let one = |(name, path): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
                let name = Some(name.get_ref().to_string()).filter(|name| is_name(name))?;
                match path.get_ref() {
                    DeValue::String(path) if is_path(path) => Some((name, PathBuf::from(path.as_ref()))),
                    _ => None,
                }
            };
            let paths: Option<BTreeMap<_, _>> = items.iter().map(one).collect();
            let paths = paths.ok_or_else(|| kind.takes())?;
            Box::new(|config| set(config, paths))
        }
        (Kind::Paths(most, set), DeValue::Array(items)) if items.len() <= *most => {
            let paths = items.iter().map(|item| match item.get_ref() {
                DeValue::String(text) if is_path(text) => Ok(PathBuf::from(text.as_ref())),
                _ => Err("an absolute path in quotes".to_owned()),
            });
            let paths = paths.collect::<std::result::Result<_, _>>()?;
            Box::new(|config| set(config, paths))
        }
        (Kind::Text(_, set), DeValue::String(text)) => {
            let text = text.to_string();
            Box::new(|config| set(config, text))
        }
        (Kind::Switch(_, set), DeValue::Boolean(on)) => {
            let on = *on;
            Box::new(move |config| set(config, on))
        }
        (Kind::Number(_, bounds, unit, set), DeValue::Integer(number)) => {
            let number = u32::from_str_radix(number.as_str(), number.radix()).ok();
            let number = number.filter(|n| bounds.contains(n));
            let number = number.ok_or_else(|| format!("{} to {} {unit}", bounds.start(), bounds.end()))?;
            Box::new(move |config| set(config, number))
        }
        (Kind::OneOf(_, words) | Kind::OneOfAsAbove(words), DeValue::String(text)) => {
            let word = words.iter().find(|(word, _)| word == text);
            Box::new(word.ok_or_else(|| kind.takes())?.1)
        }
        _ => return Err(kind.takes()),
    })
}

/// Of an extension image: what its serial in the guest has room for.
fn is_name(text: &str) -> bool {
    let fits = (1..=limits::qemu::EXTENSION_NAME_BYTES).contains(&text.len());
    fits && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && !text.contains('\0')
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
    let right = nearest(key).map_or_else(|| known(key), |nearest| format!("did you mean {nearest:?}?"));
    Error::invalid(format!("{place}: unknown key {key:?}: {right}"))
}

/// The key of the same name in another section, or one that differs in at most a third of the letters.
fn nearest(key: &str) -> Option<&'static str> {
    let key: String = key.chars().take(64).collect();
    let name = key.rsplit('.').next();
    let distance = |known: &Key| match known.parts() {
        (_, same) if Some(same) == name => 0,
        _ => strsim::osa_distance(&key, known.name),
    };
    let near = KEYS.iter().map(|known| (distance(known), known.name)).min();
    near.filter(|(distance, _)| *distance <= key.chars().count() / 3).map(|(_, name)| name)
}

/// What there is instead of an unknown key: the keys of its section, or the sections.
fn known(key: &str) -> String {
    let section = key.split('.').next().unwrap_or(key);
    let parts = KEYS.iter().map(Key::parts);
    let names: Vec<_> = parts.clone().filter(|(of, _)| *of == section).map(|(_, name)| name).collect();
    if names.is_empty() {
        let mut sections: Vec<_> = parts.map(|(section, _)| format!("[{section}]")).collect();
        sections.dedup();
        return format!("the sections are {}", sections.join(", "));
    }
    format!("the keys of [{section}] are {}", names.join(", "))
}

/// The section that only a configuration of Kata Containers has: people may name that file by mistake.
fn kata_section<'a>(table: &'a DeTable<'_>) -> Option<(&'static str, &'a Spanned<DeString<'a>>)> {
    table.iter().find_map(|(section, value)| {
        let DeValue::Table(keys) = value.get_ref() else { return None };
        let of_kata = match section.get_ref().as_ref() {
            "hypervisor" => "hypervisor",
            "runtime" => "runtime",
            "agent" if keys.get("kata").is_some_and(|kata| kata.get_ref().is_table()) => "agent.kata",
            _ => return None,
        };
        Some((of_kata, section))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Accelerator;

    const EMULATED: &str = include_str!("../../configs/kata-se-emulated.toml");

    fn of(texts: &[&str]) -> Result<Config> {
        let file = |(n, text): (usize, &&str)| (PathBuf::from(format!("/c{n}.toml")), (*text).to_owned());
        parse(&texts.iter().enumerate().map(file).collect::<Vec<_>>())
    }

    #[test]
    fn the_file_for_emulation_is_valid() {
        let emulated = of(&[EMULATED]).expect("emulated");
        assert_eq!(emulated.qemu.accelerator, Accelerator::Tcg);
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
    fn extension_images_are_a_table_in_either_of_tomls_forms() {
        let wanted =
            BTreeMap::from([("a-b_9".to_owned(), "/a".into()), ("coco456789".to_owned(), "/c".into())]);
        for text in [
            "[guest]\nextensions = { coco456789 = \"/c\", a-b_9 = \"/a\" }",
            "[guest.extensions]\ncoco456789 = \"/c\"\na-b_9 = \"/a\"",
        ] {
            assert_eq!(of(&[text]).expect("parse").extensions, wanted);
        }
        for name in ["coco4567890", "\"\"", "\"a b\"", "\"a,b\"", "\"\u{e9}\"", "\"a/b\"", "\"a.b\""] {
            let e = of(&[&format!("[guest.extensions]\n{name} = \"/c\"")]).expect_err(name).to_string();
            assert!(
                e.contains("takes a table of at most 8 absolute paths") && e.contains("up to 10 letters"),
                "{e}"
            );
        }
        for value in ["[\"/c\"]", "{ coco = \"c\" }", "{ coco = 1 }", "\"coco=/c\""] {
            let e = of(&[&format!("[guest]\nextensions = {value}")]).expect_err(value).to_string();
            assert!(e.contains(&format!("guest.extensions = {value}: takes a table")), "{e}");
        }
    }

    #[test]
    fn mistakes_are_named_with_file_line_key_and_what_is_right() {
        for (text, wanted) in [
            ("[guest]\nvcpu = 2", "/c0.toml:2: unknown key \"guest.vcpu\": did you mean \"guest.vcpus\"?"),
            ("\n[gest]\nvcpus = 2", "/c0.toml:3: unknown key \"gest.vcpus\": did you mean \"guest.vcpus\"?"),
            ("vcpus = 2", "/c0.toml:1: unknown key \"vcpus\": did you mean \"guest.vcpus\"?"),
            ("[qemu]\nvcpus = 2", "unknown key \"qemu.vcpus\": did you mean \"guest.vcpus\"?"),
            ("[log]\nlevle = \"info\"", "unknown key \"log.levle\": did you mean \"log.level\"?"),
            (
                "[guest.x]",
                "/c0.toml:1: unknown key \"guest.x\": the keys of [guest] are confidential, image, ",
            ),
            ("[host]\nunrelated = 1", "\"host.unrelated\": the keys of [host] are shim_in_pod_cgroup"),
            ("qemu = 1", "unknown key \"qemu\": the keys of [qemu] are path, accelerator"),
            (
                "[netmon.x]",
                "unknown key \"netmon.x\": the sections are [qemu], [guest], [host], [vsock], [agent], [rootfs], [volumes], [annotations], [log]",
            ),
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
            (
                "[annotations]\nenabled = [\"hypervisor.kernel\"]",
                "enabled = [\"hypervisor.kernel\"]: takes a list of some of \"hypervisor.default_memory\", ",
            ),
            (
                "[agent]\npolicy_file = \"p\"",
                "policy_file = \"p\": takes an absolute path in quotes, or \"\" for none",
            ),
            ("[guest]\nmemory_mib = 255", "takes 256 to 16777216 MiB"),
        ] {
            let e = of(&[text]).expect_err(text).to_string();
            assert!(e.contains(wanted), "{e}");
        }
    }

    #[test]
    fn a_configuration_of_kata_is_recognised() {
        for (text, section, line) in [
            ("[hypervisor.qemu]\npath = \"/q\"\nenable_hugepages = true", "hypervisor", 1),
            ("[agent.kata]\nkernel_modules = []\n[hypervisor]", "agent.kata", 1),
            ("\n[runtime]\nenable_debug = true", "runtime", 2),
        ] {
            let e = of(&[text]).expect_err(text).to_string();
            let wanted =
                format!("/c0.toml:{line}: [{section}]: this is a configuration of Kata Containers, ");
            assert!(e.contains(&wanted) && e.ends_with("see kata-se.toml(5)"), "{e}");
        }
        let e = of(&["[agent]\nkata = 1"]).expect_err("key").to_string();
        assert!(e.contains("unknown key \"agent.kata\": the keys of [agent] are "), "{e}");
    }

    #[test]
    fn a_long_key_is_refused_without_a_suggestion() {
        let e = of(&[&format!("[guest]\n{} = 1", "vcpus".repeat(100_000))]).expect_err("key").to_string();
        assert!(e.contains("the keys of [guest] are "));
    }
}
