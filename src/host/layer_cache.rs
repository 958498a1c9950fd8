//! The cache of packed image layers: one read-only erofs image per set of layers, made once and
//! shared by every container that uses it.
//!
//! An image is named `<key>-<digest>.erofs`: the key names the layers, the digest the content, which is
//! checked when the image is first opened after the host's boot, and again when the file has changed. An opened
//! image has a shared lock until its last descriptor is closed; eviction removes only what it can lock
//! exclusively, the one that was not used for longest first: by the time of access, which each use sets.

use std::fs::{self, File, FileTimes};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use nix::fcntl::{AtFlags, Flock, FlockArg};
use rustix::fs::FallocateFlags;
use sha2::{Digest, Sha256};
use slog::{Logger, info, warn};
use tokio::time::sleep;

use crate::error::{Context, Error, Result};
use crate::hex::hex;
use crate::host::begun::blocking;
use crate::host::digest_cache::LayerNote;
use crate::host::files::{make_dirs, private_dir};
use crate::host::layer_pack::Packer;
use crate::host::layer_room::{LayerSpace, Room, images};
use crate::host::layer_size::{LayerSize, on_disk};
use crate::host::lock::try_lock_file;
use crate::host::log;
use crate::limits;

/// A packed image in use.
#[derive(Debug)]
pub(crate) struct LayerImage {
    pub(crate) file: OwnedFd,
    /// The key of a shared image; None for one that only its container uses.
    pub(crate) key: Option<String>,
    /// What an image of one container takes of the disk.
    pub(crate) room: Option<Room>,
}

/// The node's cache, and what fills it.
#[derive(Clone, Debug)]
pub(crate) struct LayerCache {
    /// Where notes on verified images are.
    pub(crate) notes: PathBuf,
    pub(crate) space: LayerSpace,
    pub(crate) packer: Packer,
    pub(crate) log: Logger,
}

impl LayerCache {
    /// The shared image of `layers` (topmost first), packed unless it is in the cache.
    pub(crate) async fn shared(&self, layers: Vec<PathBuf>) -> Result<LayerImage> {
        let dir = self.dir().to_path_buf();
        let key = {
            let layers = layers.clone();
            blocking("open layer cache", move || {
                make_dir(&dir)?;
                key(&layers)
            })
            .await?
        };
        let lock_path = self.dir().join(format!("{key}.lock"));
        let _lock = loop {
            match KeyLock::try_take(&lock_path)? {
                Some(lock) => break lock,
                None => sleep(limits::host::LAYERS_PAUSE).await,
            }
        };
        let (cache, name) = (self.clone(), key.clone());
        let found = blocking("check layer image", move || cache.find(&name)).await?;
        let file = match found {
            Some(file) => file,
            None => self.add(layers, &key).await?,
        };
        Ok(LayerImage { file, key: Some(key), room: None })
    }

    /// An image of directories that only one container uses; it is never in the cache.
    pub(crate) async fn private(&self, layers: Vec<PathBuf>) -> Result<LayerImage> {
        make_dir(self.dir())?;
        let packed = self.pack(layers).await?;
        let space = self.space.clone();
        blocking("keep layer image", move || {
            let meta = packed.file.metadata().context("layer image")?;
            let room = space.keep(&packed.room, on_disk(&meta))?;
            Ok(LayerImage { file: reopen(&packed.file)?.into(), key: None, room: Some(room) })
        })
        .await
    }

    /// Packs the layers, once there is room for them.
    async fn pack(&self, layers: Vec<PathBuf>) -> Result<Packed> {
        let size = LayerSize::of(layers.clone()).await?;
        let (space, needed) = (self.space.clone(), size.clone());
        let room = blocking("make room for layers", move || space.take(&needed)).await?;
        let file = self.packer.pack(&layers, self.dir(), size.bytes).await?;
        if size.holes {
            let image = file.try_clone().context("layer image")?;
            blocking("punch holes", move || punch_holes(&image)).await?;
        }
        Ok(Packed { file, room })
    }

    fn dir(&self) -> &Path {
        &self.space.cache
    }

