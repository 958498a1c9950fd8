//! The disks of volumes in a guest: which there are, which containers use each, and whose turn it is to plug or to
//! unplug one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::error::Result;
use crate::ids::ContainerId;
use crate::mutex;
use crate::oci::device::DeviceNumber;
use crate::scsi::{ScsiAddress, ScsiAddresses};

/// What a disk has; containers that want the same share one disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DiskContent {
    /// The emptyDir that the kubelet has in this folder: the guest keeps it mounted until the pod's end.
    EmptyDir(PathBuf),
    /// A block device of the host.
    Device { number: DeviceNumber, read_only: bool },
}

impl DiskContent {
    /// The container, if the disk goes with its last one.
    fn user(&self, id: &ContainerId) -> Option<ContainerId> {
        matches!(self, Self::Device { .. }).then(|| id.clone())
    }
}

/// All of one guest.
#[derive(Debug, Default)]
pub(crate) struct VolumeDisks {
    addresses: Mutex<ScsiAddresses>,
    known: Mutex<BTreeMap<DiskContent, Known>>,
}

#[derive(Debug, Default)]
struct Known {
    turn: Arc<tokio::sync::Mutex<()>>,
    plugged: Option<Plugged>,
    /// It is in the pod's journal.
    recorded: bool,
}

#[derive(Debug)]
struct Plugged {
    address: ScsiAddress,
    users: BTreeSet<ContainerId>,
}

impl VolumeDisks {
    pub(crate) fn next_address(&self) -> Result<ScsiAddress> {
        mutex::lock(&self.addresses).take()
    }

    /// Held while the disk is plugged, until a container has been made with it, and while it is unplugged.
    pub(crate) fn turn(&self, content: &DiskContent) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&mutex::lock(&self.known).entry(content.clone()).or_default().turn)
    }

    /// Lets `record` write the disk down, once in a VM's life, however often it is made.
    pub(crate) fn record_once(
        &self,
        content: &DiskContent,
        record: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut known = mutex::lock(&self.known);
        let known = known.entry(content.clone()).or_default();
        if !known.recorded {
            record()?;
            known.recorded = true;
        }
        Ok(())
    }

    /// The address of a disk that the guest has; the container is a user of it from now on.
    pub(crate) fn join(&self, content: &DiskContent, id: &ContainerId) -> Option<ScsiAddress> {
        let mut known = mutex::lock(&self.known);
        let plugged = known.get_mut(content)?.plugged.as_mut()?;
        plugged.users.extend(content.user(id));
        Some(plugged.address)
    }

    /// The guest has this disk, and this container uses it.
    pub(crate) fn publish(&self, content: DiskContent, address: ScsiAddress, id: &ContainerId) {
        let plugged = Plugged { address, users: content.user(id).into_iter().collect() };
        mutex::lock(&self.known).entry(content).or_default().plugged = Some(plugged);
    }

    /// What a container uses.
    pub(crate) fn of(&self, id: &ContainerId) -> Vec<DiskContent> {
        let known = mutex::lock(&self.known);
        let uses = |known: &Known| known.plugged.as_ref().is_some_and(|plugged| plugged.users.contains(id));
        known.iter().filter(|(_, known)| uses(known)).map(|(content, _)| content.clone()).collect()
    }

    /// The container does not use the disk any more. With the last one it is forgotten, and the caller's to unplug.
    pub(crate) fn leave(&self, content: &DiskContent, id: &ContainerId) -> Option<ScsiAddress> {
        let mut known = mutex::lock(&self.known);
        let known = known.get_mut(content)?;
        let plugged = known.plugged.as_mut()?;
        plugged.users.remove(id);
        if !plugged.users.is_empty() {
            return None;
        }
        known.plugged.take().map(|plugged| plugged.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_goes_with_its_last_user_and_its_address_is_not_used_again() {
        let disks = VolumeDisks::default();
        let [one, two] = ["c1", "c2"].map(|id| ContainerId::parse(id).expect("id"));
        let content = DiskContent::Device { number: DeviceNumber { major: 8, minor: 0 }, read_only: true };
        assert_eq!(disks.join(&content, &one), None);
        let first = disks.next_address().expect("free");
        disks.publish(content.clone(), first, &one);
        assert_eq!(disks.join(&content, &two), Some(first));
        assert_eq!((disks.of(&one), disks.of(&two)), (vec![content.clone()], vec![content.clone()]));
        assert_eq!(disks.leave(&content, &one), None);
        assert_eq!(disks.of(&one), []);
        assert_eq!(disks.leave(&content, &two), Some(first));
        assert_eq!((disks.leave(&content, &two), disks.join(&content, &one)), (None, None));
        let second = disks.next_address().expect("free");
        assert!(second > first);
        let content = DiskContent::EmptyDir("/v".into());
        disks.publish(content.clone(), second, &one);
        assert_eq!((disks.of(&one), disks.join(&content, &two)), (vec![], Some(second)), "it stays");
        let full = || Err(crate::error::Error::internal("no space"));
        assert!(disks.record_once(&content, full).is_err());
        assert_eq!(disks.record_once(&content, || Ok(())), Ok(()), "again, since it was not written");
        assert_eq!(disks.record_once(&content, full), Ok(()), "once");
    }
}
