//! Room for packed images on the node's disk, shared by all shims without a server.
//!
//! An image takes room before it is packed, as much as it can become. That is a file with the number of bytes in
//! the pod's own folder: it goes with the pod, however the pod ends. The room of an image that stays without a name,
//! for one container, goes with the container; a shared image is counted by its file from then on.
//!
//! Who takes room has the lock of the cache's folder, counts the images and the rooms of all pods, and evicts
//! images that no guest uses, those not used for longest first, until its own fits into the cache's limit and leaves
//! the disk's reserve. What does not fit then is refused.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::{Statvfs, statvfs};

use crate::error::{Code, Context, Error, Result};
use crate::host::files::{private_dir, random, read_bounded, write_atomic};
use crate::host::layer_size::{LayerSize, on_disk};
use crate::host::lock::{lock_folder, try_lock_file};
use crate::limits;

/// The folder in a pod's folder that its rooms are in.
const ROOMS: &str = "rooms";

/// Ends the name of a room whose image is being packed: its bytes are not on the disk yet.
const PACKING: &str = "packing";

/// Where room is taken, and how much there is.
#[derive(Clone, Debug)]
pub(crate) struct LayerSpace {
    /// The images' folder.
    pub(crate) cache: PathBuf,
    /// The pod's folder, beside those of all pods.
    pub(crate) pod: PathBuf,
    /// Bytes of all images together.
    pub(crate) limit: u64,
}

/// Room of one image, until this is dropped.
#[derive(Debug)]
pub(crate) struct Room(PathBuf);

impl Drop for Room {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok(); // it goes with the pod's folder at the latest
    }
}

/// Bytes of a disk that packing leaves free: a twentieth, for the kubelet begins to evict pods at a tenth, and
/// less on a large disk.
pub(crate) fn reserve(disk: &Statvfs) -> u64 {
    let bytes = disk.blocks().saturating_mul(disk.fragment_size());
    (bytes / 20).min(limits::host::LAYERS_RESERVE)
}

/// Bytes that packing may take of a disk.
pub(crate) fn free(disk: &Statvfs) -> u64 {
    disk.blocks_available().saturating_mul(disk.fragment_size()).saturating_sub(reserve(disk))
}

impl LayerSpace {
    /// Takes room for an image of this size. Blocks.
    pub(super) fn take(&self, size: &LayerSize) -> Result<Room> {
        let lock = lock_folder(&self.cache, limits::host::CLEANUP_STEP);
        let _lock = lock.ok_or_else(|| {
            Error::unavailable(format!("lock {}: another shim holds it and hangs", self.cache.display()))
        })?;
        let all = self.cache.display();
        let rooms = self.rooms()?;
        let (under_way, kept): (Vec<_>, Vec<_>) = rooms.into_iter().partition(|(packing, _)| *packing);
        let sum = |rooms: &[(bool, u64)]| rooms.iter().map(|(_, bytes)| *bytes).sum::<u64>();
        let (under_way, kept) = (sum(&under_way), sum(&kept));
        remove_idle_locks(&self.cache);
        let mut images = images(&self.cache)?;
        images.sort_by_key(|(_, meta)| meta.atime());
        let mut unused = images.iter();
        let mut used = images.iter().map(|(_, meta)| on_disk(meta)).sum::<u64>() + kept;
        let wanted = size.bytes.saturating_add(under_way);
        loop {
            let disk = statvfs(&self.cache).with_context(|| format!("free space of {all}"))?;
            let (on_disk_free, allowed) = (free(&disk), self.limit.saturating_sub(used));
            if wanted <= on_disk_free && wanted <= allowed {
                break;
            }
            if let Some((path, meta)) = unused.next() {
                if evict(path)? {
                    used = used.saturating_sub(on_disk(meta));
                }
                continue;
            }
            let mib = |bytes: u64| bytes >> 20;
            let packing = match under_way {
                0 => String::new(),
                bytes => format!(", of which other pods pack up to {} MiB", bytes.div_ceil(1 << 20)),
            };
            let why = if wanted > allowed {
                format!(
                    "rootfs.cache_mib = {} leaves {} MiB beside images in use{packing}: raise it, or end pods",
                    mib(self.limit),
                    mib(allowed)
                )
            } else {
                format!(
                    "{all} has {} MiB{packing}, beside {} MiB that are kept free: free some of the disk, or set \
                     rootfs.cache_dir to another one",
                    mib(on_disk_free),
                    mib(reserve(&disk))
                )
            };
            return Err(Error::new(
                Code::ResourceExhausted,
                format!("image layers: they need up to {}, and {why}", size.text()),
            ));
        }
        private_dir(&self.pod.join(ROOMS))?;
        self.room(&format!("{:016x}.{PACKING}", random()?), size.bytes)
    }

    /// The room of an image that has been packed and stays for one container.
    pub(super) fn keep(&self, packed: &Room, bytes: u64) -> Result<Room> {
        let name = packed.0.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        self.room(name, bytes)
    }

    fn room(&self, name: &str, bytes: u64) -> Result<Room> {
        let folder = self.pod.join(ROOMS);
        write_atomic(&folder, name, bytes.to_string().as_bytes())?;
        Ok(Room(folder.join(name)))
    }

    /// The rooms of all pods: whether the image is being packed, and its bytes.
    fn rooms(&self) -> Result<Vec<(bool, u64)>> {
        let all = self.pod.parent().unwrap_or(&self.pod);
        let mut found = Vec::new();
        for pod in fs::read_dir(all).with_context(|| format!("read {}", all.display()))?.flatten() {
            // Most pods have none, and a pod may end meanwhile.
            let Ok(rooms) = fs::read_dir(pod.path().join(ROOMS)) else { continue };
            for room in rooms.flatten().map(|room| room.path()) {
                let Ok(text) = read_bounded(&room, limits::host::ROOM_BYTES) else { continue };
                let bytes = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
                found.push((room.extension().is_some_and(|e| e == PACKING), bytes.unwrap_or(0)));
            }
        }
        Ok(found)
    }
}