    /// The cached image of `key` whose content is what its name says; a damaged one is removed.
    fn find(&self, key: &str) -> Result<Option<OwnedFd>> {
        for (path, _) in images(self.dir())? {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let Some(wanted) =
                name.strip_prefix(key).and_then(|n| n.strip_prefix('-')?.strip_suffix(".erofs"))
            else {
                continue;
            };
            let Some(fd) = open_locked(&path)? else { continue };
            let file = File::from(fd);
            let note = LayerNote::of(&file.metadata().context("layer image")?, wanted);
            let noted = note.is_in(&self.notes);
            if noted || digest(&file)? == wanted {
                if !noted {
                    note.write_to(&self.notes);
                }
                // If it cannot be set, this one is evicted earlier.
                file.set_times(FileTimes::new().set_accessed(SystemTime::now())).ok();
                return Ok(Some(file.into()));
            }
            warn!(self.log, "layer image {} is damaged: packing it again", path.display());
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(None)
    }

    async fn add(&self, layers: Vec<PathBuf>, key: &str) -> Result<OwnedFd> {
        let (began, count) = (Instant::now(), layers.len());
        let packed = self.pack(layers).await?;
        let (dir, notes, key) = (self.dir().to_path_buf(), self.notes.clone(), key.to_owned());
        let (opened, bytes) = blocking("keep layer image", move || {
            let digest = digest(&packed.file)?;
            let name = dir.join(format!("{key}-{digest}.erofs"));
            link(&packed.file, &name)?;
            let meta = packed.file.metadata().context("layer image")?;
            LayerNote::of(&meta, &digest).write_to(&notes);
            Ok((open_locked(&name)?, meta.len()))
        })
        .await?;
        let ms = log::ms(began.elapsed());
        info!(self.log, "packed image layers"; "layers" => count, "bytes" => bytes, "ms" => ms);
        opened.ok_or_else(|| {
            Error::unavailable("layer image: it was removed while it was being made; try again")
        })
    }
}

/// A packed image without a name, and its room.
struct Packed {
    file: File,
    room: Room,
}

/// The lock of a key, while its image is looked for and packed; its file goes with it.
struct KeyLock {
    path: PathBuf,
    _held: Flock<File>,
}

impl KeyLock {
    fn try_take(path: &Path) -> Result<Option<Self>> {
        Ok(try_lock_file(path)?.map(|held| Self { path: path.to_path_buf(), _held: held }))
    }
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok(); // before it is released; who packs next removes one that stays
    }
}

fn make_dir(dir: &Path) -> Result<()> {
    if let Some(parent) = dir.parent() {
        make_dirs(parent, 0o755)?;
    }
    private_dir(dir)
}

/// Names a set of layers. A directory that was replaced has another inode or time.
fn key(layers: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    for layer in layers {
        let meta = fs::metadata(layer).with_context(|| format!("image layer {}", layer.display()))?;
        let path = layer.as_os_str().as_bytes();
        hash.update((path.len() as u64).to_be_bytes());
        hash.update(path);
        for number in [meta.dev(), meta.ino()] {
            hash.update(number.to_be_bytes());
        }
        for number in [meta.ctime(), meta.ctime_nsec()] {
            hash.update(number.to_be_bytes());
        }
    }
    Ok(hex(&hash.finalize()[..16]))
}

fn digest(file: &File) -> Result<String> {
    let mut hash = Sha256::new();
    let mut reader = reopen(file)?;
    let mut chunk = vec![0; 1 << 18];
    loop {
        match reader.read(&mut chunk).context("read layer image")? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(chunk.get(..count).unwrap_or_default()),
        }
    }
}

/// A read-only descriptor with a separate position.
fn reopen(file: &File) -> Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).context("reopen layer image")
}

fn link(file: &File, name: &Path) -> Result<()> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    let cwd = nix::fcntl::AT_FDCWD;
    match nix::unistd::linkat(cwd, from.as_str(), cwd, name, AtFlags::AT_SYMLINK_FOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("keep layer image {}", name.display())),
    }
}

/// Opens an image for use, with a shared lock that lasts until its last descriptor is closed.
fn open_locked(path: &Path) -> Result<Option<OwnedFd>> {
    let context = || format!("open layer image {}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(context),
    };
    let locked = Flock::lock(file, FlockArg::LockShared).map_err(|(_, e)| e).with_context(context)?;
    // An eviction was faster: it is not in the cache any more.
    if locked.metadata().with_context(context)?.nlink() == 0 {
        return Ok(None);
    }
    let fd = locked.try_clone().with_context(context)?.into();
    std::mem::forget(locked); // dropping it would unlock; the kernel does so with the last descriptor
    Ok(Some(fd))
}

