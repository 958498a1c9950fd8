//! Bringing a container's root file system into the guest: from the plan to an opened disk and
//! the storages that mount it, or to the storage by which the guest pulls the image.

use std::fs::{self, OpenOptions};
use std::future::Future;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::libc;
use slog::{Logger, debug};

use crate::config::{Config, RootfsMode};
use crate::error::{Context, Error, Result};
use crate::failpoint::{Step, hit};
use crate::host::begun;
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
    let context = || format!("root file system {}", source.display());
    // O_EXCL on a device: nobody else has it mounted or has opened it so (open(2)), as long as QEMU has the
    // descriptor. What is only read may be shared by several guests.
    let exclusive = if read_only || !fs::metadata(source).with_context(context)?.file_type().is_block_device()
    {
        0
    } else {
        libc::O_EXCL
    };
    let opened = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | exclusive)
        .open(source);
    if opened.as_ref().is_err_and(|e| e.kind() == ErrorKind::ResourceBusy) {
        return Err(Error::precondition(format!(
            "root file system {}: the host uses this device, or another guest has it: unmount it, or give \
             the container another one (EBUSY)",
            source.display()
        )));
    }
    let file = opened.with_context(context)?;
    let kind = file.metadata().with_context(context)?.file_type();
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
    *plugged = Some(layer);
    if let Some(container) = pod.lock().containers.get_mut(id) {
        container.own_disk = None;
    }
    Ok(())
}

async fn plug(pod: &Pod, guest: &Arc<Guest>, id: &ContainerId, disk: &RootfsDisk) -> Result<Layer> {
    let devno = guest.next_devno()?;
    let mount = guest.next_mount();
    if let Some(container) = pod.lock().containers.get_mut(id) {
        container.own_disk = Some(devno);
    }
    let (file, read_only, serial) = (disk.file()?, disk.read_only(), mount.clone());
    let vm = Arc::clone(&guest.vm);
    let plugging = async move { vm.plug(file, read_only, devno, &serial).await };
    let plugged = begun::whole("plug a disk", plugging).await.context("root file system");
    if let (Err(_), Some(container)) = (&plugged, pod.lock().containers.get_mut(id)) {
        container.own_disk = None;
    }
    plugged?;
    hit(Step::DiskPlugged)?;
    debug!(pod.log(), "disk plugged"; "step" => "disk_plugged", "devno" => devno.guest());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_the_host_uses_is_not_written_to_by_a_guest_too() {
        // A mount holds a device as this does. Machines without the module have no such device.
        let device = Path::new("/dev/loop7");
        let exclusive = libc::O_EXCL | libc::O_NONBLOCK;
        let Ok(held) = OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(device) else {
            return;
        };
        let e = open_block(device, false).expect_err("held").to_string();
        assert!(e.starts_with("root file system /dev/loop7: the host uses this device"), "{e}");
        open_block(device, true).expect("several guests may read one device");
        drop(held);
        let ours = open_block(device, false).expect("free");
        assert!(open_block(device, false).is_err(), "a second guest");
        drop(ours);
    }
}
