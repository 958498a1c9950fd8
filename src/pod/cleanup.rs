//! Removes what a pod's journal names.
//!
//! Each removal treats "not there" as success, touches only what is ours by construction, and ends in
//! bounded time. Everything here blocks: it runs on a thread beside the runtime, or in `delete`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::error::{Context, Error, Result};
use crate::failpoint::{Step, hit};
use crate::host::lock::lock_folder;
use crate::host::{cgroup, empty_dir, netlink};
use crate::limits;
use crate::pod::journal::{self, Cleanup};

/// Removes everything that the journal of the pod in `dir` names; goes on after an error, also of a line that
/// cannot be read, and reports all of them: the journal must then be kept.
pub(crate) fn run(dir: &Path) -> Result<()> {
    let (entries, unreadable): (Vec<_>, Vec<_>) = journal::read(dir)?.into_iter().partition(Result::is_ok);
    let remove = |entry| remove(&entry, dir).and_then(|()| hit(Step::CleanupStepDone));
    let failed = in_order(entries.into_iter().flatten().collect()).into_iter().map(remove);
    let unreadable = unreadable.into_iter().map(|line| line.map(drop));
    let failed: Vec<String> =
        failed.chain(unreadable).filter_map(Result::err).map(|e| e.to_string()).collect();
    if failed.is_empty() { Ok(()) } else { Err(Error::internal(format!("clean up: {}", failed.join("; ")))) }
}

/// The last entry first, but before all others the pod's leaf: its processes may still be making what other
/// entries name.
fn in_order(mut entries: Vec<Cleanup>) -> Vec<Cleanup> {
    entries.reverse();
    entries.sort_by_key(|entry| !matches!(entry, Cleanup::Cgroup { path } if cgroup::is_leaf(path)));
    entries
}

fn remove(entry: &Cleanup, dir: &Path) -> Result<()> {
    match entry {
        Cleanup::Cgroup { path } => {
            // Another pod may be about to make a leaf below it (`pod::cgroup`).
            let folder = dir.parent().filter(|_| !cgroup::is_leaf(path));
            let _lock = folder.and_then(|all| lock_folder(all, limits::host::CLEANUP_STEP));
            cgroup::remove(path)
        }
        Cleanup::Tap { netns, name } => netlink::remove_tap(netns, name),
        Cleanup::Mirror { netns, link, .. } => netlink::remove_mirror(netns, link),
        Cleanup::EmptyDir { disk } => empty_dir::remove(disk),
        Cleanup::Path { name } => remove_named(dir, name),
    }
}

/// Removes a file, or a folder with what is in it.
fn remove_named(dir: &Path, name: &str) -> Result<()> {
    if name.contains('/') || name == ".." || name.is_empty() {
        return Err(Error::internal(format!("journal: {name:?} is not a name in the pod's directory")));
    }
    let path = dir.join(name);
    let is_folder = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
    match if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) } {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::dir;

    #[test]
    fn removing_what_is_not_there_succeeds_and_other_places_are_never_touched() {
        let dir = tempfile::tempdir().expect("dir");
        let path = |name: &str| Cleanup::Path { name: name.into() };
        fs::write(dir.path().join("s"), b"").expect("write");
        fs::create_dir_all(dir.path().join("v/in")).expect("mkdir");
        for name in ["s", "s", "v", "v"] {
            assert_eq!(remove(&path(name), dir.path()), Ok(()));
        }
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0);
        for bad in ["../x", "..", "a/b", ""] {
            assert!(remove(&path(bad), dir.path()).is_err(), "{bad}");
        }
        let foreign = Cleanup::Tap { netns: "/nonexistent/ns".into(), name: "eth0".into() };
        assert!(remove(&foreign, dir.path()).is_err());
    }

    #[test]
    fn processes_end_before_what_they_make_is_removed() {
        let leaf = format!("kubepods/pod1/kata-se-{}", "0123456789abcdef".repeat(2));
        let cgroup = |path: &str| Cleanup::Cgroup { path: path.into() };
        let path = |name: &str| Cleanup::Path { name: name.into() };
        let entries = vec![
            cgroup("kubepods"),
            cgroup(&leaf),
            cgroup(&format!("{leaf}-shim")),
            path("one"),
            path("two"),
        ];
        let [above, own, shims, one, two] = [0, 1, 2, 3, 4].map(|at: usize| entries[at].clone());
        assert_eq!(in_order(entries), [own, two, one, shims, above]);
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_and_does_not_keep_the_others() {
        let dir = tempfile::tempdir().expect("dir");
        let line = |name: &str| format!("{{\"owe\":\"path\",\"name\":\"{name}\"}}\n");
        for damage in [&b"nonsense\n"[..], b"\xff\xfe\n", b"{\"owe\":\"moon\"}\n"] {
            for name in ["a", "b"] {
                fs::write(dir.path().join(name), b"").expect("write");
            }
            let text = [line("a").as_bytes(), damage, line("b").as_bytes()].concat();
            fs::write(dir.path().join(dir::JOURNAL), &text).expect("write");
            let e = run(dir.path()).expect_err("damaged").to_string();
            assert!(e.starts_with("clean up: journal ") && e.contains("/journal: line 2: "), "{e}");
            assert!(!dir.path().join("a").exists() && !dir.path().join("b").exists(), "{e}");
            assert_eq!(fs::read(dir.path().join(dir::JOURNAL)).expect("kept"), text);
        }
    }

    #[test]
    fn one_error_does_not_stop_the_rest() {
        let dir = tempfile::tempdir().expect("dir");
        fs::write(dir.path().join("s"), b"").expect("write");
        let journal = journal::Journal::open(dir.path()).expect("open");
        journal.record(&Cleanup::Path { name: "s".into() }).expect("record");
        journal.record(&Cleanup::Path { name: "../x".into() }).expect("record");
        let e = run(dir.path()).expect_err("one is bad");
        assert!(e.to_string().starts_with("clean up: journal:"), "{e}");
        assert!(!dir.path().join("s").exists());
    }
}
