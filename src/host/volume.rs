//! Files and folders of the host that are copied into a guest: listed and read with bounds, and never
//! a byte from outside the volume.
//!
//! The source itself is chosen by the node's kubelet or operator, links in its path included. Its content
//! may be chosen by the pod's author: each element is opened beneath the folder without following any
//! link, examined through its descriptor, and only regular files are read.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::libc;
use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};

use crate::config::VolumesConfig;
use crate::error::{Code, Context, Error, Result};
use crate::host::files::open_error;
use crate::limits;
use crate::oci::tree::{Entry, Node};
use crate::oci::volume::{EMPTY_DIR_PLUGIN, SourceKind};

/// With this the text of a sealed secret begins, which the agent replaces when it creates a container.
const SEALED: &[u8] = b"sealed.";

/// What is left of the bounds for one container's volumes together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub bytes: u64,
    pub entries: usize,
    /// Of so much in all.
    whole: VolumesConfig,
}

impl Budget {
    pub(crate) fn new(whole: VolumesConfig) -> Self {
        let entries = usize::try_from(whole.copied_files).unwrap_or(usize::MAX);
        Self { bytes: u64::from(whole.copied_mib) << 20, entries, whole }
    }
}

/// A volume that was listed: folders come before their content.
#[derive(Debug)]
pub(crate) struct Volume {
    root: OwnedFd,
    bounds: VolumesConfig,
    pub entries: Vec<Entry>,
    /// Sockets, fifos and devices in it, which have no content.
    pub skipped: usize,
}

/// What is at `source`.
pub(crate) fn kind(source: &Path) -> Result<SourceKind> {
    let file = open_source(source, libc::O_PATH)?;
    let meta = file.metadata().with_context(|| format!("volume {}", source.display()))?;
    let typ = meta.file_type();
    if typ.is_dir() || typ.is_file() {
        match plugin(source) {
            Some(plugin) if plugin.is_part && plugin.name == EMPTY_DIR_PLUGIN => {
                return Ok(SourceKind::PartOfEmptyDir);
            }
            Some(plugin) if !COPIED_PLUGINS.contains(&plugin.name.as_str()) => {
                return Ok(SourceKind::Persistent);
            }
            _ => {}
        }
    }
    if typ.is_dir() {
        let fs = fstatfs(&file).with_context(|| format!("volume {}", source.display()))?;
        if fs.filesystem_type() == HUGETLBFS_MAGIC {
            return Ok(SourceKind::Special("folder of huge pages"));
        }
        // The kubelet's own folders may be in memory as well.
        let above = std::fs::metadata(source.join(".."));
        let is_mount = above.is_ok_and(|above| above.dev() != meta.dev());
        let in_memory = is_mount && is_memory(fs.filesystem_type());
        return Ok(SourceKind::Directory { in_memory, gid: meta.gid() });
    }
    Ok(match typ {
        _ if typ.is_file() => SourceKind::File,
        _ if typ.is_socket() => SourceKind::Special("socket"),
        _ if typ.is_fifo() => SourceKind::Special("fifo"),
        _ if typ.is_block_device() => SourceKind::Special("block device"),
        _ => SourceKind::Special("character device"),
    })
}

/// The kubelet's volumes that have their meaning in a copy, or are the guest's.
const COPIED_PLUGINS: [&str; 5] = [
    EMPTY_DIR_PLUGIN,
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~downward-api",
];

/// The kubelet's plugin that made a volume, `kubernetes.io~csi`.
struct Plugin {
    name: String,
    /// The source is a part of the volume: by `subPath`, or by its own path.
    is_part: bool,
}

