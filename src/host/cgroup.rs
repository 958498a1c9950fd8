//! One leaf cgroup per pod (v1 and v2): created, entered, emptied, removed.
//!
//! The only user of `cgroups_rs`, with `shim_cgroup`. The leaf is named `kata-se-<pod key>` and lies beside
//! the cgroup of the pod's first container; processes of no other cgroup are ever killed. Ancestors that were
//! created on the way, in each hierarchy separately, are in the journal too and removed only when empty.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use cgroups_rs::fs::{Cgroup, hierarchies};
use cgroups_rs::systemd::DEFAULT_SLICE;
use cgroups_rs::systemd::utils::expand_slice;

use crate::error::{Context, Error, Result};
use crate::host::shim_cgroup::{self, OriginalCgroup, is_gone};
use crate::ids::PodKey;
use crate::limits;

const PREFIX: &str = "kata-se-";

/// Hierarchies are mounted at or below this directory.
const TOP: &str = "/sys/fs/cgroup";

/// The parent of leaves when the spec names none.
const OWN_PARENT: &str = "kata-se";

/// Opened `cgroup.procs` files of one cgroup, one per hierarchy.
#[derive(Debug)]
pub struct Entry(Vec<File>);

impl Entry {
    pub(crate) fn into_files(self) -> Vec<File> {
        self.0
    }
}

/// Where the pod's leaf goes, from `linux.cgroupsPath`: the cgroupfs form `/a/b/<id>`, the
/// systemd form `slice:prefix:name`, or nothing. Relative to the hierarchies' roots.
pub(crate) fn leaf_path(cgroups_path: Option<&str>, key: &PodKey) -> Result<PathBuf> {
    let given = cgroups_path.unwrap_or("").trim_start_matches('/');
    let parent = match given.split(':').collect::<Vec<_>>().as_slice() {
        [slice, _, _] => slice_path(slice)?,
        _ => Path::new(given).parent().map(Path::to_path_buf).unwrap_or_default(),
    };
    if parent.components().any(|c| !matches!(c, Component::Normal(_))) {
        return Err(Error::invalid(format!("linux.cgroupsPath {given:?}: only plain names between slashes")));
    }
    let parent = if parent.as_os_str().is_empty() { PathBuf::from(OWN_PARENT) } else { parent };
    Ok(parent.join(format!("{PREFIX}{key}")))
}

/// systemd's rule: `a-b.slice` lives in `a.slice`.
fn slice_path(slice: &str) -> Result<PathBuf> {
    let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
    expand_slice(slice).map(PathBuf::from).map_err(|_no_detail| {
        Error::invalid(format!("linux.cgroupsPath: {slice:?} is not a systemd slice name"))
    })
}

/// The directories of a leaf's ancestors in every hierarchy as absolute paths, innermost first.
pub(crate) fn above(leaf: &Path) -> Vec<PathBuf> {
    leaf.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).flat_map(dirs).collect()
}

/// Creates the leaf and opens its `cgroup.procs` files.
pub(crate) fn make(leaf: &Path) -> Result<Entry> {
    Cgroup::new(hierarchies::auto(), leaf).with_context(|| format!("make cgroup /{}", leaf.display()))?;
    enter(leaf)
}

/// Opens the `cgroup.procs` files of an existing leaf.
pub(crate) fn enter(leaf: &Path) -> Result<Entry> {
    let open = |dir: &PathBuf| {
        let procs = dir.join("cgroup.procs");
        OpenOptions::new().write(true).open(&procs).with_context(|| format!("open {}", procs.display()))
    };
    let files = dirs(leaf).iter().filter(|d| d.is_dir()).map(open).collect::<Result<Vec<_>>>()?;
    if files.is_empty() {
        return Err(Error::internal(format!(
            "cgroup /{}: no cgroup hierarchy is mounted on this host below /sys/fs/cgroup",
            leaf.display()
        )));
    }
    Ok(Entry(files))
}

/// Removes a cgroup of the journal; one that does not exist is success. A pod's leaf is emptied by SIGKILL, a
/// shim's leaf by moving its processes back; an ancestor is removed only when it is empty.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let limit = limit(path);
    let until = Instant::now() + limit;
    if path.is_absolute() {
        if !path.starts_with(TOP) || path.components().any(|c| c == Component::ParentDir) {
            return Err(Error::internal(format!("journal: {} is not a cgroup", path.display())));
        }
        return remove_dir(path, false, until);
    }
    let is_leaf = is_leaf(path);
    let is_shims = name_of(path).is_some_and(shim_cgroup::is_name);
    if is_shims {
        OriginalCgroup::of_this_process(path)?.restore()?;
    }
    for dir in dirs(path) {
        if is_leaf {
            empty(&dir, until, limit)?;
        }
        remove_dir(&dir, is_leaf || is_shims, until)?;
    }
    Ok(())
}

/// The time for the removal of a cgroup: in a pod's leaf its QEMU may have been killed a moment ago.
fn limit(path: &Path) -> Duration {
    if is_leaf(path) { limits::qemu::QEMU_EXIT } else { limits::host::CLEANUP_STEP }
}

/// Whether `path` is a pod's leaf, by its name.
pub(crate) fn is_leaf(path: &Path) -> bool {
    !path.is_absolute() && name_of(path).is_some_and(|key| PodKey::parse(key).is_ok())
}

/// The name of a leaf without the prefix of all leaves.
fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)
}

