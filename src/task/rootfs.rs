//! Bringing a container's root file system into the guest: from the plan to an opened disk and
//! the storages that mount it, or to the storage by which the guest pulls the image.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use slog::Logger;

use crate::config::{Config, RootfsMode};
use crate::error::{Context, Error, Result};
use crate::host::block_device;
use crate::host::confine::User;
use crate::host::layer_cache::{LayerCache, LayerImage};
use crate::host::layer_pack::Packer;
use crate::host::layer_room::LayerSpace;
use crate::ids::ContainerId;
use crate::oci::spec::Bundle;
use crate::oci::storage::{Storage, block_rootfs, packed_rootfs, pulled_rootfs};
use crate::oci::{image_name, role};
use crate::plan::rootfs::{RootfsPlan, of_the_host};
use crate::pod::guest::{Guest, Layer};
use crate::pod::request::CreateRequest;
use crate::pod::{Pod, dir};
use crate::qemu::hotplug::{Disk, DiskAddress};
use crate::task::disks::{disown, plug_own};

/// A root file system that the guest can be given.
#[derive(Debug)]
pub(crate) enum Rootfs {
    /// The guest pulls the image of this name.
    Pulled(String),
    Disk(RootfsDisk),
}

/// An opened root file system, ready to be plugged.
#[derive(Debug)]
pub(crate) enum RootfsDisk {
    Packed(LayerImage),
    Block { file: OwnedFd, fstype: String, read_only: bool, options: Vec<String> },
}

/// Decides how the request's root file system travels.
pub(crate) fn plan(config: &Config, request: &CreateRequest, bundle: &Bundle) -> Result<RootfsPlan> {
    match config.rootfs.mode {
        RootfsMode::GuestPull => {
            image_name::of(bundle, &request.rootfs).map(|image| RootfsPlan::Pulled { image })
        }
        mode => of_the_host(mode, &request.rootfs, &bundle.root(&request.bundle)),
    }
}

/// Packs or opens what is on the host. `leaf`: the pod's cgroup; `user`: whom mkfs runs as.
pub(crate) async fn open(
    log: &Logger,
    plan: &RootfsPlan,
    config: &Config,
    pod_dir: &Path,
    leaf: &Path,
    user: Option<User>,
) -> Result<Rootfs> {
    let packer = Packer {
        mkfs: config.rootfs.mkfs.clone(),
        mount_point: pod_dir.join(dir::PACK),
        leaf: leaf.to_path_buf(),
        user,
    };
    let space = LayerSpace {
        cache: config.rootfs.cache_dir.clone(),
        pod: pod_dir.to_path_buf(),
        limit: config.rootfs.cache_mib << 20,
    };
    let cache = LayerCache {
        notes: pod_dir.parent().unwrap_or(pod_dir).to_path_buf(),
        space,
        packer,
        log: log.clone(),
    };
    let packed = match plan {
        RootfsPlan::Pulled { image } => return Ok(Rootfs::Pulled(image.clone())),
        RootfsPlan::Packed { layers, upper } => match upper.as_ref().filter(|u| !is_empty(u)) {
            None => cache.shared(layers.clone()).await,
            Some(upper) => cache.private([upper.clone()].into_iter().chain(layers.clone()).collect()).await,
        },
        RootfsPlan::Private { directory } => cache.private(vec![directory.clone()]).await,
        RootfsPlan::Block { source, fstype, read_only, options } => {
            let file = open_block(source, *read_only)?;
            let (fstype, options) = (fstype.clone(), options.clone());
            return Ok(Rootfs::Disk(RootfsDisk::Block { file, fstype, read_only: *read_only, options }));
        }
    };
    packed.map(|image| Rootfs::Disk(RootfsDisk::Packed(image))).context("root file system")
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

fn open_block(source: &Path, read_only: bool) -> Result<OwnedFd> {
    let file = block_device::open_alone(source, read_only, 0).context("root file system")?;
    let kind = file.metadata().with_context(|| format!("root file system {}", source.display()))?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(file.into());
    }
    Err(Error::invalid(format!("root file system {}: neither a file nor a block device", source.display())))
}

/// By which storage the guest pulls an image for a container.
pub(crate) fn pulled(guest: &Guest, id: &ContainerId, bundle: &Bundle, image: &str) -> Result<Storage> {
    let annotations = bundle.spec.annotations().as_ref();
    let kind = || annotations.and_then(role::container_type).into_iter().collect();
    let metadata = guest.agent_version.wants_pull_metadata()?.then(kind);
    Ok(pulled_rootfs(id, image, metadata))
}

/// Plugs the disk, unless the guest has it already, and lets `create` make the container on the storages that
/// mount it. After an error the disk is the container's own still, to be unplugged with it.
pub(crate) async fn attach<F: Future<Output = Result<()>>>(
    pod: &Pod,
    guest: &Arc<Guest>,
    id: &ContainerId,
    mut disk: RootfsDisk,
    create: impl FnOnce(Vec<Storage>) -> F,
) -> Result<()> {
    if let (RootfsDisk::Packed(image), Some(container)) = (&mut disk, pod.lock().containers.get_mut(id)) {
        container.room = image.room.take();
    }
    let Some(name) = disk.shared_name() else {
        let layer = plug(pod, guest, id, &disk).await?;
        return create(disk.storages(id, &layer)).await;
    };
    let image = guest.image(name);
    // Held until the agent has mounted it: the next container of this image must find it. One whose mount
    // failed is not used again, since the agent counts it as mounted.
    let mut plugged = image.lock().await;
    if let Some(layer) = plugged.clone() {
        drop(plugged);
        return create(disk.storages(id, &layer)).await;
    }
    let layer = plug(pod, guest, id, &disk).await?;
    create(disk.storages(id, &layer)).await?;
    let devno = layer.devno;
    *plugged = Some(layer);
    disown(pod, id, DiskAddress::Ccw(devno));
    Ok(())
}

async fn plug(pod: &Pod, guest: &Arc<Guest>, id: &ContainerId, disk: &RootfsDisk) -> Result<Layer> {
    let devno = guest.next_devno()?;
    let mount = guest.next_mount();
    let (file, read_only, serial) = (disk.file()?, disk.read_only(), mount.clone());
    let disk = Disk { file, read_only, discard: false, address: DiskAddress::Ccw(devno), serial };
    plug_own(pod, guest, id, disk, None).await.context("root file system")?;
    Ok(Layer { mount, devno })
}

impl RootfsDisk {
    /// Another descriptor of the disk, for QEMU; ours keeps the image's lock meanwhile.
    pub(crate) fn file(&self) -> Result<OwnedFd> {
        let file = match self {
            Self::Packed(image) => &image.file,
            Self::Block { file, .. } => file,
        };
        file.try_clone().context("root file system")
    }

    pub(crate) fn read_only(&self) -> bool {
        match self {
            Self::Packed(_) => true,
            Self::Block { read_only, .. } => *read_only,
        }
    }

    /// The name under which other containers of the pod may use the same disk.
    pub(crate) fn shared_name(&self) -> Option<&str> {
        match self {
            Self::Packed(image) => image.key.as_deref(),
            Self::Block { .. } => None,
        }
    }

    /// What the agent mounts from the plugged disk.
    pub(crate) fn storages(&self, id: &ContainerId, layer: &Layer) -> Vec<Storage> {
        match self {
            Self::Packed(image) => packed_rootfs(id, &layer.mount, layer.devno, image.key.is_some()),
            Self::Block { fstype, options, .. } => block_rootfs(id, layer.devno, fstype, options),
        }
    }
}