/// By the kubelet's folders of a pod: `volumes/PLUGIN/VOLUME/…`, and `volume-subpaths/VOLUME/CONTAINER/N`, where
/// the plugin is that whose folder has a volume of this name.
fn plugin(source: &Path) -> Option<Plugin> {
    let folder = |path: &Path| Some(path.parent()?.file_name()?.to_str()?.to_owned());
    for path in source.ancestors() {
        let name = path.file_name()?.to_str()?;
        match folder(path)?.as_str() {
            "volumes" if name.contains('~') => {
                let below = source.strip_prefix(path).ok()?;
                return Some(Plugin { name: name.to_owned(), is_part: below.components().count() > 1 });
            }
            "volume-subpaths" => {
                let plugins = path.parent()?.with_file_name("volumes");
                let mut plugins = std::fs::read_dir(plugins).ok()?.flatten();
                let of_volume = plugins.find(|plugin| plugin.path().join(name).exists())?;
                return Some(Plugin { name: of_volume.file_name().into_string().ok()?, is_part: true });
            }
            _ => {}
        }
    }
    None
}

fn is_memory(typ: FsType) -> bool {
    typ == TMPFS_MAGIC
}

fn open_source(source: &Path, flags: i32) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags | libc::O_NONBLOCK | libc::O_CLOEXEC);
    options.open(source).map_err(|e| open_error(format_args!("volume {}", source.display()), &e))
}

fn too_large(bounds: VolumesConfig) -> Error {
    too_much("larger", format!("{} MiB", bounds.copied_mib), "volumes.copied_mib")
}

fn too_much(what: &str, most: String, key: &str) -> Error {
    Error::new(
        Code::ResourceExhausted,
        format!(
            "{what} than can be copied into a guest ({most} for all volumes of a container, {key}): put the data \
             into the image, or let the workload fetch it"
        ),
    )
}

impl Volume {
    /// Lists the file or folder at `source` and subtracts it from the budget.
    pub(crate) fn list(source: &Path, budget: &mut Budget) -> Result<Self> {
        // By a path descriptor first: opening a device for reading may have an effect on it.
        let looked = open_source(source, libc::O_PATH)?;
        let meta = looked.metadata().with_context(|| format!("volume {}", source.display()))?;
        if !meta.is_dir() && !meta.is_file() {
            return Err(Error::invalid(format!("volume {}: no file or folder any more", source.display())));
        }
        let root = open_source(source, 0)?;
        let mut volume = Self { root: root.into(), bounds: budget.whole, entries: Vec::new(), skipped: 0 };
        let seen = volume.look(&volume.root, PathBuf::new());
        let seen = seen.and_then(|entry| volume.add(entry, budget));
        seen.and_then(|()| if meta.is_dir() { volume.walk(budget) } else { Ok(()) })
            .with_context(|| format!("volume {}", source.display()))?;
        Ok(volume)
    }

