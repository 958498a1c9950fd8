//! How much memory and how many CPUs this machine has.

use std::path::Path;

use crate::host::files::read_bounded;
use crate::plan::cpus::CpuList;
use crate::plan::size::Capacity;

/// Largest file read.
const FILE_BYTES: u64 = 64 << 10;

/// What cannot be read is not known.
pub(crate) fn read() -> Capacity {
    let file = |path: &str| {
        let bytes = read_bounded(Path::new(path), FILE_BYTES).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Capacity {
        memory_mib: memory_mib(&file("/proc/meminfo")),
        cpus: cpus(&file("/sys/devices/system/cpu/online")),
    }
}

/// `MemTotal:  16384000 kB`
fn memory_mib(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// A list of ranges: `0-3,8`.
fn cpus(text: &str) -> u32 {
    CpuList::parse(text).ok().and_then(|list| u32::try_from(list.cpus().count()).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_read() {
        for (text, wanted) in [("0-3\n", 4), ("0", 1), ("0-3,8,10-11\n", 7), ("", 0), ("x-3", 0), ("3-1", 0)]
        {
            assert_eq!(cpus(text), wanted, "{text:?}");
        }
        assert_eq!(memory_mib("MemTotal:       16384000 kB\nMemFree: 1 kB\n"), 16000);
        assert_eq!(memory_mib(""), 0);
        let machine = read();
        assert!(machine.memory_mib > 0 && machine.cpus > 0, "{machine:?}");
    }
}
