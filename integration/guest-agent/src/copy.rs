//! CopyFile: files of the host's volumes, written piece by piece below one folder.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use crate::environment::Environment;
use crate::failure::{Result, Trying, internal};
use crate::messages::agent::CopyFileRequest;

const SHARED: &str = "/run/kata-containers/shared/containers/";

const KIND: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const REGULAR: u32 = 0o100_000;

pub(crate) fn copy_file(environment: &Environment, req: &CopyFileRequest) -> Result<()> {
    let path = target(environment, &req.path)?;
    let parent = path.parent().ok_or_else(|| internal("CopyFile without a name"))?;
    let owner = (u32::try_from(req.uid).ok(), u32::try_from(req.gid).ok());
    let mode = |file: &Path, mode: u32| fs::set_permissions(file, Permissions::from_mode(mode & 0o7777));
    if !matches!(fs::exists(parent), Ok(true)) {
        fs::create_dir_all(parent).trying(parent.display())?;
        mode(parent, req.dir_mode & 0o777).trying(parent.display())?;
        chown(parent, owner.0, owner.1).trying(parent.display())?;
    }
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

fn target(environment: &Environment, path: &str) -> Result<PathBuf> {
    let refused = || internal(format!("removing {SHARED:?} prefix from {path}"));
    let inside = Path::new(path.strip_prefix(SHARED).ok_or_else(refused)?);
    if inside.as_os_str().is_empty() || !inside.components().all(|c| matches!(c, Component::Normal(_))) {
        return Err(internal(format!("CopyFile to {path}: not a plain path below {SHARED}")));
    }
    Ok(environment.path(SHARED).join(inside))
}

/// Writes into a file beside the target; returns its path once it is complete.
fn write_piece(path: &Path, req: &CopyFileRequest) -> Result<Option<PathBuf>> {
    let size = |n: i64, what: &str| u64::try_from(n).trying(format!("CopyFile: {what} {n}"));
    let (offset, whole) = (size(req.offset, "offset")?, size(req.file_size, "file_size")?);
    let end = offset + u64::try_from(req.data.len()).unwrap_or(u64::MAX);
    if end > whole {
        return Err(internal(format!("CopyFile: data up to {end} of a file of {whole} bytes")));
    }
    let part = path.with_extension("tmp");
    if offset == 0 {
        remove(path).trying(&req.path)?;
        File::create(&part).trying(&req.path)?;
    }
    let mut file = OpenOptions::new().write(true).open(&part).trying(&req.path)?;
    let written = file.metadata().trying(&req.path)?.len();
    if written != offset {
        return Err(internal(format!("CopyFile: offset {offset} after {written} bytes")));
    }
    file.seek(SeekFrom::Start(offset)).trying(&req.path)?;
    file.write_all(&req.data).trying(&req.path)?;
    Ok((end == whole).then_some(part))
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
