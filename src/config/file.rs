//! TOML files to the values that they give, each with its file and line; `keys` says what a key takes. Pure.
//!
//! An unknown key, a wrong type or an impossible value is an error that names file, line, key, and what would
//! be right.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::config::Config;
use crate::config::keys::{self, Given, KEYS, Kind, Setter};
use crate::error::{Error, Result};

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
        (Kind::OneOf(_, words), DeValue::String(text)) => {
            let word = words.iter().find(|(word, _)| word == text);
            Box::new(word.ok_or_else(|| kind.takes())?.1)
        }
        _ => return Err(kind.takes()),
    })
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
    let nearest = KEYS.iter().map(|known| (distance(key, known.name), known.name)).min();
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