    /// Breadth first, a folder at a time: only one more descriptor than the volume's is open.
    fn walk(&mut self, budget: &mut Budget) -> Result<()> {
        let mut at = 0;
        while let Some(entry) = self.entries.get(at) {
            at += 1;
            if entry.node != Node::Directory {
                continue;
            }
            let folder = entry.path.clone();
            if folder.components().count() >= limits::volumes::COPIED_DEPTH {
                return Err(Error::invalid(format!(
                    "{}: folders nested deeper than {}",
                    folder.display(),
                    limits::volumes::COPIED_DEPTH
                )));
            }
            for name in self.names(&folder, budget.entries)? {
                let path = folder.join(name);
                match self.entry(path)? {
                    Some(entry) => self.add(entry, budget)?,
                    None => self.skipped += 1,
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, (entry, bytes): (Entry, u64), budget: &mut Budget) -> Result<()> {
        budget.bytes = budget.bytes.checked_sub(bytes).ok_or_else(|| too_large(self.bounds))?;
        let most = self.bounds.copied_files;
        budget.entries = budget
            .entries
            .checked_sub(1)
            .ok_or_else(|| too_much("more files and folders", most.to_string(), "volumes.copied_files"))?;
        self.entries.push(entry);
        Ok(())
    }

    /// Names in a folder, in order; at most one more than `most`, which then is too many.
    fn names(&self, folder: &Path, most: usize) -> Result<Vec<OsString>> {
        let context = || format!("read folder {}", folder.display());
        let opened = self.open_beneath(folder, OFlag::O_RDONLY | OFlag::O_DIRECTORY).with_context(context)?;
        let mut names = Vec::new();
        for name in Dir::from_fd(opened).with_context(context)?.iter() {
            let name = name.with_context(context)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
            if names.len() > most {
                break;
            }
        }
        names.sort();
        Ok(names)
    }

    /// What is at `path` now; None: it is gone, or has no content.
    fn entry(&self, path: PathBuf) -> Result<Option<(Entry, u64)>> {
        let opened = match self.open_beneath(&path, OFlag::O_PATH) {
            Ok(opened) => opened,
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::EXDEV) => {
                return Err(Error::invalid(format!(
                    "{}: another file system is mounted there, which is not copied: name it as a volume of its own",
                    path.display()
                )));
            }
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        };
        let found = self.look(&opened, path)?;
        Ok((found.0.mode & libc::S_IFMT != 0).then_some(found))
    }

    /// The entry behind a descriptor and the bytes it costs; a mode without type: no content.
    fn look(&self, opened: &OwnedFd, path: PathBuf) -> Result<(Entry, u64)> {
        let context = || path.display().to_string();
        let file = File::from(opened.try_clone().with_context(context)?);
        let meta = file.metadata().with_context(context)?;
        let typ = meta.file_type();
        let (node, bytes, bits) = if typ.is_dir() {
            (Node::Directory, 0, libc::S_IFDIR)
        } else if typ.is_symlink() {
            let text = readlinkat(opened.as_fd(), "").with_context(context)?.into_vec();
            let bytes = text.len() as u64;
            (Node::Link(text), bytes, libc::S_IFLNK)
        } else {
            (Node::File, meta.len(), if typ.is_file() { libc::S_IFREG } else { 0 })
        };
        let mode = meta.mode() & 0o7777 | bits;
        Ok((Entry { path, node, mode, uid: meta.uid(), gid: meta.gid() }, bytes))
    }

    /// Opens a listed file and returns its length now, of which at most `left` bytes may be copied: it may
    /// have grown since it was listed. None: it is not a file any more.
    pub(crate) fn open(&self, path: &Path, left: u64) -> Result<Option<(File, u64)>> {
        let opened = if path.as_os_str().is_empty() {
            // The volume is a file: opened again, for a separate offset.
            let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.root));
            File::open(&again).context("volume")?
        } else {
            match self.open_beneath(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
                Ok(opened) => File::from(opened),
                Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO | Errno::ENOTDIR) => return Ok(None),
                Err(e) => return Err(e).with_context(|| path.display().to_string()),
            }
        };
        let meta = opened.metadata().with_context(|| path.display().to_string())?;
        if meta.is_file() && meta.len() > left {
            return Err(too_large(self.bounds).context(path.display()));
        }
        Ok(meta.is_file().then_some((opened, meta.len())))
    }

    /// It is a file alone.
    pub(crate) fn is_file(&self) -> bool {
        self.entries.first().is_some_and(|entry| entry.node == Node::File)
    }

    /// The files in this folder whose text begins as that of a sealed secret.
    pub(crate) fn sealed(&self, folder: &Path) -> Result<BTreeSet<PathBuf>> {
        let files = self.entries.iter().filter(|e| e.node == Node::File && e.path.parent() == Some(folder));
        let mut sealed = BTreeSet::new();
        for entry in files {
            let Some((mut file, _)) = self.open(&entry.path, u64::MAX)? else { continue };
            let begin = read_piece(&mut file, SEALED.len() as u64)
                .with_context(|| entry.path.display().to_string())?;
            if begin == SEALED {
                sealed.extend(entry.path.file_name().map(PathBuf::from));
            }
        }
        Ok(sealed)
    }

    fn open_beneath(&self, path: &Path, flags: OFlag) -> std::result::Result<OwnedFd, Errno> {
        // A link as the last element is itself opened with O_PATH, and refused otherwise.
        let safe = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV
            | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        openat2(&self.root, path, OpenHow::new().flags(flags | safe).resolve(resolve))
    }
}

/// The next piece of a file: as long as asked, or shorter at its end.
pub(crate) fn read_piece(file: &mut File, length: u64) -> Result<Vec<u8>> {
    let length = length.min(limits::volumes::COPY_PIECE as u64);
    let mut piece = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    file.take(length).read_to_end(&mut piece).context("read")?;
    Ok(piece)
}

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
