//! How the emptyDirs of a pod are kept, and how large each may become: by the configuration, and by what the pod asks
//! for in an annotation.
//!
//! CRI does not pass `sizeLimit` on: a runtime knows of it only what an annotation repeats. The kubelet itself counts
//! the blocks that a disk has, and evicts a pod above its limit.

use std::collections::{BTreeMap, HashMap};

use crate::config::{EmptyDirMode, VolumesConfig};
use crate::error::{Code, Error, Result};
use crate::limits;

/// The size of one volume: `io.katacontainers.volumes.emptydir_sizelimit.<volume>`.
const SIZE: &str = "io.katacontainers.volumes.emptydir_sizelimit.";

/// Of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EmptyDirs {
    pub mode: EmptyDirMode,
    /// Bytes, where the pod asks for nothing else.
    default: u64,
    asked: BTreeMap<String, u64>,
}

impl EmptyDirs {
    /// For a pod with these annotations, those of its first container.
    pub(crate) fn of(config: &VolumesConfig, annotations: &HashMap<String, String>) -> Result<Self> {
        let default = gib(config.empty_dir_gib);
        let most = default.max(gib(config.max_empty_dir_gib));
        let mut given: Vec<_> =
            annotations.iter().filter_map(|(key, value)| Some((key.strip_prefix(SIZE)?, value))).collect();
        given.sort_unstable(); // always the same one is refused
        let mut asked = BTreeMap::new();
        for (volume, text) in given {
            let size = size(text, most, config).map_err(|why| refused(volume, text, &why))?;
            asked.insert(volume.to_owned(), size);
        }
        Ok(Self { mode: config.empty_dir, default, asked })
    }

    /// The size of a volume's disk, in bytes.
    pub(crate) fn bytes(&self, volume: &str) -> u64 {
        self.asked.get(volume).copied().unwrap_or(self.default)
    }
}

fn gib(number: u32) -> u64 {
    u64::from(number) << 30
}

fn size(text: &str, most: u64, config: &VolumesConfig) -> std::result::Result<u64, String> {
    if config.empty_dir == EmptyDirMode::GuestLocal {
        return Err(
            "emptyDirs of this node's guests are in their memory (volumes.empty_dir = \"guest-local\") and have no \
             size of their own: remove the annotation"
                .to_owned(),
        );
    }
    let bytes = quantity(text).ok_or("it is no size: write one like 500Mi or 2Gi")?;
    if bytes < limits::volumes::SMALLEST_DISK {
        return Err(format!("less than {} MiB: ask for more", limits::volumes::SMALLEST_DISK >> 20));
    }
    if bytes > most {
        return Err(format!(
            "more than this node allows: ask for {}Gi at most, or have volumes.max_empty_dir_gib raised",
            most >> 30
        ));
    }
    Ok(bytes)
}

/// A whole number with one of Kubernetes' suffixes, in bytes.
fn quantity(text: &str) -> Option<u64> {
    const SUFFIXES: [(&str, u64); 9] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("", 1),
    ];
    let (number, unit) =
        SUFFIXES.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)))?;
    let is_plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse::<u64>().ok().filter(|_| is_plain)?.checked_mul(*unit)
}

fn refused(volume: &str, value: &str, why: &str) -> Error {
    let [volume, value] = [volume, value].map(|text| text.chars().take(200).collect::<String>());
    Error::new(Code::PermissionDenied, format!("annotation {SIZE}{volume} = {value:?}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(mode: EmptyDirMode, value: &str) -> std::result::Result<u64, String> {
        let config = VolumesConfig {
            empty_dir: mode,
            empty_dir_gib: 10,
            max_empty_dir_gib: 20,
            copied_mib: 0,
            copied_files: 0,
        };
        let annotations = HashMap::from([(format!("{SIZE}cache"), value.to_owned())]);
        let dirs = EmptyDirs::of(&config, &annotations).map_err(|e| e.to_string())?;
        assert_eq!(dirs.bytes("other"), 10 << 30);
        Ok(dirs.bytes("cache"))
    }

    #[test]
    fn a_pod_may_ask_for_a_size_up_to_the_nodes_maximum() {
        for (text, wanted) in [
            ("500Mi", 500 << 20),
            ("20Gi", 20 << 30),
            ("16777216", 16 << 20),
            ("1G", 1_000_000_000),
            ("100000k", 100_000_000),
        ] {
            assert_eq!(of(EmptyDirMode::BlockEncrypted, text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_or_too_large_is_refused_with_what_to_do() {
        let key = "annotation io.katacontainers.volumes.emptydir_sizelimit.cache = ";
        for (text, wanted) in [
            ("", "it is no size"),
            ("Gi", "it is no size"),
            ("-1Gi", "it is no size"),
            ("+1Gi", "it is no size"),
            ("1.5Gi", "it is no size"),
            ("1 Gi", "it is no size"),
            ("1e3", "it is no size"),
            ("99999999999999999999", "it is no size"),
            ("18446744073709551615Ti", "it is no size"),
            ("1Mi", "less than 16 MiB"),
            ("0", "less than 16 MiB"),
            ("21Gi", "more than this node allows: ask for 20Gi at most"),
        ] {
            let e = of(EmptyDirMode::BlockPlain, text).expect_err(text);
            assert!(e.starts_with(&format!("{key}{text:?}: {wanted}")), "{e}");
        }
        let e = of(EmptyDirMode::GuestLocal, "1Gi").expect_err("memory");
        assert!(e.contains("are in their memory") && e.ends_with("remove the annotation"), "{e}");
        let e = of(EmptyDirMode::BlockPlain, &"9".repeat(10_000)).expect_err("long");
        assert!(e.len() < 500, "{}", e.len());
    }
}
