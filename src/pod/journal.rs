//! The pod's journal: what is owed, written before it is made.
//!
//! Append-only, one JSON line per resource. The same list serves a failed Create, Delete, and the
//! `delete` command after the shim was killed (`cleanup::run`). A torn last line names a resource
//! that was never made, because the append had not returned, and is passed over.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::libc;

use crate::error::{Context, Error, Result};
use crate::limits;
use crate::pod::cleanup::Cleanup;

/// The file's name below the pod's directory.
pub(crate) const FILE: &str = "journal";

/// The journal of a living pod; one writer.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: Mutex<File>,
}

impl Journal {
    /// Opens (or makes, mode 0600) the journal of the pod in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
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
    /// An append that fails half-way is cut off again, so that no later line is glued to it.
    pub(crate) fn record(&self, entry: &Cleanup) -> Result<()> {
        let context = || format!("write journal {}", self.path.display());
        let mut line = serde_json::to_vec(entry).with_context(context)?;
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let before = file.seek(SeekFrom::End(0)).with_context(context)?;
        let written = file.write_all(&line);
        if written.is_err() {
            file.set_len(before).with_context(context)?;
        }
        written.with_context(context)
    }

    /// Forgets everything owed: called after all of it was paid back.
    pub(crate) fn clear(&self) -> Result<()> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.set_len(0).with_context(|| format!("clear journal {}", self.path.display()))
    }
}

/// Reads what the pod in `dir` owes, oldest first. No journal: nothing is owed.
pub(crate) fn read(dir: &Path) -> Result<Vec<Cleanup>> {
    let path = dir.join(FILE);
    let context = || format!("read journal {}", path.display());
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(context),
    };
    let mut text = String::new();
    file.take(limits::JOURNAL_BYTES).read_to_string(&mut text).with_context(context)?;
    parse(&text).with_context(context)
}

fn parse(text: &str) -> Result<Vec<Cleanup>> {
    // Without its newline the last line was not completely written.
    let whole = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
    whole
        .lines()
        .enumerate()
        .map(|(at, line)| {
            serde_json::from_str(line).map_err(|e| Error::internal(format!("line {}: {e}", at + 1)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> Cleanup {
        Cleanup::Path { name: name.to_owned() }
    }

    #[test]
    fn what_is_owed_can_be_read_back_in_order() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = Journal::open(dir.path()).expect("open");
        let owed = [
            path("a"),
            Cleanup::Tap { netns: "/run/netns/x".into(), name: "tap0".into() },
            Cleanup::Cgroup { path: "/k/p".into() },
        ];
        for undo in &owed {
            journal.record(undo).expect("owe");
        }
        assert_eq!(read(dir.path()), Ok(owed.to_vec()));
        journal.clear().expect("clear");
        assert_eq!(read(dir.path()), Ok(vec![]));
    }

    #[test]
    fn a_torn_last_line_is_passed_over_and_a_bad_one_named() {
        assert_eq!(parse("{\"owe\":\"path\",\"name\":\"a\"}\n{\"owe\":\"pa"), Ok(vec![path("a")]));
        assert_eq!(parse(""), Ok(vec![]));
        let e = parse("{\"owe\":\"path\",\"name\":\"a\"}\nnonsense\n").expect_err("bad");
        assert!(e.to_string().starts_with("line 2: "), "{e}");
    }

    #[test]
    fn no_journal_means_nothing_is_owed() {
        assert_eq!(read(Path::new("/nonexistent/pod")), Ok(vec![]));
    }

    #[test]
    fn the_format_of_each_entry_is_kept() {
        let all = [
            Cleanup::Cgroup { path: "/a".into() },
            Cleanup::Tap { netns: "/n".into(), name: "t".into() },
            Cleanup::Mirror { netns: "/n".into(), link: "eth0".into(), tap: "t".into() },
            path("x"),
        ];
        let text: Vec<_> = all.iter().map(|u| serde_json::to_string(u).expect("json")).collect();
        assert_eq!(text.join("\n"), include_str!("testdata/journal-0.1").trim_end());
    }
}
