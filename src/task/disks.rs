//! The disks of a container's volumes on their way into the guest and out of it: each is plugged once, however many
//! containers of the pod use it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use slog::{debug, info, warn};
use tokio::sync::OwnedMutexGuard;

use crate::config::EmptyDirMode;
use crate::error::{Context, Error, Result};
use crate::failpoint::{Step, hit};
use crate::host::begun::{self, blocking};
use crate::host::{block_device, empty_dir};
use crate::ids::{ContainerId, SandboxId};
use crate::oci::device::{BlockDevice, GuestDevice, TRUSTED_STORE};
use crate::oci::storage;
use crate::oci::volume::{EmptyDir, Volumes};
use crate::pod::Pod;
use crate::pod::disks::DiskContent;
use crate::pod::guest::Guest;
use crate::pod::journal::Cleanup;
use crate::pod::state::OwnDisk;
use crate::qemu::hotplug::{Disk, DiskAddress};
use crate::scsi::ScsiAddress;

/// The disks that a container is made with.
#[derive(Debug, Default)]
pub(crate) struct Attached(BTreeMap<DiskContent, AttachedDisk>);

#[derive(Debug)]
struct AttachedDisk {
    address: ScsiAddress,
    /// As messages name it.
    what: String,
    is_encrypted: bool,
    /// Of a disk that was plugged for this container; others of its users wait until it is made.
    turn: Option<OwnedMutexGuard<()>>,
}

/// The content of a raw block volume's disk.
fn content(device: &BlockDevice) -> DiskContent {
    DiskContent::Device { number: device.number, read_only: device.read_only }
}

/// Refuses devices that the host does not have.
pub(crate) async fn look(devices: &[BlockDevice]) -> Result<()> {
    let devices = devices.to_vec();
    blocking("look at devices", move || {
        devices
            .iter()
            .try_for_each(|device| block_device::node(device.number).map(drop).with_context(|| named(device)))
    })
    .await
}

fn named(device: &BlockDevice) -> String {
    format!("device {}", device.path.display())
}

/// Makes and plugs what the guest does not have yet. After an error, and until [`Attached::keep`], what was plugged is the
/// container's own still, to be unplugged with it.
pub(crate) async fn attach(
    pod: &Pod,
    guest: &Arc<Guest>,
    id: &ContainerId,
    devices: &[BlockDevice],
    empty_dirs: &[EmptyDir],
) -> Result<Attached> {
    let mut attached = Attached::default();
    let is_encrypted = guest.empty_dirs.mode == EmptyDirMode::BlockEncrypted;
    if !empty_dirs.is_empty() && guest.empty_dirs.mode != EmptyDirMode::GuestLocal {
        guest.agent_version.check_disks()?;
    }
    let dirs = empty_dirs.iter().filter(|_| guest.empty_dirs.mode != EmptyDirMode::GuestLocal);
    let dirs = dirs.map(|dir| (DiskContent::EmptyDir(dir.source.clone()), format!("emptyDir {}", dir.name)));
    // In one order for all containers: no two wait for each other.
    let wanted: BTreeMap<_, _> =
        devices.iter().map(|device| (content(device), named(device))).chain(dirs).collect();
    for (content, what) in wanted {
        let is_encrypted = is_encrypted && matches!(content, DiskContent::EmptyDir(_));
        let turn = guest.disks.turn(&content).lock_owned().await;
        let (address, turn) = match guest.disks.join(&content, id) {
            Some(address) => (address, None),
            None => (plug(pod, guest, id, &content).await.with_context(|| what.clone())?, Some(turn)),
        };
        attached.0.insert(content, AttachedDisk { address, what, is_encrypted, turn });
    }
    if guest.size.vcpus > 1 && devices.iter().any(|device| device.path.as_os_str() == TRUSTED_STORE) {
        warn!(
            pod.log(),
            "{} in a VM with {} CPUs: guests have been seen to report errors of integrity of such a store (Kata \
             Containers, issue 12721): with one CPU none are known",
            TRUSTED_STORE,
            guest.size.vcpus
        );
    }
    Ok(attached)
}

async fn plug(pod: &Pod, guest: &Arc<Guest>, id: &ContainerId, content: &DiskContent) -> Result<ScsiAddress> {
    let (file, own_file, read_only) = match content {
        DiskContent::Device { number, read_only } => {
            let (number, read_only) = (*number, *read_only);
            let open = move || block_device::open(number, read_only);
            (blocking("open a device", open).await?, None, read_only)
        }
        DiskContent::EmptyDir(source) => {
            let disk = empty_dir::path(source);
            (make_disk(pod, guest, source).await?, Some(disk), false)
        }
    };
    let address = guest.disks.next_address()?;
    let serial = format!("volume-{}-{}", address.id, address.lun);
    let (file, address_of_disk) = (file.into(), DiskAddress::Scsi(address));
    let disk = Disk { file, read_only, discard: !read_only, address: address_of_disk, serial };
    plug_own(pod, guest, id, disk, own_file).await?;
    Ok(address)
}

/// In the journal before it is there.
async fn make_disk(pod: &Pod, guest: &Guest, source: &Path) -> Result<File> {
    let entry = Cleanup::EmptyDir { disk: empty_dir::path(source) };
    guest.disks.record_once(&DiskContent::EmptyDir(source.to_path_buf()), || pod.journal.record(&entry))?;
    let name = source.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let wanted = guest.empty_dirs.bytes(&name);
    let volume = source.to_path_buf();
    let (file, bytes) = blocking("make a disk", move || empty_dir::make(&volume, wanted)).await?;
    hit(Step::EmptyDirMade)?;
    info!(pod.log(), "disk of emptyDir {} made", name; "mib" => bytes >> 20);
    Ok(file)
}

