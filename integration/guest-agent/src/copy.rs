//! CopyFile: files of the host's volumes, written piece by piece below one folder, as the real agent does it, with
//! what policies of real guests refuse.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use nix::libc;

use crate::environment::Environment;
use crate::failure::{Result, Trying, denied, internal};
use crate::messages::agent::CopyFileRequest;

const SHARED: &str = "/run/kata-containers/shared/containers/";

const KIND: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const REGULAR: u32 = 0o100_000;

pub(crate) fn copy_file(environment: &Environment, req: &CopyFileRequest) -> Result<()> {
    let path = target(environment, req)?;
    let parent = path.parent().ok_or_else(|| internal("CopyFile without a name"))?;
    let owner = (u32::try_from(req.uid).ok(), u32::try_from(req.gid).ok());
    let mode = |file: &Path, mode: u32| fs::set_permissions(file, Permissions::from_mode(mode & 0o7777));
    if !matches!(fs::exists(parent), Ok(true)) {
        fs::create_dir_all(parent).trying(parent.display())?;
        mode(parent, req.dir_mode & 0o777).trying(parent.display())?;
    }
    // Whatever is made in a folder, the folder gets its owner.
    chown(parent, owner.0, owner.1).trying(parent.display())?;
    match req.file_mode & KIND {
        DIRECTORY => {
            fs::create_dir_all(&path).trying(&req.path)?;
            mode(&path, req.file_mode).trying(&req.path)?;
            chown(&path, owner.0, owner.1).trying(&req.path)
        }
        LINK => {
            remove(&path).trying(&req.path)?;
            let to = std::str::from_utf8(&req.data).trying("a symlink's target")?;
            symlink(to, &path).trying(&req.path)
        }
        REGULAR | 0 => {
            let Some(whole) = write_piece(&path, req)? else { return Ok(()) };
            mode(&whole, req.file_mode).trying(&req.path)?;
            chown(&whole, owner.0, owner.1).trying(&req.path)?;
            fs::rename(&whole, &path).trying(&req.path)
        }
        other => Err(internal(format!("CopyFile of a file of kind {other:o}"))),
    }
}

/// The path on this machine; the name has to be one that policies take: the container's id, 16 letters or digits and a
/// name, and links only below such a folder, to something in it.
fn target(environment: &Environment, req: &CopyFileRequest) -> Result<PathBuf> {
    let path = &req.path;
    let refused = || internal(format!("removing {SHARED:?} prefix from {path}"));
    let inside = Path::new(path.strip_prefix(SHARED).ok_or_else(refused)?);
    if inside.as_os_str().is_empty() || !inside.components().all(|c| matches!(c, Component::Normal(_))) {
        return Err(internal(format!("CopyFile to {path}: not a plain path below {SHARED}")));
    }
    let blocked = |why: &str| Err(denied(format!("CopyFileRequest is blocked by policy: {path}: {why}")));
    if !inside.to_str().is_some_and(is_name) {
        return blocked("no container's id and 16 letters or digits before the name");
    }
    if req.file_mode & KIND == LINK {
        let to = Path::new(std::str::from_utf8(&req.data).trying("a symlink's target")?);
        if inside.components().count() < 2 {
            return blocked("a link, and not in a folder");
        }
        if !to.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
            return blocked("a link to another folder");
        }
    }
    Ok(environment.path(SHARED).join(inside))
}

/// `<id>-<16 letters or digits>-<name>`; ids of tests are shorter than those of pods.
fn is_name(inside: &str) -> bool {
    let parts: Vec<&str> = inside.split('/').next().unwrap_or_default().split('-').collect();
    let is_number =
        |part: &&str| part.len() == 16 && part.chars().all(|c| c.is_ascii_digit() || c.is_ascii_lowercase());
    parts.iter().position(is_number).is_some_and(|at| at > 0 && at + 1 < parts.len())
}

/// Writes into a file beside the target, which is shared by all whose names differ in their extension only; returns
/// its path once it has the announced size. A longer rest of another one stays, and nothing says so.
fn write_piece(path: &Path, req: &CopyFileRequest) -> Result<Option<PathBuf>> {
    let size = |n: i64, what: &str| u64::try_from(n).trying(format!("CopyFile: {what} {n}"));
    let (offset, whole) = (size(req.offset, "offset")?, size(req.file_size, "file_size")?);
    let part = path.with_extension("tmp");
    if offset == 0 {
        remove(path).trying(&req.path)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW).mode(0o600);
    let file = options.open(&part).trying(&req.path)?;
    file.write_all_at(&req.data, offset).trying(&req.path)?;
    let written = file.metadata().trying(&req.path)?.len();
    Ok((written == whole).then_some(part))
}

/// Removes whatever is there.
fn remove(path: &Path) -> std::io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
