//! Decides what happens to each mount of a spec in a guest that shares no file system with its host: it
//! is kept as it is, backed by the guest's memory or by a disk, copied into the guest, or refused.
//!
//! Names and formats are the agent's contract; policies in real guests refuse anything else.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;

use crate::error::{Context, Error, Result};
use crate::ids::ContainerId;
use crate::limits;
use crate::oci::spec::{Bundle, is_bind};
use crate::oci::storage::{self, SHARED_DIR, SHM_PATH, Storage};
use crate::oci::termination;

/// What a bind mount's source is on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceKind {
    File,
    Directory {
        /// It is a tmpfs, which the kubelet mounts for an emptyDir with medium Memory.
        in_memory: bool,
        gid: u32,
    },
    /// Something without content to copy, by its name for messages.
    Special(&'static str),
    /// A file or folder of a volume that outlives its pod: a persistent volume's file system, or a part of it.
    Persistent,
    /// A part of an emptyDir (`subPath`), whose content is in the guest and not here.
    PartOfEmptyDir,
}

/// A file or directory of the host to copy before the container is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeCopy {
    pub source: PathBuf,
    /// The path in the guest.
    pub target: String,
    /// The copy follows what the host has.
    pub follows: bool,
}

/// A container's mounts as the guest makes them, and what must exist before.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Volumes {
    pub mounts: Vec<Mount>,
    pub storages: Vec<Storage>,
    pub copies: Vec<VolumeCopy>,
    /// EmptyDirs whose place depends on the pod's configuration: [`Volumes::place_empty_dirs`].
    pub empty_dirs: Vec<EmptyDir>,
}

/// An emptyDir that is not in memory by its own wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EmptyDir {
    /// The kubelet's folder for it.
    pub source: PathBuf,
    pub name: String,
    /// The pod's fsGroup, or 0.
    pub gid: u32,
    /// Which of the container's mounts it is.
    mounts: Vec<usize>,
}

impl Volumes {
    /// Gives each of these emptyDirs the storage that it is kept on.
    pub(crate) fn place_empty_dirs(&mut self, storage: impl Fn(&EmptyDir) -> Option<Storage>) -> Result<()> {
        for dir in std::mem::take(&mut self.empty_dirs) {
            let storage = storage(&dir).ok_or_else(|| {
                Error::internal(format!("emptyDir {}: it has no place (a bug in the shim)", dir.name))
            })?;
            let typ = if storage.driver == "local" { "local" } else { "bind" };
            for at in dir.mounts {
                if let Some(mount) = self.mounts.get_mut(at) {
                    *mount = bound(mount, typ, &storage.mount_point, None);
                }
            }
            self.storages.push(storage);
        }
        Ok(())
    }
}

/// The sources on the host whose kinds [`decide`] must know.
pub(crate) fn host_sources(bundle: &Bundle) -> impl Iterator<Item = &Path> {
    let mounts = bundle.spec.mounts().iter().flatten();
    mounts.filter(|mount| is_of_host(mount)).filter_map(|mount| mount.source().as_deref())
}

/// The path of the pod's resolv.conf on the host, if it has its own.
pub(crate) fn resolv_conf(bundle: &Bundle) -> Option<&Path> {
    let mut mounts = bundle.spec.mounts().iter().flatten().filter(|mount| is_of_host(mount));
    mounts.find(|mount| mount.destination() == Path::new("/etc/resolv.conf"))?.source().as_deref()
}

/// Decides for all mounts of container `id`. `unique`: a number by which no other container's copies
/// are named.
pub(crate) fn decide(
    bundle: &Bundle,
    id: &ContainerId,
    kinds: &BTreeMap<PathBuf, SourceKind>,
    unique: u64,
) -> Result<Volumes> {
    let mut planner = Planner { bundle, id, kinds, unique, volumes: Volumes::default() };
    for mount in bundle.spec.mounts().iter().flatten() {
        let mount = planner.decide(mount)?;
        planner.volumes.mounts.push(mount);
    }
    Ok(planner.volumes)
}

/// Decides one mount after the other; what is already decided bounds and names what follows.
struct Planner<'a> {
    bundle: &'a Bundle,
    id: &'a ContainerId,
    kinds: &'a BTreeMap<PathBuf, SourceKind>,
    unique: u64,
    volumes: Volumes,
}

