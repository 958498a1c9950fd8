//! Unpacks a layer into a folder of its own, as an overlay's layer: what it removes becomes a whiteout.
//!
//! A layer is hostile: nothing of it is made outside its folder, whatever its links say, and it is bounded.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fchmod, fsetxattr, linkat, makedev, mkdirat, mknodat, openat, openat2, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;
use ruzstd::decoding::StreamingDecoder;
use tar::{Archive, Entry, EntryType};

use super::registry::Descriptor;
use super::{Hashed, Result};

/// What one layer may hold, unpacked.
const BYTES: u64 = 8 << 30;
const ENTRIES: usize = 500_000;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Attributes that a layer may set: those of overlays, say, are not for it.
const ATTRIBUTES: [&str; 2] = ["user.", "security.capability"];

/// Unpacks the bytes of a layer into the new folder `into` and compares both digests.
pub(crate) fn unpack(bytes: impl Read, layer: &Descriptor, diff_id: &str, into: &Path) -> Result<()> {
    let mut packed = Hashed::new(bytes);
    let unpacked = {
        let plain = decoder(&mut packed, &layer.media_type)?;
        let mut plain = Hashed::new(plain.take(BYTES));
        fs::create_dir(into).and_then(|()| extract(&mut plain, into)).map_err(stream_error)?;
        plain.finish().map_err(stream_error)?
    };
    let (digest, size) = packed.finish().map_err(stream_error)?;
    if (&digest, size) != (&layer.digest, layer.size) {
        return Err(format!("Invalid digest, expected {}, got {digest} of {size} bytes", layer.digest));
    }
    if unpacked.0 != diff_id {
        return Err(format!("unequal uncompressed digest {} config diff_id {diff_id}", unpacked.0));
    }
    Ok(())
}

fn stream_error(e: io::Error) -> String {
    format!("Failed to decode layer data stream: Failed to unpack layer: {e}")
}

fn decoder<'a>(packed: &'a mut impl Read, media_type: &str) -> Result<Box<dyn Read + 'a>> {
    let plain = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"];
    let suffix = plain.iter().find_map(|kind| media_type.strip_prefix(kind));
    match suffix {
        Some("") => Ok(Box::new(packed)),
        Some("+gzip" | ".gzip") => Ok(Box::new(MultiGzDecoder::new(packed))),
        Some("+zstd" | ".zstd") => {
            let decoder = StreamingDecoder::new(packed);
            Ok(Box::new(decoder.map_err(|e| stream_error(io::Error::other(e)))?))
        }
        _ => Err(format!("Failed to decode layer: unsupported media type {media_type}")),
    }
}

fn extract(plain: impl Read, into: &Path) -> io::Result<()> {
    let tree = Tree(openat(CWD, into, FOLDER, Mode::empty())?);
    let mut archive = Archive::new(plain);
    for (number, entry) in archive.entries()?.enumerate() {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if number >= ENTRIES {
            return Err(io::Error::other(format!("{name}: the layer has more than {ENTRIES} entries")));
        }
        tree.add(&mut entry).map_err(|e| io::Error::new(e.kind(), format!("{name}: {e}")))?;
    }
    Ok(())
}

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// The folder of a layer.
struct Tree(OwnedFd);

impl Tree {
    fn add(&self, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = relative(&entry.path_bytes())?;
        let Some(name) = path.file_name() else {
            return attributes(entry, &self.0);
        };
        let parent = self.folder(path.parent().unwrap_or(Path::new("")))?;
        if name.as_bytes() == OPAQUE {
            return Ok(fsetxattr(parent, "trusted.overlay.opaque", b"y", XattrFlags::empty())?);
        }
        if let Some(removed) = name.as_bytes().strip_prefix(WHITEOUT) {
            return whiteout(&parent, removed);
        }
        if kind == EntryType::Directory {
            match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
            let folder = openat(&parent, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
            return attributes(entry, &folder);
        }
        match unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let new = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = File::from(openat(&parent, name, new, Mode::from_raw_mode(0o600))?);
                io::copy(entry, &mut file)?;
                attributes(entry, &file)?;
            }
            EntryType::Link => {
                // It has what its target has.
                let target = relative(&entry.link_name_bytes().unwrap_or_default())?;
                let name_of_target =
                    target.file_name().ok_or_else(|| io::Error::other("a hard link to a folder"))?;
                let folder = self.open(target.parent().unwrap_or(Path::new("")))?;
                return Ok(linkat(folder, name_of_target, &parent, name, AtFlags::empty())?);
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                symlinkat(target.as_ref(), &parent, name)?;
                own(entry, &parent, name)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let header = entry.header();
                let number = |n: io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0);
                let device = makedev(number(header.device_major()), number(header.device_minor()));
                let typ = match kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                mknodat(&parent, name, typ, Mode::from_raw_mode(0o600), device)?;
                own(entry, &parent, name)?;
                chmodat(&parent, name, mode(entry)?, AtFlags::empty())?;
            }
            other => return Err(io::Error::other(format!("entries of type {other:?} are not supported"))),
        }
        let at = Timespec { tv_sec: i64::try_from(entry.header().mtime()?).unwrap_or(0), tv_nsec: 0 };
        let times = Timestamps { last_access: at, last_modification: at };
        Ok(utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Opens a folder; links in its path, whatever they say, lead to places in the tree.
    fn open(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        openat2(&self.0, path, FOLDER, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    /// The same, made if it is missing.
    fn folder(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.open(path) {
            Err(Errno::NOENT) => {}
            other => return Ok(other?),
        }
        let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
            return Err(Errno::NOENT.into());
        };
        mkdirat(self.folder(parent)?, name, Mode::from_raw_mode(0o755))?;
        Ok(self.open(path)?)
    }
}

/// A name of the archive without what leads nowhere; `..` is refused.
fn relative(bytes: &[u8]) -> io::Result<PathBuf> {
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(bytes)).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::RootDir => {}
            _ => return Err(io::Error::other("`..` in a path")),
        }
    }
    Ok(path)
}

/// An overlay's mark of a name that the layers below may have.
fn whiteout(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    // Names with the prefix twice are notes of other file systems.
    if name.starts_with(WHITEOUT) {
        return Ok(());
    }
    if name.is_empty() || matches!(name, b"." | b"..") {
        return Err(io::Error::other("a whiteout of nothing"));
    }
    Ok(mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))?)
}

fn mode(entry: &Entry<'_, impl Read>) -> io::Result<Mode> {
    Ok(Mode::from_raw_mode(entry.header().mode()? & 0o7777))
}

fn owner(entry: &Entry<'_, impl Read>) -> io::Result<(Uid, Gid)> {
    let number = |n: u64| u32::try_from(n).ok().filter(|n| *n != u32::MAX).ok_or(Errno::INVAL);
    Ok((Uid::from_raw(number(entry.header().uid()?)?), Gid::from_raw(number(entry.header().gid()?)?)))
}

fn own(entry: &Entry<'_, impl Read>, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let (uid, gid) = owner(entry)?;
    Ok(chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Owner, mode and extended attributes of a file or folder.
fn attributes(entry: &mut Entry<'_, impl Read>, of: &impl AsFd) -> io::Result<()> {
    let (uid, gid) = owner(entry)?;
    rustix::fs::fchown(of, Some(uid), Some(gid))?;
    fchmod(of, mode(entry)?)?;
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix("SCHILY.xattr.")) else {
            continue;
        };
        if ATTRIBUTES.iter().any(|known| name.starts_with(known)) {
            fsetxattr(of, name, extension.value_bytes(), XattrFlags::empty())?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "layer_tests.rs"]
pub(super) mod tests;
