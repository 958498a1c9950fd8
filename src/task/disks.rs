//! The disks of a container's volumes on their way into the guest and out of it: each is plugged once, however many
//! containers of the pod use it.

use std::collections::BTreeMap;
use std::sync::Arc;

use slog::{debug, warn};
use tokio::sync::OwnedMutexGuard;

use crate::error::{Context, Error, Result};
use crate::failpoint::{Step, hit};
use crate::host::begun::{self, blocking};
use crate::host::block_device;
use crate::ids::ContainerId;
use crate::oci::device::{BlockDevice, GuestDevice, TRUSTED_STORE};
use crate::pod::Pod;
use crate::pod::disks::DiskContent;
use crate::pod::guest::Guest;
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

/// Plugs what the guest does not have yet. After an error, and until [`Attached::keep`], what was plugged is the
/// container's own still, to be unplugged with it.
pub(crate) async fn attach(
    pod: &Pod,
    guest: &Arc<Guest>,
    id: &ContainerId,
    devices: &[BlockDevice],
) -> Result<Attached> {
    let mut attached = Attached::default();
    // In one order for all containers: no two wait for each other.
    let wanted: BTreeMap<_, _> = devices.iter().map(|device| (content(device), named(device))).collect();
    for (content, what) in wanted {
        let turn = guest.disks.turn(&content).lock_owned().await;
        let (address, turn) = match guest.disks.join(&content, id) {
            Some(address) => (address, None),
            None => (plug(pod, guest, id, &content).await.with_context(|| what.clone())?, Some(turn)),
        };
        attached.0.insert(content, AttachedDisk { address, what, turn });
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
    let DiskContent::Device { number, read_only } = *content;
    let file = blocking("open a device", move || block_device::open(number, read_only)).await?;
    let address = guest.disks.next_address()?;
    let serial = format!("volume-{}-{}", address.id, address.lun);
    let (file, address_of_disk) = (file.into(), DiskAddress::Scsi(address));
    let disk = Disk { file, read_only, discard: !read_only, address: address_of_disk, serial };
    plug_own(pod, guest, id, disk).await?;
    Ok(address)
}

/// Plugs a disk that is the container's own until another owner is found.
pub(super) async fn plug_own(pod: &Pod, guest: &Arc<Guest>, id: &ContainerId, disk: Disk) -> Result<()> {
    let address = disk.address;
    if let Some(container) = pod.lock().containers.get_mut(id) {
        container.own_disks.push(address);
    }
    let vm = Arc::clone(&guest.vm);
    let plugging = async move { vm.plug(&disk).await };
    let plugged = begun::whole("plug a disk", plugging).await;
    if plugged.is_err() {
        disown(pod, id, address);
    }
    plugged?;
    hit(Step::DiskPlugged)?;
    debug!(pod.log(), "disk plugged"; "step" => "disk_plugged", "disk" => %address);
    Ok(())
}

/// The disk does not go with this container.
pub(super) fn disown(pod: &Pod, id: &ContainerId, address: DiskAddress) {
    if let Some(container) = pod.lock().containers.get_mut(id) {
        container.own_disks.retain(|own| *own != address);
    }
}

impl Attached {
    /// The devices of the request.
    pub(crate) fn devices(&self, devices: &[BlockDevice]) -> Vec<GuestDevice> {
        let found = |device| Some(GuestDevice::scsi(device, self.0.get(&content(device))?.address));
        devices.iter().filter_map(found).collect()
    }

    /// The guest's error about a container with these disks: one that did not appear is named as the host knows it.
    pub(crate) fn explain(&self, e: Error) -> Error {
        // The end of the name that the agent waits for: 0:0:<target>:<unit>/block/<name>.
        let is_about = |disk: &&AttachedDisk| e.message().contains(&format!("/0:0:{}/block", disk.address));
        match self.0.values().find(is_about) {
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

/// Unplugs what only this container used, after it was removed from the guest.
pub(super) async fn release(pod: &Pod, guest: &Guest, id: &ContainerId) {
    let own = pod.lock().containers.get_mut(id).map(|container| std::mem::take(&mut container.own_disks));
    for address in own.into_iter().flatten() {
        unplug(pod, guest, id, address).await;
    }
    for content in guest.disks.of(id) {
        let _turn = guest.disks.turn(&content).lock_owned().await;
        if let Some(address) = guest.disks.leave(&content, id) {
            unplug(pod, guest, id, DiskAddress::Scsi(address)).await;
        }
    }
}

async fn unplug(pod: &Pod, guest: &Guest, id: &ContainerId, address: DiskAddress) {
    if let Err(e) = guest.vm.unplug(address).await {
        warn!(pod.log(), "container {}: {}", id, e);
    }
}
