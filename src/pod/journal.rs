//! The pod's journal: what has to be removed with it, written before it is made.
//!
//! Append-only, one JSON line per resource. The same list serves a failed Create, Delete, and the
//! `delete` command after the shim was killed (`pod::cleanup`). A torn last line names a resource
//! that was never made, because the append had not returned, and is skipped.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::libc;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::limits;
use crate::mutex;
use crate::pod::dir::JOURNAL;

/// One resource that must not outlive the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "owe", rename_all = "snake_case")]
pub(crate) enum Cleanup {
    /// The pod's leaf cgroup with every process in it (QEMU and helpers), or an ancestor of it
    /// that was made on the way; relative to the hierarchies' roots.
    Cgroup { path: PathBuf },
    /// A tap device in a network namespace (it goes with QEMU; this is for one that did not).
    Tap { netns: PathBuf, name: String },
    /// Our mirroring between a link of a network namespace and a tap of ours.
    Mirror { netns: PathBuf, link: String, tap: String },
    /// The disk of an emptyDir, in the kubelet's folder for it.
    EmptyDir { disk: PathBuf },
    /// A file or socket directly below the pod's own directory.
    Path { name: String },
}

/// The journal of a living pod; one writer.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: Mutex<File>,
}

impl Journal {
    /// Opens (or makes, mode 0600) the journal of the pod in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(JOURNAL);
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&path)
            .with_context(|| format!("open journal {}", path.display()))?;
        Ok(Self { path, file: Mutex::new(file) })
    }

    /// Writes the entry down; only after this returns may the resource be made.
    ///
    /// An append that fails half-way is cut off again, so that no later line is appended to it.
    pub(crate) fn record(&self, entry: &Cleanup) -> Result<()> {
        let context = || format!("write journal {}", self.path.display());
        let mut line = serde_json::to_vec(entry).with_context(context)?;
        line.push(b'\n');
        let mut file = mutex::lock(&self.file);
        let before = file.seek(SeekFrom::End(0)).with_context(context)?;
        let written = file.write_all(&line);
        if written.is_err() {
            file.set_len(before).with_context(context)?;
        }
        written.with_context(context)
    }

    /// Forgets every entry: called after all of it was removed.
    pub(crate) fn clear(&self) -> Result<()> {
        let file = mutex::lock(&self.file);
        file.set_len(0).with_context(|| format!("clear journal {}", self.path.display()))
    }
}

/// Reads the entries of the pod in `dir`, oldest first; a line that cannot be read is an error among them. No
/// journal: none.
pub(crate) fn read(dir: &Path) -> Result<Vec<Result<Cleanup>>> {
    let path = dir.join(JOURNAL);
    let context = || format!("read journal {}", path.display());
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(context),
    };
    let mut text = Vec::new();
    let size = file.take(limits::host::JOURNAL_BYTES + 1).read_to_end(&mut text).with_context(context)?;
    let mut entries = parse(&text);
    if size as u64 > limits::host::JOURNAL_BYTES {
        let most = limits::host::JOURNAL_BYTES;
        entries.push(Err(Error::internal(format!("it is larger than {most} bytes: the rest is not read"))));
    }
    Ok(entries
        .into_iter()
        .map(|entry| entry.with_context(|| format!("journal {}", path.display())))
        .collect())
}

pub(crate) fn parse(text: &[u8]) -> Vec<Result<Cleanup>> {
    // Without its newline the last line was not completely written.
    let whole = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let entry = |(at, line)| {
        serde_json::from_slice(line).map_err(|e| Error::internal(format!("line {}: {e}", at + 1)))
    };
    whole.enumerate().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> Cleanup {
        Cleanup::Path { name: name.to_owned() }
    }

    #[test]
    fn entries_can_be_read_back_in_order() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = Journal::open(dir.path()).expect("open");
        let entries = [
            path("a"),
            Cleanup::Tap { netns: "/run/netns/x".into(), name: "tap0".into() },
            Cleanup::Cgroup { path: "/k/p".into() },
        ];
        for entry in &entries {
            journal.record(entry).expect("record");
        }
        assert_eq!(read(dir.path()), Ok(entries.map(Ok).to_vec()));
        journal.clear().expect("clear");
        assert_eq!(read(dir.path()), Ok(vec![]));
    }

    #[test]
    fn a_torn_last_line_is_skipped_and_a_bad_one_named() {
        assert_eq!(parse(b"{\"owe\":\"path\",\"name\":\"a\"}\n{\"owe\":\"pa"), [Ok(path("a"))]);
        assert_eq!(parse(b""), []);
        let all = parse(b"{\"owe\":\"path\",\"name\":\"a\"}\nnonsense\n{\"owe\":\"path\",\"name\":\"b\"}\n");
        assert_eq!((&all[0], &all[2]), (&Ok(path("a")), &Ok(path("b"))));
        assert!(all[1].as_ref().is_err_and(|e| e.to_string().starts_with("line 2: ")), "{all:?}");
    }

    #[test]
    fn what_is_beyond_the_journals_bound_is_told() {
        let dir = tempfile::tempdir().expect("dir");
        let line = "{\"owe\":\"path\",\"name\":\"a\"}\n";
        let lines = usize::try_from(limits::host::JOURNAL_BYTES).expect("small") / line.len() + 1;
        std::fs::write(dir.path().join(JOURNAL), line.repeat(lines)).expect("write");
        let last = read(dir.path()).expect("read").pop().expect("entries").expect_err("too large");
        assert!(last.to_string().ends_with("the rest is not read"), "{last}");
    }

    #[test]
    fn no_journal_means_no_entries() {
        assert_eq!(read(Path::new("/nonexistent/pod")), Ok(vec![]));
    }

    #[test]
    fn the_format_of_each_entry_is_kept() {
        let all = [
            Cleanup::Cgroup { path: "/a".into() },
            Cleanup::Tap { netns: "/n".into(), name: "t".into() },
            Cleanup::Mirror { netns: "/n".into(), link: "eth0".into(), tap: "t".into() },
            path("x"),
            Cleanup::EmptyDir { disk: "/v/kubernetes.io~empty-dir/a/disk.img".into() },
        ];
        let text: Vec<_> = all.iter().map(|u| serde_json::to_string(u).expect("json")).collect();
        assert_eq!(text.join("\n"), include_str!("testdata/journal-0.1").trim_end());
    }
}
