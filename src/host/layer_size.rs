//! How large a packed image of some layers can become, told by a walk through them before mkfs runs.
//!
//! What is counted is an upper bound: files that a layer above replaces are packed once, and counted twice. mkfs
//! may write no more than the bound.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, DirEntry};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::error::{Code, Context, Error, Result};
use crate::host::begun::blocking;
use crate::limits;

/// A file's data begins on a block of its own (EROFS: "data blocks"), and a tail may take another.
const BLOCK: u64 = 4096;

/// An inode of 64 bytes with its entry in a directory, of 12 bytes and its name, and the room that aligning them
/// costs.
const ENTRY: u64 = 512;

/// Superblock, tables and extended attributes that files share.
const IMAGE: u64 = 1 << 20;

/// What some layers can take, packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LayerSize {
    /// Bytes that the image can have at most.
    pub(super) bytes: u64,
    /// True when a file has holes, which mkfs fills.
    pub(super) holes: bool,
    /// The largest file, and its bytes.
    pub(super) largest: Option<(PathBuf, u64)>,
}

/// Dropped, it ends the walk that it belongs to.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl LayerSize {
    /// Walks through `layers` on a separate thread.
    pub(super) async fn of(layers: Vec<PathBuf>) -> Result<Self> {
        let stopped = Arc::new(AtomicBool::new(false));
        let _stop = Stop(Arc::clone(&stopped));
        blocking("measure image layers", move || Self::measure(&layers, &stopped)).await
    }

    fn measure(layers: &[PathBuf], stopped: &AtomicBool) -> Result<Self> {
        let until = Instant::now() + limits::host::PACKING;
        let (mut size, mut entries) = (Self { bytes: IMAGE, ..Self::default() }, 0);
        for layer in layers {
            let mut linked = HashSet::new();
            let mut folders = BTreeSet::from([layer.clone()]);
            while let Some(folder) = folders.pop_last() {
                let context = || format!("measure image layer {}", folder.display());
                for entry in fs::read_dir(&folder).with_context(context)? {
                    entries += 1;
                    if stopped.load(Ordering::Relaxed) {
                        return Err(Error::new(Code::Cancelled, format!("{}: cancelled", context())));
                    }
                    if entries > limits::host::LAYER_FILES || Instant::now() > until {
                        return Err(Error::new(
                            Code::ResourceExhausted,
                            format!(
                                "{}: more than {} files, or not done within {} min",
                                context(),
                                limits::host::LAYER_FILES,
                                limits::host::PACKING.as_secs() / 60
                            ),
                        ));
                    }
                    let entry = entry.with_context(context)?;
                    if size.count(&entry, &mut linked).with_context(context)? {
                        folders.insert(entry.path());
                    }
                }
            }
        }
        // Attributes, and what else the figures above have not.
        size.bytes = size.bytes.saturating_add(size.bytes / 8);
        Ok(size)
    }

    /// True: it is a folder.
    fn count(&mut self, entry: &DirEntry, linked: &mut HashSet<(u64, u64)>) -> std::io::Result<bool> {
        let meta = entry.metadata()?; // of a link itself
        self.bytes = self.bytes.saturating_add(ENTRY);
        let first = meta.nlink() == 1 || meta.is_dir() || linked.insert((meta.dev(), meta.ino()));
        if (meta.is_file() || meta.is_symlink()) && first {
            let blocks = meta.len().div_ceil(BLOCK).saturating_mul(BLOCK);
            self.bytes = self.bytes.saturating_add(blocks);
        }
        if meta.is_file() {
            self.holes |= meta.blocks().saturating_mul(512) < meta.len();
            if self.largest.as_ref().is_none_or(|(_, most)| *most < meta.len()) {
                self.largest = Some((entry.path(), meta.len()));
            }
        }
        Ok(meta.is_dir())
    }

    /// What it takes, in words, and whose fault that is.
    pub(super) fn text(&self) -> String {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        match &self.largest {
            Some((file, bytes)) if *bytes > self.bytes / 2 => format!(
                "{} MiB, most of it one file, {} ({} MiB, holes counted)",
                mib(self.bytes),
                file.display(),
                mib(*bytes)
            ),
            _ => format!("{} MiB", mib(self.bytes)),
        }
    }
}

/// The bytes of a file on the disk.
pub(super) fn on_disk(meta: &fs::Metadata) -> u64 {
    meta.blocks().saturating_mul(512)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::path::Path;

    fn of_tree(root: &Path) -> LayerSize {
        LayerSize::measure(&[root.to_path_buf()], &AtomicBool::new(false)).expect("measure")
    }

    #[test]
    fn an_image_is_never_larger_than_was_measured() {
        let dir = tempfile::tempdir().expect("dir");
        fs::create_dir(dir.path().join("many")).expect("folder");
        for n in 0..2000 {
            fs::write(dir.path().join(format!("many/{}-{n}", "n".repeat(200))), "x".repeat(n)).expect("file");
        }
        for size in [1, 4095, 4096, 4097, 1 << 20] {
            fs::write(dir.path().join(size.to_string()), vec![7; size]).expect("file");
        }
        std::os::unix::fs::symlink("l".repeat(4000), dir.path().join("link")).expect("link");
        let image = dir.path().with_extension("erofs");
        let (mkfs, args) = ("mkfs.erofs", ["--quiet", "-Enosbcrc"]);
        #[allow(clippy::disallowed_methods)] // a test, that needs nothing of Launch
        let made = std::process::Command::new(mkfs).args(args).args([image.as_path(), dir.path()]).output();
        let made = match made {
            // Where the s390x programs are tested there is none.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
            made => made.expect("mkfs.erofs"),
        };
        assert!(made.status.success(), "{made:?}");
        let packed = fs::metadata(&image).expect("image").len();
        fs::remove_file(&image).expect("remove");
        let size = of_tree(dir.path());
        assert!(packed < size.bytes && size.bytes < 4 * packed, "{packed}, measured {size:?}");
        assert!(!size.holes);
    }

    #[test]
    fn links_are_counted_once_and_holes_as_what_they_become() {
        let dir = tempfile::tempdir().expect("dir");
        let hole = dir.path().join("hole");
        File::create(&hole).and_then(|file| file.set_len(1 << 30)).expect("hole");
        for n in 0..10 {
            fs::hard_link(&hole, dir.path().join(n.to_string())).expect("link");
        }
        let size = of_tree(dir.path());
        assert!(size.holes && size.bytes > 1 << 30 && size.bytes < 5 << 28, "{size:?}");
        assert!(size.text().contains(" MiB, most of it one file, "), "{}", size.text());
    }

    #[test]
    fn a_walk_whose_waiter_gave_up_ends() {
        let dir = tempfile::tempdir().expect("dir");
        fs::write(dir.path().join("file"), "").expect("file");
        let ended = LayerSize::measure(&[dir.path().to_path_buf()], &AtomicBool::new(true));
        assert_eq!(ended.expect_err("stopped").code(), Code::Cancelled);
    }
}
