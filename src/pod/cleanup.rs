//! What is owed for each resource, and how it is paid back.
//!
//! Each entry treats "not there" as success, names only things that are ours by construction, and
//! ends in bounded time. Everything here blocks: it runs on a thread of its own, or in `delete`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::failpoint::{Step, hit};
use crate::host::{cgroup, files, netlink};
use crate::limits;
use crate::pod::journal;

/// One resource that must not outlive the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "owe", rename_all = "snake_case")]
pub(crate) enum Cleanup {
    /// The pod's leaf cgroup with every process in it (QEMU and helpers), or an ancestor of it
    /// that was made on the way; relative to the hierarchies' roots.
    Cgroup { path: PathBuf },
    /// A tap device in a network namespace (gone with QEMU; a belt).
    Tap { netns: PathBuf, name: String },
    /// Our mirroring between a link of a network namespace and a tap of ours.
    Mirror { netns: PathBuf, link: String, tap: String },
    /// A file or socket directly below the pod's own directory.
    Path { name: String },
}

impl Cleanup {
    fn run(&self, dir: &Path) -> Result<()> {
        match self {
            Self::Cgroup { path } => {
                // Somebody may be about to make a leaf below it (`pod::place`).
                let folder = dir.parent().filter(|_| !cgroup::is_leaf(path));
                let _alone = folder.and_then(|all| files::lock_folder(all, limits::CLEANUP_STEP));
                cgroup::remove(path)
            }
            Self::Tap { netns, name } => netlink::remove_tap(netns, name),
            Self::Mirror { netns, link, tap } => netlink::remove_mirror(netns, link, tap),
            Self::Path { name } => remove_file(dir, name),
        }
    }
}

fn remove_file(dir: &Path, name: &str) -> Result<()> {
    if name.contains('/') || name == ".." || name.is_empty() {
        return Err(Error::internal(format!("journal: {name:?} is not a name in the pod's directory")));
    }
    let path = dir.join(name);
    match fs::remove_file(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("remove {}", path.display())),
    }
}

/// The last entry first, but before all others the pod's leaf: who is in it may still be making what
/// is owed.
fn in_turn(mut owed: Vec<Cleanup>) -> Vec<Cleanup> {
    owed.reverse();
    owed.sort_by_key(|undo| !matches!(undo, Cleanup::Cgroup { path } if cgroup::is_leaf(path)));
    owed
}

/// Pays back everything the pod in `dir` owes; goes on after an error and reports all of them.
pub(crate) fn run(dir: &Path) -> Result<()> {
    let owed = in_turn(journal::read(dir)?);
    let pay = |entry: &Cleanup| entry.run(dir).and_then(|()| hit(Step::CleanupStepDone));
    let failed: Vec<String> = owed.iter().filter_map(|undo| pay(undo).err()).map(|e| e.to_string()).collect();
    if failed.is_empty() { Ok(()) } else { Err(Error::internal(format!("clean up: {}", failed.join("; ")))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_paid_and_other_places_are_never_touched() {
        let dir = tempfile::tempdir().expect("dir");
        let undo = |name: &str| Cleanup::Path { name: name.into() };
        fs::write(dir.path().join("s"), b"").expect("write");
        assert_eq!(undo("s").run(dir.path()), Ok(()));
        assert_eq!(undo("s").run(dir.path()), Ok(()));
        for bad in ["../x", "..", "a/b", ""] {
            assert!(undo(bad).run(dir.path()).is_err(), "{bad}");
        }
        let foreign = Cleanup::Tap { netns: "/nonexistent/ns".into(), name: "eth0".into() };
        assert!(foreign.run(dir.path()).is_err());
    }

    #[test]
    fn processes_end_before_what_they_make_is_removed() {
        let leaf = format!("kubepods/pod1/kata-se-{}", "0123456789abcdef".repeat(2));
        let cgroup = |path: &str| Cleanup::Cgroup { path: path.into() };
        let path = |name: &str| Cleanup::Path { name: name.into() };
        let owed = vec![
            cgroup("kubepods"),
            cgroup(&leaf),
            cgroup(&format!("{leaf}-shim")),
            path("one"),
            path("two"),
        ];
        let [above, own, shims, one, two] = [0, 1, 2, 3, 4].map(|at: usize| owed[at].clone());
        assert_eq!(in_turn(owed), [own, two, one, shims, above]);
    }

    #[test]
    fn one_error_does_not_stop_the_rest() {
        let dir = tempfile::tempdir().expect("dir");
        fs::write(dir.path().join("s"), b"").expect("write");
        let journal = journal::Journal::open(dir.path()).expect("open");
        journal.record(&Cleanup::Path { name: "s".into() }).expect("owe");
        journal.record(&Cleanup::Path { name: "../x".into() }).expect("owe");
        let e = run(dir.path()).expect_err("one is bad");
        assert!(e.to_string().starts_with("clean up: journal:"), "{e}");
        assert!(!dir.path().join("s").exists());
    }
}
