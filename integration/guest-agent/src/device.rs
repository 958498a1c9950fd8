//! Finds devices by the addresses that hosts send, and waits for those that are being plugged.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::check;
use crate::failure::{Result, Trying, internal};

/// How long the real agent waits for a device to show up.
const LIMIT: Duration = Duration::from_secs(3);

/// Polling interval; the wait ends as soon as the device exists.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) enum Devices {
    /// Devices of this kernel; disks from before the agent's start are never found, as with the real agent.
    Kernel { cold: BTreeSet<String> },
    /// Names of devices in a file, one per line; without a file every device exists.
    Listed(Option<PathBuf>),
}

impl Devices {
    pub(crate) fn kernel() -> Self {
        let disks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        Self::Kernel {
            cold: disks.filter_map(|disk| sequence(&disk.file_name().to_string_lossy())).collect(),
        }
    }

    /// The disk of a `blk-ccw` or `scsi` address.
    pub(crate) async fn disk(&self, driver: &str, address: &str) -> Result<PathBuf> {
        let found = match (self, driver) {
            (Self::Listed(list), _) => awaited(|| listed(list.as_ref(), address)).await,
            (Self::Kernel { cold }, "scsi") => {
                let (id, lun) =
                    check::scsi(address).ok_or_else(|| internal(format!("SCSI address {address:?}")))?;
                crate::boot::load_modules("scsi");
                let dir = format!("/sys/class/scsi_device/0:0:{id}:{lun}/device/block");
                rescan(id, lun)?;
                awaited(|| first(&dir).filter(|disk| is_new(disk, cold))).await
            }
            (Self::Kernel { cold }, _) => {
                let id = check::ccw(address).ok_or_else(|| internal(format!("CCW bus id {address:?}")))?;
                awaited(|| below_ccw(&id, "block").filter(|disk| is_new(disk, cold))).await
            }
        };
        let name = found.ok_or_else(|| {
            // In the real agent's words: hosts look for the address.
            let matcher = match (driver, check::scsi(address)) {
                ("scsi", Some((id, lun))) => {
                    format!("ScsiBlockMatcher {{ search: \"/0:0:{id}:{lun}/block/\" }}")
                }
                _ => format!("no {driver} disk {address}"),
            };
            internal(format!("Timeout after 3s waiting for uevent {matcher}"))
        })?;
        Ok(PathBuf::from("/dev").join(name))
    }

    /// Waits until a network device exists below a CCW address.
    pub(crate) async fn network(&self, address: &str) -> Result<()> {
        let id = check::ccw(address).ok_or_else(|| internal(format!("CCW bus id {address:?}")))?;
        let found = match self {
            Self::Listed(list) => awaited(|| listed(list.as_ref(), address)).await,
            Self::Kernel { .. } => awaited(|| below_ccw(&id, "net")).await,
        };
        found.map(drop).ok_or_else(|| {
            internal(format!("Timeout after 3s waiting for uevent: no network device {address}"))
        })
    }

    /// Major and minor number of a disk.
    pub(crate) fn number(&self, disk: &std::path::Path) -> Result<(i64, i64)> {
        if matches!(self, Self::Listed(_)) {
            return Ok((0, 0));
        }
        let name = disk.file_name().unwrap_or_default().to_string_lossy();
        let text = fs::read_to_string(format!("/sys/block/{name}/dev")).trying("device number")?;
        let (major, minor) = text.trim().split_once(':').unwrap_or_default();
        Ok((major.parse().unwrap_or(0), minor.parse().unwrap_or(0)))
    }
}

async fn awaited<T>(find: impl Fn() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        let found = find();
        if found.is_some() || began.elapsed() > LIMIT {
            return found;
        }
        sleep(PAUSE).await;
    }
}

fn listed(list: Option<&PathBuf>, address: &str) -> Option<String> {
    let Some(list) = list else { return Some(address.to_owned()) };
    let text = fs::read_to_string(list).unwrap_or_default();
    text.lines().map(str::trim).find(|line| *line == address).map(str::to_owned)
}

fn first(dir: &str) -> Option<String> {
    let entry = fs::read_dir(dir).ok()?.flatten().next()?;
    entry.file_name().into_string().ok()
}

/// The device of a class below a virtio device on the channel.
fn below_ccw(id: &str, class: &str) -> Option<String> {
    let entries = fs::read_dir(format!("/sys/bus/ccw/devices/{id}")).ok()?;
    let mut virtio = entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("virtio"));
    virtio.find_map(|e| first(&e.path().join(class).to_string_lossy()))
}

/// A disk's sequence number: distinguishes one that was replaced under the same name.
fn sequence(disk: &str) -> Option<String> {
    fs::read_to_string(format!("/sys/block/{disk}/diskseq")).ok()
}

fn is_new(disk: &str, cold: &BTreeSet<String>) -> bool {
    // The device node appears a moment before the disk behind it can be opened.
    let ready = fs::File::open(format!("/dev/{disk}")).is_ok();
    ready && sequence(disk).is_some_and(|seq| !cold.contains(&seq))
}

fn rescan(id: u32, lun: u32) -> Result<()> {
    for host in fs::read_dir("/sys/class/scsi_host").trying("scsi hosts")?.flatten() {
        fs::write(host.path().join("scan"), format!("0 {id} {lun}")).trying("scan for SCSI disks")?;
    }
    Ok(())
}