/// Plugs a disk that is the container's own until another owner is found.
pub(super) async fn plug_own(
    pod: &Pod,
    guest: &Arc<Guest>,
    id: &ContainerId,
    disk: Disk,
    file: Option<PathBuf>,
) -> Result<()> {
    let address = disk.address;
    if let Some(container) = pod.lock().containers.get_mut(id) {
        container.own_disks.push(OwnDisk { address, file: file.clone() });
    }
    let vm = Arc::clone(&guest.vm);
    let plugging = async move { vm.plug(&disk).await };
    let plugged = begun::whole("plug a disk", plugging).await;
    if let Err(e) = plugged {
        disown(pod, id, address);
        remove_file(pod, file).await;
        return Err(e);
    }
    hit(Step::DiskPlugged)?;
    debug!(pod.log(), "disk plugged"; "step" => "disk_plugged", "disk" => %address);
    Ok(())
}

/// The disk does not go with this container.
pub(super) fn disown(pod: &Pod, id: &ContainerId, address: DiskAddress) {
    if let Some(container) = pod.lock().containers.get_mut(id) {
        container.own_disks.retain(|own| own.address != address);
    }
}

impl Attached {
    /// The devices of the request.
    pub(crate) fn devices(&self, devices: &[BlockDevice]) -> Vec<GuestDevice> {
        let found = |device| Some(GuestDevice::scsi(device, self.0.get(&content(device))?.address));
        devices.iter().filter_map(found).collect()
    }

    /// Gives the container's emptyDirs the storages that they are kept on.
    pub(crate) fn place_empty_dirs(
        &self,
        guest: &Guest,
        sandbox: &SandboxId,
        volumes: &mut Volumes,
    ) -> Result<()> {
        let on_disk = |dir: &EmptyDir, is_encrypted| {
            let disk = self.0.get(&DiskContent::EmptyDir(dir.source.clone()))?;
            Some(storage::disk_volume(disk.address, dir.gid, is_encrypted))
        };
        volumes.place_empty_dirs(|dir| match guest.empty_dirs.mode {
            EmptyDirMode::BlockEncrypted => on_disk(dir, true),
            EmptyDirMode::BlockPlain => on_disk(dir, false),
            EmptyDirMode::GuestLocal => Some(storage::local_volume(sandbox, &dir.name, dir.gid)),
        })
    }

    /// The guest's error about a container with these disks: one that did not appear is named as the host knows it.
    pub(crate) fn explain(&self, e: Error) -> Error {
        // The end of the name that the agent waits for: 0:0:<target>:<unit>/block/<name>.
        let is_about = |disk: &&AttachedDisk| e.message().contains(&format!("/0:0:{}/block", disk.address));
        // By reading: without a Confidential Data Hub the agent takes the disk for mounted, and misses its directory.
        let text = e.message();
        let is_missing = text.contains("ENOENT") || text.contains("No such file or directory");
        let is_missing = is_missing && text.contains(storage::DISKS_DIR);
        match self.0.values().find(is_about) {
            None if is_missing && self.0.values().any(|disk| disk.is_encrypted) => e.context(
                "encrypted emptyDirs need a Confidential Data Hub in the guest (if it has none, set \
                 volumes.empty_dir = \"block-plain\")",
            ),
            None => e,
            Some(disk) => {
                let what = format!("{} (scsi {}): did not appear in the guest", disk.what, disk.address);
                e.context(what)
            }
        }
    }

    /// The container is made: its disks are the guest's.
    pub(crate) fn keep(self, pod: &Pod, guest: &Guest, id: &ContainerId) {
        for (content, disk) in self.0.into_iter().filter(|(_, disk)| disk.turn.is_some()) {
            guest.disks.publish(content, disk.address, id);
            disown(pod, id, DiskAddress::Scsi(disk.address));
        }
    }
}

/// Says which emptyDirs a container's user cannot write to: the kubelet's folder is open to all, but the root of a new
/// file system in the guest only to root and to the pod's fsGroup.
pub(super) fn tell_owners(pod: &Pod, guest: &Guest, id: &ContainerId, uid: u32, empty_dirs: &[EmptyDir]) {
    if uid == 0 || guest.empty_dirs.mode == EmptyDirMode::GuestLocal {
        return;
    }
    for dir in empty_dirs.iter().filter(|dir| dir.gid == 0) {
        warn!(
            pod.log(),
            "container {}: emptyDir {}: belongs to root in the guest, and the container runs as uid {}: to write there \
             it needs securityContext.fsGroup",
            id,
            dir.name,
            uid
        );
    }
}

/// Unplugs what only this container used, after it was removed from the guest.
pub(super) async fn release(pod: &Pod, guest: &Guest, id: &ContainerId) {
    let own = pod.lock().containers.get_mut(id).map(|container| std::mem::take(&mut container.own_disks));
    for OwnDisk { address, file } in own.into_iter().flatten() {
        unplug(pod, guest, id, address).await;
        remove_file(pod, file).await;
    }
    for content in guest.disks.of(id) {
        let _turn = guest.disks.turn(&content).lock_owned().await;
        if let Some(address) = guest.disks.leave(&content, id) {
            unplug(pod, guest, id, DiskAddress::Scsi(address)).await;
        }
    }
}

async fn remove_file(pod: &Pod, file: Option<PathBuf>) {
    let Some(file) = file else { return };
    if let Err(e) = blocking("remove a disk", move || empty_dir::remove(&file)).await {
        warn!(pod.log(), "{}", e);
    }
}

async fn unplug(pod: &Pod, guest: &Guest, id: &ContainerId, address: DiskAddress) {
    if let Err(e) = guest.vm.unplug(address).await {
        warn!(pod.log(), "container {}: {}", id, e);
    }
}
