//! The leaf cgroup of the shim beside the pod's: created, entered, left again and removed.
//!
//! Its processes are never killed, so that a running shim can remove it. The shim and the programs
//! that write logs are moved back to the shim's original cgroup; the `delete` command moves them to its own.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::cgroup::get_cgroups_relative_paths;
use cgroups_rs::fs::{Cgroup, hierarchies};

use crate::error::{Context, Error, Result};
use crate::ids::PodKey;
use crate::limits;

const SUFFIX: &str = "-shim";

/// Where the processes of the shim's leaf are moved back to.
#[derive(Debug)]
pub(crate) struct OriginalCgroup(Vec<Entry>);

/// The same in one hierarchy.
#[derive(Debug)]
struct Entry {
    leaf: PathBuf,
    /// The opened `cgroup.procs` of the original cgroup.
    back: File,
}

/// The shim's leaf, beside the pod's: what is in that one is killed with the pod.
pub(crate) fn leaf_path(pod: &Path) -> PathBuf {
    let mut name = pod.file_name().unwrap_or_default().to_os_string();
    name.push(SUFFIX);
    pod.with_file_name(name)
}

/// Whether a directory's name, without the prefix of all leaves, is that of a shim's.
pub(super) fn is_name(name: &str) -> bool {
    name.strip_suffix(SUFFIX).is_some_and(|key| PodKey::parse(key).is_ok())
}

/// Creates the leaf and moves this process into it; after an error it is back in its original cgroup.
pub(crate) fn enter(leaf: &Path) -> Result<OriginalCgroup> {
    let context = || format!("move the shim into cgroup /{}", leaf.display());
    let original_cgroup = OriginalCgroup::of_this_process(leaf).with_context(context)?;
    Cgroup::new(hierarchies::auto(), leaf).with_context(context)?;
    let entered = original_cgroup.0.iter().try_for_each(|entry| write(&open(&entry.leaf)?, "0"));
    if entered.is_err() {
        original_cgroup.restore()?;
    }
    entered.with_context(context)?;
    Ok(original_cgroup)
}

impl OriginalCgroup {
    /// The cgroup of this process now, or the top of a hierarchy where that cannot be opened.
    pub(super) fn of_this_process(leaf: &Path) -> Result<Self> {
        let entry = |(root, own): (PathBuf, PathBuf)| {
            let back = open(&own).or_else(|_| open(&root))?;
            Ok(Entry { leaf: root.join(leaf), back })
        };
        Ok(Self(own_folders()?.into_iter().map(entry).collect::<Result<_>>()?))
    }

    /// Moves all processes of the leaf back.
    pub(crate) fn restore(&self) -> Result<()> {
        self.0.iter().try_for_each(Entry::restore)
    }
}

impl Entry {
    fn restore(&self) -> Result<()> {
        for _ in 0..limits::host::PROCESS_SCANS {
            let list = match fs::read_to_string(self.leaf.join("cgroup.procs")) {
                Ok(list) => list,
                Err(e) if is_gone(&e) => return Ok(()),
                Err(e) => {
                    return Err(e).with_context(|| format!("read the processes of {}", self.leaf.display()));
                }
            };
            if list.is_empty() {
                return Ok(());
            }
            for pid in list.lines() {
                let moved = write(&self.back, pid);
                let ended = fs::symlink_metadata(format!("/proc/{pid}")).is_err();
                moved.or_else(|e| if ended { Ok(()) } else { Err(e) })?;
            }
        }
        Err(Error::internal(format!("cgroup {}: new processes keep appearing in it", self.leaf.display())))
    }
}

/// Whether a cgroup's file cannot be read because the cgroup is removed: ENODEV with a descriptor from before.
pub(super) fn is_gone(e: &std::io::Error) -> bool {
    matches!(e.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENODEV))
}

fn open(folder: &Path) -> Result<File> {
    let procs = folder.join("cgroup.procs");
    OpenOptions::new().write(true).open(&procs).with_context(|| format!("open {}", procs.display()))
}

fn write(mut procs: &File, pid: &str) -> Result<()> {
    procs.write_all(pid.as_bytes()).with_context(|| format!("move process {pid} to another cgroup"))
}

/// The top of each mounted hierarchy and this process' directory in it.
fn own_folders() -> Result<Vec<(PathBuf, PathBuf)>> {
    let hierarchy = hierarchies::auto();
    if hierarchy.v2() {
        let text = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
        let own = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        return Ok(vec![(hierarchy.root(), hierarchy.root().join(own))]);
    }
    let paths: HashMap<String, String> = get_cgroups_relative_paths().context("read /proc/self/cgroup")?;
    let folder = |subsystem: &cgroups_rs::fs::Subsystem| {
        let root = subsystem.to_controller().path().to_path_buf();
        let own = paths.get(&subsystem.controller_name()).map_or("", String::as_str);
        (root.clone(), root.join(own.trim_start_matches('/')))
    };
    let mut folders: Vec<_> = hierarchy.subsystems().iter().map(folder).collect();
    folders.sort();
    folders.dedup();
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Namespace, SandboxId};

    #[test]
    fn the_shims_leaf_is_beside_the_pods_and_has_another_name() {
        let ns = Namespace::parse("default").expect("ns");
        let key = PodKey::new("/a", &ns, &SandboxId::parse("s1").expect("id"));
        let pod = PathBuf::from(format!("kubepods/pod1/kata-se-{key}"));
        assert_eq!(leaf_path(&pod), PathBuf::from(format!("kubepods/pod1/kata-se-{key}-shim")));
        assert!(is_name(&format!("{key}-shim")));
        for other in [key.as_str(), "x-shim", "-shim", ""] {
            assert!(!is_name(other), "{other}");
        }
    }

    #[test]
    fn this_process_has_a_place_in_every_hierarchy() {
        let folders = own_folders().expect("folders");
        assert!(folders.iter().all(|(root, own)| own.starts_with(root)), "{folders:?}");
    }
}
