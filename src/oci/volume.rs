//! What becomes of each mount of a spec, in a guest that shares no file system with its host: kept as
//! it is, made of the guest's memory, copied into the guest, or refused.
//!
//! Names and forms are the agent's contract; policies in real guests refuse anything else.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;

use crate::error::{Error, Result};
use crate::ids::{ContainerId, SandboxId};
use crate::limits;
use crate::oci::spec::Bundle;
use crate::oci::storage::{self, SHARED_DIR, SHM_PATH, Storage};

/// What stands at a bind mount's source on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory {
        /// Lies in a tmpfs: the kubelet makes one for an emptyDir with medium Memory.
        in_memory: bool,
        gid: u32,
    },
    /// Something that has no content to copy, by its name for people.
    Special(&'static str),
}

/// A file or folder of the host to be copied before the container is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copied {
    pub source: PathBuf,
    /// Its path in the guest.
    pub target: String,
}

/// A container's mounts as the guest makes them, and what has to be there before.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Volumes {
    pub mounts: Vec<Mount>,
    pub storages: Vec<Storage>,
    pub copies: Vec<Copied>,
}

/// The sources that bring something of the host: their kinds have to be known.
pub(crate) fn host_sources(bundle: &Bundle) -> impl Iterator<Item = &Path> {
    let mounts = bundle.spec.mounts().iter().flatten();
    mounts.filter(|mount| is_of_host(mount)).filter_map(|mount| mount.source().as_deref())
}

/// Where the pod's resolv.conf stands on the host, when it has one of its own.
pub(crate) fn resolv_conf(bundle: &Bundle) -> Option<&Path> {
    let mut mounts = bundle.spec.mounts().iter().flatten().filter(|mount| is_of_host(mount));
    mounts.find(|mount| mount.destination() == Path::new("/etc/resolv.conf"))?.source().as_deref()
}

/// Decides for all mounts of container `id`. `unique`: a number that no other container's copies
/// were named by.
pub(crate) fn place(
    bundle: &Bundle,
    id: &ContainerId,
    kinds: &BTreeMap<PathBuf, Kind>,
    unique: u64,
) -> Result<Volumes> {
    let sandbox = bundle.role.sandbox(id);
    let mut volumes = Volumes::default();
    for mount in bundle.spec.mounts().iter().flatten() {
        let placed = if is_shm(mount) {
            bound(mount, "bind", SHM_PATH, Some(vec!["rbind".to_owned()]))
        } else if is_of_host(mount) {
            let name = |why: Error| why.context(format!("mount {}", mount.destination().display()));
            from_host(mount, (id, &sandbox), kinds, unique, &mut volumes).map_err(name)?
        } else {
            mount.clone()
        };
        volumes.mounts.push(placed);
    }
    Ok(volumes)
}

fn from_host(
    mount: &Mount,
    (id, sandbox): (&ContainerId, &SandboxId),
    kinds: &BTreeMap<PathBuf, Kind>,
    unique: u64,
    volumes: &mut Volumes,
) -> Result<Mount> {
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    if options(mount).iter().any(|o| o == "rshared" || o == "shared") {
        return Err(Error::invalid(format!(
            "mounts made in the guest cannot be propagated to the host ({}): leave out mountPropagation: Bidirectional",
            source.display()
        )));
    }
    let kind = kinds.get(source).ok_or_else(|| Error::internal("its source was not looked at"))?;
    match kind {
        Kind::Special(what) => Err(Error::invalid(format!(
            "{} is a {what} of the host, which a confidential guest cannot reach: remove the volume",
            source.display()
        ))),
        Kind::Directory { in_memory, gid } if is_empty_dir(source) => {
            let name = plain_name(source)?;
            let storage = if *in_memory {
                storage::memory_volume(name, *gid)
            } else {
                storage::local_volume(sandbox, name, *gid)
            };
            let typ = if *in_memory { "bind" } else { "local" };
            let placed = bound(mount, typ, &storage.mount_point, None);
            if !volumes.storages.contains(&storage) {
                volumes.storages.push(storage);
            }
            Ok(placed)
        }
        Kind::File | Kind::Directory { .. } => {
            if volumes.copies.len() >= limits::COPIED_VOLUMES {
                return Err(Error::invalid(format!(
                    "more than {} volumes to copy into the guest",
                    limits::COPIED_VOLUMES
                )));
            }
            let number = unique.wrapping_add(volumes.copies.len() as u64);
            let name = plain_name(mount.destination())?;
            let target = format!("{SHARED_DIR}/{id}-{number:016x}-{name}");
            let placed = bound(mount, "bind", &target, None);
            volumes.copies.push(Copied { source: source.to_owned(), target });
            Ok(placed)
        }
    }
}

/// The mount with another type and source; without `options` it keeps its own.
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

/// A bind mount of something else than the kernel's own file systems, which the guest has itself.
fn is_of_host(mount: &Mount) -> bool {
    let is_bind =
        mount.typ().as_deref() == Some("bind") || options(mount).iter().any(|o| o == "bind" || o == "rbind");
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    is_bind && !is_shm(mount) && !source.starts_with("/proc") && !source.starts_with("/sys")
}

/// The kubelet keeps them all in folders of this name.
fn is_empty_dir(source: &Path) -> bool {
    let parent = source.parent().and_then(Path::file_name);
    parent.is_some_and(|name| name == "kubernetes.io~empty-dir")
}

/// The last element of a path, fit for a path in the guest.
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