impl Planner<'_> {
    fn decide(&mut self, mount: &Mount) -> Result<Mount> {
        if is_shm(mount) {
            return Ok(bound(mount, "bind", SHM_PATH, Some(vec!["rbind".to_owned()])));
        }
        if !is_of_host(mount) {
            return Ok(mount.clone());
        }
        self.host_mount(mount).with_context(|| format!("mount {}", mount.destination().display()))
    }

    fn host_mount(&mut self, mount: &Mount) -> Result<Mount> {
        let source = mount.source().as_deref().unwrap_or(Path::new(""));
        if source.starts_with("/proc") || source.starts_with("/sys") {
            return Err(Error::invalid(format!(
                "{} is a file system of the host's kernel, and a guest has its own: remove the volume",
                source.display()
            )));
        }
        if options(mount).iter().any(|o| o == "rshared" || o == "shared") {
            return Err(Error::invalid(format!(
                "mounts made in the guest cannot be propagated to the host ({}): remove mountPropagation: Bidirectional",
                source.display()
            )));
        }
        let kind = self.kinds.get(source).ok_or_else(|| Error::internal("its source was not examined"))?;
        match *kind {
            SourceKind::Special(what) => Err(Error::invalid(format!(
                "{} is a {what} of the host, which a confidential guest cannot reach: remove the volume",
                source.display()
            ))),
            SourceKind::PartOfEmptyDir => Err(Error::invalid(format!(
                "{} is a part of an emptyDir, whose content only the guest has: mount the whole volume and \
                 use a folder in it instead of subPath",
                source.display()
            ))),
            SourceKind::Persistent if !options(mount).iter().any(|option| option == "ro") => {
                Err(Error::invalid(format!(
                    "{} is a writable volume that keeps its data, and a guest gets a copy, which is lost with the \
                     pod: mount it read-only, or store the data through a service",
                    source.display()
                )))
            }
            SourceKind::Directory { in_memory, gid } if is_empty_dir(source) => {
                self.empty_dir(mount, plain_name(source)?, in_memory, gid)
            }
            SourceKind::File | SourceKind::Directory { .. } => {
                self.copied(mount, source, !termination::is_message(self.bundle, mount))
            }
            SourceKind::Persistent => self.copied(mount, source, false),
        }
    }

    fn empty_dir(&mut self, mount: &Mount, name: &str, in_memory: bool, gid: u32) -> Result<Mount> {
        if !in_memory {
            return Ok(self.unplaced(mount, name, gid));
        }
        let storage = storage::memory_volume(name, gid);
        let mount = bound(mount, "bind", &storage.mount_point, None);
        if !self.volumes.storages.contains(&storage) {
            self.volumes.storages.push(storage);
        }
        Ok(mount)
    }

    /// The mount stays as it is until the emptyDir has its place.
    fn unplaced(&mut self, mount: &Mount, name: &str, gid: u32) -> Mount {
        let source = mount.source().clone().unwrap_or_default();
        let at = self.volumes.mounts.len();
        match self.volumes.empty_dirs.iter_mut().find(|known| known.source == source) {
            Some(known) => known.mounts.push(at),
            None => {
                let dir = EmptyDir { source, name: name.to_owned(), gid, mounts: vec![at] };
                self.volumes.empty_dirs.push(dir);
            }
        }
        mount.clone()
    }

    fn copied(&mut self, mount: &Mount, source: &Path, follows: bool) -> Result<Mount> {
        let copies = &mut self.volumes.copies;
        if copies.len() >= limits::volumes::COPIED_VOLUMES {
            return Err(Error::invalid(format!(
                "more than {} volumes to copy into the guest",
                limits::volumes::COPIED_VOLUMES
            )));
        }
        let number = self.unique.wrapping_add(copies.len() as u64);
        let name = plain_name(mount.destination())?;
        let target = format!("{SHARED_DIR}/{}-{number:016x}-{name}", self.id);
        let mount = bound(mount, "bind", &target, None);
        copies.push(VolumeCopy { source: source.to_owned(), target, follows });
        Ok(mount)
    }
}

/// The mount with another type and source; without `options` it keeps the options that it has.
fn bound(mount: &Mount, typ: &str, source: &str, options: Option<Vec<String>>) -> Mount {
    let mut bound = mount.clone();
    bound.set_typ(Some(typ.into()));
    bound.set_source(Some(source.into()));
    if options.is_some() {
        bound.set_options(options);
    }
    bound
}

fn options(mount: &Mount) -> &[String] {
    mount.options().as_deref().unwrap_or_default()
}

fn is_shm(mount: &Mount) -> bool {
    mount.destination() == Path::new("/dev/shm")
}

/// A bind mount, but for the shared memory, which is the guest's.
fn is_of_host(mount: &Mount) -> bool {
    is_bind(mount) && !is_shm(mount)
}

/// The kubelet keeps all emptyDir volumes in directories of this name.
pub(crate) const EMPTY_DIR_PLUGIN: &str = "kubernetes.io~empty-dir";

fn is_empty_dir(source: &Path) -> bool {
    let parent = source.parent().and_then(Path::file_name);
    parent.is_some_and(|name| name == EMPTY_DIR_PLUGIN)
}

/// The last component of a path, valid as a name in the guest.
fn plain_name(path: &Path) -> Result<&str> {
    let last = path.components().next_back();
    let Some(Component::Normal(name)) = last else {
        return Err(Error::invalid(format!("{} does not end in a name", path.display())));
    };
    name.to_str().ok_or_else(|| Error::invalid(format!("{}: not UTF-8", path.display())))
}

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
