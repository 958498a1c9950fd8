//! Whether the host's OOM killer hit a cgroup of ours, and what it was up against.

use std::fs;
use std::path::{Path, PathBuf};

use crate::host::cgroup;

/// What the kernel tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OutOfMemory {
    /// Most memory the cgroup had, in bytes; 0: not told.
    pub peak: u64,
    /// The tightest limit above it: cgroup and bytes. None: the whole machine was out of memory.
    pub limit: Option<(PathBuf, u64)>,
}

/// None: no process of the leaf was hit.
pub(crate) fn of(leaf: &Path) -> Option<OutOfMemory> {
    let v2 = cgroup::is_v2();
    let [events, peak, limit] = if v2 {
        ["memory.events", "memory.peak", "memory.max"]
    } else {
        ["memory.oom_control", "memory.max_usage_in_bytes", "memory.limit_in_bytes"]
    };
    let own = read(leaf, events)?;
    let kills = own.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
    if kills.unwrap_or(0) == 0 {
        return None;
    }
    let limits = leaf.ancestors().filter(|path| !path.as_os_str().is_empty()).filter_map(|path| {
        // Without a limit version 2 says "max", version 1 its largest number of pages.
        let bytes = number(&read(path, limit)?).filter(|bytes| *bytes < 1 << 62)?;
        Some((path.to_path_buf(), bytes))
    });
    Some(OutOfMemory {
        peak: read(leaf, peak).and_then(|text| number(&text)).unwrap_or(0),
        limit: limits.min_by_key(|(_, bytes)| *bytes),
    })
}

fn read(path: &Path, name: &str) -> Option<String> {
    cgroup::dirs(path).iter().find_map(|dir| fs::read_to_string(dir.join(name)).ok())
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}