/// The shared images in a folder.
pub(super) fn images(dir: &Path) -> Result<Vec<(PathBuf, fs::Metadata)>> {
    let context = || format!("read {}", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if path.extension().is_some_and(|e| e == "erofs") {
            if let Ok(meta) = fs::symlink_metadata(&path) {
                found.push((path, meta));
            }
        }
    }
    Ok(found)
}

/// Removes an image, unless a guest uses it: then it is locked.
fn evict(path: &Path) -> Result<bool> {
    let Ok(file) = File::open(path) else { return Ok(true) };
    let Ok(_alone) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return Ok(false) };
    fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    Ok(true)
}

/// Removes the lock files of shims that were killed while they packed.
fn remove_idle_locks(dir: &Path) {
    for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|e| e == "lock") {
            if let Ok(Some(_held)) = try_lock_file(&path) {
                fs::remove_file(&path).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::files::make_dirs;
    use std::fs::FileTimes;
    use std::time::{Duration, SystemTime};

    const MIB: u64 = 1 << 20;

    fn space(dir: &Path, pod: &str, limit: u64) -> LayerSpace {
        let space = LayerSpace { cache: dir.join("cache"), pod: dir.join("run").join(pod), limit };
        make_dirs(&space.cache, 0o700).expect("cache");
        make_dirs(&space.pod, 0o700).expect("pod");
        space
    }

    fn size(bytes: u64) -> LayerSize {
        LayerSize { bytes, ..LayerSize::default() }
    }

    fn image(space: &LayerSpace, name: &str, age: u64) -> PathBuf {
        let path = space.cache.join(format!("{name}.erofs"));
        fs::write(&path, vec![1; 1 << 20]).expect("image");
        let when = SystemTime::now() - Duration::from_secs(age);
        let file = File::options().append(true).open(&path).expect("open");
        file.set_times(FileTimes::new().set_accessed(when)).expect("age");
        path
    }

    #[test]
    fn the_oldest_images_that_nobody_uses_make_room_and_then_no_more_is_given() {
        let dir = tempfile::tempdir().expect("dir");
        let space = space(dir.path(), "a", 4 * MIB);
        let images = [("old", 300), ("used", 600), ("new", 0)].map(|(name, age)| image(&space, name, age));
        let used = File::open(&images[1]).expect("open");
        let _use = Flock::lock(used, FlockArg::LockSharedNonblock).expect("lock");
        let there = || images.each_ref().map(|path| path.exists());

        let first = space.take(&size(MIB)).expect("there is one more");
        assert_eq!(there(), [true, true, true]);
        let second = space.take(&size(MIB)).expect("the oldest unused one goes");
        assert_eq!(there(), [false, true, true]);
        let e = space.take(&size(2 * MIB)).expect_err("one is in use, and room is taken").to_string();
        assert_eq!(
            e,
            "image layers: they need up to 2 MiB, and rootfs.cache_mib = 4 leaves 3 MiB beside images in use, of \
             which other pods pack up to 2 MiB: raise it, or end pods"
        );
        assert_eq!(there(), [false, true, false]);
        drop((first, second));
        space.take(&size(3 * MIB)).expect("room was given back");
    }

    #[test]
    fn all_pods_see_the_room_of_each_until_it_is_gone() {
        let dir = tempfile::tempdir().expect("dir");
        let (one, other) = (space(dir.path(), "a", 8 * MIB), space(dir.path(), "b", 8 * MIB));
        let packing = one.take(&size(6 * MIB)).expect("take");
        assert!(other.take(&size(3 * MIB)).is_err());
        // Packed, it is smaller, for as long as its container runs.
        let kept = one.keep(&packing, 2 * MIB).expect("keep");
        drop(packing);
        drop(other.take(&size(6 * MIB)).expect("fits"));
        let e = other.take(&size(7 * MIB)).expect_err("does not").to_string();
        assert!(e.contains("leaves 6 MiB beside images in use: raise it"), "{e}");
        // The shim was killed, and its pod deleted.
        std::mem::forget(kept);
        fs::remove_dir_all(&one.pod).expect("delete");
        other.take(&size(7 * MIB)).expect("fits");
    }

    #[test]
    fn the_disks_reserve_is_left() {
        let dir = tempfile::tempdir().expect("dir");
        let space = space(dir.path(), "a", u64::MAX);
        let disk = statvfs(&space.cache).expect("disk");
        let e = space.take(&size(free(&disk) + 256 * MIB)).expect_err("full").to_string();
        let kept = format!("beside {} MiB that are kept free: free some of the disk", reserve(&disk) >> 20);
        assert!(e.contains(&kept), "{e}");
        assert_eq!(fs::read_dir(&space.pod).expect("pod").count(), 0, "nothing is left of it");
    }

    #[test]
    fn the_lock_of_a_shim_that_was_killed_goes_and_one_that_is_held_stays() {
        let dir = tempfile::tempdir().expect("dir");
        let space = space(dir.path(), "a", 8 * MIB);
        private_dir(&space.cache).expect("private");
        let (idle, held) = (space.cache.join("idle.lock"), space.cache.join("held.lock"));
        fs::write(&idle, "").expect("left behind");
        let _held = try_lock_file(&held).expect("lock").expect("free");
        space.take(&size(1)).expect("take");
        assert_eq!((idle.exists(), held.exists()), (false, true));
    }
}
