//! Mounts what a request lists, once per mount point, and unmounts it with the last container that uses it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::boot;
use crate::environment::Environment;
use crate::failure::{Result, Trying, internal};
use crate::format;
use crate::messages::agent::Storage;

const CREATE_DIRECTORY: &str = "io.katacontainers.volume.overlayfs.create_directory=";

#[derive(Debug)]
struct Mounted {
    users: usize,
    /// Stays until the sandbox ends.
    shared: bool,
}

/// All storages of the sandbox by mount point.
#[derive(Debug, Default)]
pub(crate) struct Storages(Mutex<BTreeMap<String, Mounted>>);

impl Storages {
    /// Mounts `storage` unless a request for its mount point came before.
    ///
    /// As with the real agent, a shared one whose mount failed counts as mounted from then on.
    pub(crate) async fn add(&self, environment: &Environment, storage: &Storage) -> Result<()> {
        {
            let mut mounted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // A shared one stays known and mounted while no container uses it.
            if let Some(known) = mounted.get_mut(&storage.mount_point) {
                known.users += 1;
                return Ok(());
            }
            mounted.insert(storage.mount_point.clone(), Mounted { users: 1, shared: storage.shared });
        }
        let made = make(environment, storage).await;
        if made.is_err() && !storage.shared {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&storage.mount_point);
        }
        made
    }

    /// Drops one user; the last one unmounts.
    pub(crate) fn release(&self, environment: &Environment, mount_point: &str) {
        let mut mounted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = mounted.get_mut(mount_point) else { return };
        entry.users = entry.users.saturating_sub(1);
        if entry.users == 0 && !entry.shared {
            mounted.remove(mount_point);
            // Its directory may be gone already.
            environment.unmount(mount_point).ok();
        }
    }
}

async fn make(environment: &Environment, s: &Storage) -> Result<()> {
    let what = format!("storage {} {:?} at {:?}", s.driver, s.source, s.mount_point);
    let target = environment.path(&s.mount_point);
    fs::create_dir_all(&target).trying(&what)?;
    match s.driver.as_str() {
        "blk-ccw" | "scsi" => {
            let disk = environment.devices().disk(&s.driver, &s.source).await?;
            let disk = match environment {
                Environment::Guest { crun, .. } => format::prepare(crun.reaper(), s, disk).await?,
                Environment::Host { .. } => disk,
            };
            environment.mount(&disk, &target, &s.fstype, &s.options).trying(&what)?;
            s.fs_group.as_ref().map_or(Ok(()), |group| format::own(&target, group.group_id)).trying(&what)
        }
        "overlayfs" => overlay(environment, s, &target).trying(&what),
        // The real agent drops the mount options of a tmpfs as well.
        "ephemeral" => {
            environment.mount(Path::new(&s.source), &target, &s.fstype, &[]).trying(&what)?;
            own(&target, s, 0o1777).trying(&what)
        }
        "local" => own(&target, s, 0o777).trying(&what),
        other => Err(internal(format!("Failed to find the storage handler of {other:?}"))),
    }
}

fn overlay(environment: &Environment, s: &Storage, target: &Path) -> nix::Result<()> {
    for option in &s.driver_options {
        let dir = option.strip_prefix(CREATE_DIRECTORY).ok_or(Errno::EINVAL)?;
        fs::create_dir_all(environment.path(dir)).map_err(errno)?;
    }
    // On the host nothing is mounted, so look as mount(2) would.
    for dirs in s.options.iter().filter_map(|o| o.split_once('=')) {
        if matches!(dirs.0, "lowerdir" | "upperdir" | "workdir") {
            for dir in dirs.1.split(':') {
                fs::read_dir(environment.path(dir)).map_err(errno)?;
            }
        }
    }
    environment.mount(Path::new("overlay"), target, "overlay", &s.options)
}

/// Mode and group of a directory, `mode=<octal>` and `fsgid=<gid>` among the options.
fn own(target: &Path, s: &Storage, mode: u32) -> std::io::Result<()> {
    let value = |name: &str| s.options.iter().find_map(|o| o.strip_prefix(name)?.strip_prefix('='));
    let mut mode = value("mode").and_then(|m| u32::from_str_radix(m, 8).ok()).unwrap_or(mode);
    if let Some(gid) = value("fsgid").and_then(|gid| gid.parse().ok()) {
        chown(target, None, Some(gid))?;
        mode |= 0o2000;
    }
    fs::set_permissions(target, fs::Permissions::from_mode(mode))
}

fn errno(e: std::io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(nix::libc::EIO))
}

/// mount(2) with options as text.
pub(crate) fn mount_with(source: &Path, target: &Path, fstype: &str, options: &[String]) -> nix::Result<()> {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "rw" | "defaults" => {}
            other => data.push(other),
        }
    }
    let data = data.join(",");
    let mounted = mount(Some(source), target, Some(fstype), flags, Some(data.as_str()));
    if mounted == Err(Errno::ENODEV) && boot::load_modules(fstype) {
        return mount(Some(source), target, Some(fstype), flags, Some(data.as_str()));
    }
    mounted
}

pub(crate) fn unmount(target: &Path) -> nix::Result<()> {
    umount2(target, MntFlags::MNT_DETACH)
}