/// Gives back the blocks of zeros that holes of files became.
fn punch_holes(image: &File) -> Result<()> {
    const BLOCK: usize = 4096;
    let context = || "punch holes into a layer image";
    let mut chunk = vec![0; 1 << 18];
    let mut at = 0;
    loop {
        let count = image.read_at(&mut chunk, at).with_context(context)?;
        if count == 0 {
            return Ok(());
        }
        // Runs of blocks of zeros; the last part of a chunk, if it is no block, stays as it is.
        let blocks = chunk.get(..count).unwrap_or_default().chunks_exact(BLOCK).enumerate();
        let zeros = blocks.filter(|(_, block)| block.iter().all(|byte| *byte == 0)).map(|(n, _)| n as u64);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for n in zeros {
            match runs.last_mut() {
                Some((_, end)) if *end == n => *end = n + 1,
                _ => runs.push((n, n + 1)),
            }
        }
        for (from, to) in runs {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let (from, to) = (at + from * BLOCK as u64, at + to * BLOCK as u64);
            match rustix::fs::fallocate(image, flags, from, to - from) {
                Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
                punched => punched.map_err(std::io::Error::from).with_context(context)?,
            }
        }
        at += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &Path, key: &str, content: &[u8]) -> PathBuf {
        let path = dir.join(format!("{key}-{}.erofs", hex(&Sha256::digest(content))));
        fs::write(&path, content).expect("write");
        path
    }

    fn cache(dir: &Path) -> LayerCache {
        let packer =
            Packer { mkfs: PathBuf::new(), mount_point: PathBuf::new(), leaf: PathBuf::new(), user: None };
        private_dir(&dir.join("notes")).expect("folder");
        let notes = dir.join("notes");
        let space = LayerSpace { cache: dir.to_path_buf(), pod: dir.join("pod"), limit: 0 };
        LayerCache { notes, space, packer, log: Logger::root(slog::Discard, slog::o!()) }
    }

    #[test]
    fn a_damaged_image_is_never_used() {
        let dir = tempfile::tempdir().expect("dir");
        let cache = cache(dir.path());
        let path = image(dir.path(), "k", b"layers");
        assert!(cache.find("k").expect("find").is_some());
        assert!(cache.find("other").expect("find").is_none());
        fs::write(&path, b"layerz").expect("damage");
        assert!(cache.find("k").expect("find").is_none());
        assert!(!path.exists());
    }

    #[test]
    fn an_image_that_has_not_changed_is_read_once_a_boot() {
        let dir = tempfile::tempdir().expect("dir");
        let cache = cache(dir.path());
        let path = image(dir.path(), "k", b"layers");
        let before = fs::metadata(&path).expect("metadata").modified().expect("time");
        assert!(cache.find("k").expect("find").is_some());
        // The same state of the file with another content: who finds it has not read it.
        fs::write(&path, b"layerz").expect("change");
        File::options().append(true).open(&path).expect("open").set_modified(before).expect("time");
        assert!(cache.find("k").expect("find").is_some());
        fs::remove_dir_all(&cache.notes).expect("a boot");
        assert!(cache.find("k").expect("find").is_none());
    }

    #[test]
    fn holes_are_holes_again() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("image");
        let mut content = vec![0; 3 << 20];
        content[..10].fill(1);
        content[(1 << 20) + 5000] = 2;
        content.extend([0, 0, 3]);
        fs::write(&path, &content).expect("write");
        let image = File::options().read(true).write(true).open(&path).expect("open");
        punch_holes(&image).expect("punch");
        assert!(fs::read(&path).expect("read") == content);
        assert!(on_disk(&image.metadata().expect("metadata")) <= 64 << 10);
    }

    #[test]
    fn folders_above_the_cache_have_their_mode_whatever_the_umask() {
        let dir = tempfile::tempdir().expect("dir");
        let cache = dir.path().join("a/b/cache");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // The umask of this thread alone.
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).expect("own umask");
                nix::sys::stat::umask(nix::sys::stat::Mode::empty());
                make_dir(&cache).expect("make");
            });
        });
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o7777;
        assert_eq!(["a", "a/b", "a/b/cache"].map(|name| mode(&dir.path().join(name))), [0o755, 0o755, 0o700]);
    }

    #[test]
    fn a_replaced_directory_is_another_layer() {
        let dir = tempfile::tempdir().expect("dir");
        let layer = dir.path().join("l");
        fs::create_dir(&layer).expect("mkdir");
        let first = key(std::slice::from_ref(&layer)).expect("key");
        assert_eq!(key(std::slice::from_ref(&layer)), Ok(first.clone()));
        fs::remove_dir(&layer).expect("rmdir");
        fs::create_dir(dir.path().join("other")).expect("takes the inode");
        fs::create_dir(&layer).expect("mkdir");
        assert_ne!(key(&[layer]), Ok(first));
    }
}