/// Kills until no process is left: new ones may be forked meanwhile. `until`: the end of `limit`.
fn empty(dir: &Path, until: Instant, limit: Duration) -> Result<()> {
    fs::write(dir.join("cgroup.kill"), "1").ok(); // v2 since 5.14; the loop covers the rest
    loop {
        let pids = match fs::read_to_string(dir.join("cgroup.procs")) {
            Ok(text) => text,
            Err(e) if is_gone(&e) => return Ok(()),
            Err(e) => return Err(e).with_context(|| format!("read {}/cgroup.procs", dir.display())),
        };
        // A process of another pid namespace is listed as 0, which kill(2) takes for our own process group.
        let pids: Vec<i32> = pids.lines().filter_map(|l| l.parse().ok()).filter(|pid| *pid > 0).collect();
        if pids.is_empty() {
            return Ok(());
        }
        for pid in &pids {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL).ok();
        }
        if Instant::now() > until {
            return Err(Error::deadline(format!(
                "cgroup {}: processes {pids:?} are still there {} s after SIGKILL",
                dir.display(),
                limit.as_secs()
            )));
        }
        pause();
    }
}

fn remove_dir(dir: &Path, is_ours: bool, until: Instant) -> Result<()> {
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e)
                if !is_ours && matches!(e.raw_os_error(), Some(nix::libc::EBUSY | nix::libc::ENOTEMPTY)) =>
            {
                return Ok(()); // others use it
            }
            Err(e) if Instant::now() > until => {
                return Err(e).with_context(|| format!("remove cgroup {}", dir.display()));
            }
            Err(_) => pause(), // a dying process leaves its cgroup a moment later
        }
    }
}

/// Whether this host has cgroup version 2 only.
pub(crate) fn is_v2() -> bool {
    hierarchies::auto().v2()
}

/// A short wait on a thread of `begun::blocking`; never on the executor.
#[allow(clippy::disallowed_methods)]
fn pause() {
    std::thread::sleep(limits::host::CGROUP_PAUSE);
}

/// The directories of `path` in every mounted hierarchy, without duplicates.
pub(crate) fn dirs(path: &Path) -> Vec<PathBuf> {
    let hierarchy = hierarchies::auto();
    if hierarchy.v2() {
        return vec![hierarchy.root().join(path)];
    }
    let cgroup = Cgroup::load(hierarchy, path);
    let mut dirs: Vec<PathBuf> =
        cgroup.subsystems().iter().map(|s| s.to_controller().path().to_path_buf()).collect();
    dirs.sort();
    dirs.dedup();
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Namespace, SandboxId};

    #[test]
    fn the_leaf_is_beside_the_first_container() {
        let ns = Namespace::parse("default").expect("ns");
        let key = PodKey::new("/a", &ns, &SandboxId::parse("s1").expect("id"));
        let leaf = |parent: &str| Ok(PathBuf::from(format!("{parent}/kata-se-{key}")));
        for (given, parent) in [
            (Some("/kubepods/pod1/abc"), "kubepods/pod1"),
            (Some("/default/abc"), "default"),
            (Some("kubepods-pod1.slice:cri-containerd:abc"), "kubepods.slice/kubepods-pod1.slice"),
            (
                Some("kubepods-besteffort-pod1_2.slice:crio:abc"),
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice",
            ),
            (
                Some("kubelet-kubepods-burstable-pod1.slice:cri-containerd:abc"),
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                 kubelet-kubepods-burstable-pod1.slice",
            ),
            (Some("system.slice:containerd:abc"), "system.slice"),
            (Some("-.slice:x:abc"), "kata-se"),
            (Some(":x:abc"), "system.slice"),
            (Some("abc"), "kata-se"),
            (None, "kata-se"),
        ] {
            assert_eq!(leaf_path(given, &key), leaf(parent), "{given:?}");
        }
        for bad in [
            "/a/../../b",
            "x:y:z",
            "a--b.slice:y:z",
            "-a.slice:y:z",
            "a-.slice:y:z",
            "../a.slice:y:z",
            ".slice:y:z",
            "a/b.slice:y:z",
        ] {
            assert!(leaf_path(Some(bad), &key).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_end_of_a_protected_guest_is_waited_for() {
        let leaf = PathBuf::from(format!("kubepods/pod1/kata-se-{}", "0123456789abcdef".repeat(2)));
        assert_eq!(limit(&leaf), limits::qemu::QEMU_EXIT);
        for other in ["kubepods".into(), PathBuf::from("/sys/fs/cgroup/pids/x"), leaf.join("x")] {
            assert_eq!(limit(&other), limits::host::CLEANUP_STEP);
        }
        let dir = tempfile::tempdir().expect("dir");
        let procs = dir.path().join("cgroup.procs");
        let none = "4194305\n"; // above every pid that there can be
        fs::write(&procs, none).expect("procs");
        let began = Instant::now();
        let e = empty(dir.path(), began, Duration::from_secs(7)).expect_err("it is there").to_string();
        assert!(e.ends_with("processes [4194305] are still there 7 s after SIGKILL"), "{e}");
        let emptied = std::thread::scope(|all| {
            all.spawn(|| {
                while began.elapsed() < Duration::from_millis(100) {
                    pause();
                }
                fs::write(&procs, "").expect("procs");
            });
            empty(dir.path(), began + Duration::from_secs(60), Duration::from_secs(60))
        });
        assert_eq!(emptied, Ok(()));
    }

    #[test]
    fn nothing_but_cgroups_is_removed() {
        let dir = tempfile::tempdir().expect("dir");
        for bad in [dir.path(), Path::new("/sys/fs/cgroup/../../../tmp"), Path::new("/")] {
            let e = remove(bad).expect_err("no cgroup").to_string();
            assert!(e.contains("is not a cgroup"), "{e}");
        }
        assert!(dir.path().is_dir());
        assert_eq!(remove(Path::new("/sys/fs/cgroup/kata-se-not-there/x")), Ok(()));
    }
}
