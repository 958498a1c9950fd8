//! The cache of packed image layers: one read-only erofs image per set of layers, made once and
//! shared by every container that uses it.
//!
//! An image is named `<key>-<digest>.erofs`: the key names the layers, the digest the content,
//! which is checked whenever the image is opened. A user holds a shared lock on the image as long
//! as it is open; eviction takes only what it can lock alone. Building happens into a file without
//! a name, linked when it is whole, so that a crash leaves nothing.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, Flock, FlockArg};
use nix::libc;
use sha2::{Digest, Sha256};
use slog::{Logger, info, warn};
use tokio::net::unix::pipe;

use crate::config::RootfsConfig;
use crate::error::{Code, Context, Error, Result};
use crate::hex::hex;
use crate::host::cgroup;
use crate::host::lock::lock_file;
use crate::host::process::{Ended, Launch, PrivateMount, blocking};
use crate::host::tasks;

/// A packed image in use.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) file: OwnedFd,
    /// The key of a shared image; None for one container's own.
    pub(crate) key: Option<String>,
}

/// What is needed to pack.
#[derive(Clone, Debug)]
pub(crate) struct Packer {
    pub(crate) config: RootfsConfig,
    /// A directory of the pod's own: where the layers are mounted, seen by mkfs alone.
    pub(crate) mount_point: PathBuf,
    /// The pod's cgroup, for the packing program.
    pub(crate) leaf: Option<PathBuf>,
    pub(crate) log: Logger,
}

impl Packer {
    /// The shared image of `layers` (topmost first), packed unless it is in the cache.
    pub(crate) async fn shared(&self, layers: Vec<PathBuf>) -> Result<Image> {
        let dir = self.config.cache_dir.clone();
        let (key, lock) = {
            let layers = layers.clone();
            blocking("open layer cache", move || {
                make_cache_dir(&dir)?;
                let key = key(&layers)?;
                let lock = lock_file(&dir.join(format!("{key}.lock")))?;
                Ok((key, lock))
            })
            .await?
        };
        let (dir, name) = (self.config.cache_dir.clone(), key.clone());
        let log = self.log.clone();
        let found = blocking("check layer image", move || find(&dir, &name, &log)).await?;
        let file = match found {
            Some(file) => file,
            None => self.build(&layers, &key).await?,
        };
        drop(lock);
        let (dir, limit) = (self.config.cache_dir.clone(), self.config.cache_mib << 20);
        drop(blocking("evict layer images", move || evict(&dir, limit)).await);
        Ok(Image { file, key: Some(key) })
    }

    /// An image of directories that only one container uses; it is never in the cache.
    pub(crate) async fn private(&self, layers: Vec<PathBuf>) -> Result<Image> {
        make_cache_dir(&self.config.cache_dir)?;
        let file = self.pack(&layers).await?;
        Ok(Image { file: reopen(&file)?.into(), key: None })
    }

    async fn build(&self, layers: &[PathBuf], key: &str) -> Result<OwnedFd> {
        let began = std::time::Instant::now();
        let file = self.pack(layers).await?;
        let (dir, key) = (self.config.cache_dir.clone(), key.to_owned());
        let (opened, bytes) = blocking("keep layer image", move || {
            let digest = digest(&file)?;
            let name = dir.join(format!("{key}-{digest}.erofs"));
            link(&file, &name)?;
            let bytes = file.metadata().context("layer image")?.len();
            Ok((open_locked(&name)?, bytes))
        })
        .await?;
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(self.log, "packed image layers"; "layers" => layers.len(), "bytes" => bytes, "ms" => ms);
        opened.ok_or_else(|| {
            Error::unavailable("layer image: it was removed while it was being made; try again")
        })
    }

    /// Packs the layers into a file without a name.
    async fn pack(&self, layers: &[PathBuf]) -> Result<File> {
        let full =
            |e: Error| e.context(format!("pack image layers into {}", self.config.cache_dir.display()));
        let image = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(&self.config.cache_dir)
            .with_context(|| format!("make a file in {}", self.config.cache_dir.display()))?;
        let bottom = self.mount_point.join("empty");
        for dir in [&self.mount_point, &bottom, &self.mount_point.join("tree")] {
            fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let (stderr, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make a pipe")?;
        let stderr = pipe::Receiver::from_owned_fd(stderr).context("watch mkfs")?;
        let target = self.mount_point.join("tree");
        let mut launch = Launch {
            program: self.config.mkfs.clone(),
            stderr: Some(theirs),
            cgroup: self.leaf.as_deref().map(cgroup::enter).transpose()?,
            mount: Some(PrivateMount {
                fstype: "overlay",
                target: target.clone(),
                options: overlay_options(layers, &bottom),
            }),
            ..Launch::default()
        };
        let number = launch.fds.give(image.try_clone().context("layer image")?.into());
        launch.args = vec![
            "--quiet".into(),
            "-Enosbcrc".into(),
            format!("/proc/self/fd/{}", number.0).into(),
            target.into(),
        ];
        let child = tasks::reaped(launch.spawn().map_err(full)?);
        let (words, ended) = tokio::join!(output_tail(stderr), child.wait());
        match ended? {
            Ended::Code(0) => Ok(image),
            ended => {
                let no_space = words.contains("No space left") || words.contains("ENOSPC");
                let code = if no_space { Code::ResourceExhausted } else { Code::Internal };
                let program = self.config.mkfs.display();
                Err(full(Error::new(code, format!("{program} ended with {ended}: {words}"))))
            }
        }
    }
}

async fn output_tail(mut stream: pipe::Receiver) -> String {
    use tokio::io::AsyncReadExt;
    let tail = crate::host::tail::Tail::default();
    let mut chunk = [0_u8; 1024];
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        tail.add(chunk.get(..count).unwrap_or_default());
    }
    tail.last_lines(3).join(" | ")
}

/// The data string of an overlay mount. The empty bottom makes one layer an overlay as well.
fn overlay_options(layers: &[PathBuf], bottom: &Path) -> OsString {
    let mut options = OsString::from("lowerdir=");
    for layer in layers.iter().map(PathBuf::as_path).chain([bottom]) {
        if options.as_bytes().last() != Some(&b'=') {
            options.push(":");
        }
        for byte in layer.as_os_str().as_bytes().chunks(1) {
            if matches!(byte, b":" | b"\\" | b",") {
                options.push("\\");
            }
            options.push(std::ffi::OsStr::from_bytes(byte));
        }
    }
    options
}

fn make_cache_dir(dir: &Path) -> Result<()> {
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    crate::host::files::private_dir(dir)
}

/// Names a set of layers: a directory made anew under an old path has another inode or time.
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

/// A read-only descriptor with a position of its own.
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

/// Opens an image for use: shared lock on the descriptor, kept as long as it is open anywhere.
fn open_locked(path: &Path) -> Result<Option<OwnedFd>> {
    let context = || format!("open layer image {}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(context),
    };
    let locked = Flock::lock(file, FlockArg::LockShared).map_err(|(_, e)| e).with_context(context)?;
    // Unlinked by an eviction that was faster: not in the cache any more.
    if locked.metadata().with_context(context)?.nlink() == 0 {
        return Ok(None);
    }
    let fd = locked.try_clone().with_context(context)?.into();
    std::mem::forget(locked); // dropping it would unlock; the kernel does so with the last descriptor
    Ok(Some(fd))
}

/// The cached image of `key`, its content checked; a damaged one is removed.
fn find(dir: &Path, key: &str, log: &Logger) -> Result<Option<OwnedFd>> {
    for (path, _) in images(dir)? {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let Some(wanted) = name.strip_prefix(key).and_then(|n| n.strip_prefix('-')?.strip_suffix(".erofs"))
        else {
            continue;
        };
        let Some(fd) = open_locked(&path)? else { continue };
        let file = File::from(fd);
        if digest(&file)? == wanted {
            // Marks the use, for the eviction's order.
            drop(file.set_modified(std::time::SystemTime::now()));
            return Ok(Some(file.into()));
        }
        warn!(log, "layer image {} is damaged: it is made anew", path.display());
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(None)
}

fn images(dir: &Path) -> Result<Vec<(PathBuf, fs::Metadata)>> {
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

/// Removes unused images, least recently used first, until the rest fits into `limit` bytes.
fn evict(dir: &Path, limit: u64) -> Result<()> {
    let mut all = images(dir)?;
    all.sort_by_key(|(_, meta)| meta.mtime());
    let mut total: u64 = all.iter().map(|(_, meta)| meta.len()).sum();
    for (path, meta) in all {
        if total <= limit {
            break;
        }
        let Ok(file) = File::open(&path) else { continue };
        if let Ok(_alone) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            total = total.saturating_sub(meta.len());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &Path, key: &str, content: &[u8]) -> PathBuf {
        let path = dir.join(format!("{key}-{}.erofs", hex(&Sha256::digest(content))));
        fs::write(&path, content).expect("write");
        path
    }

    fn log() -> Logger {
        Logger::root(slog::Discard, slog::o!())
    }

    #[test]
    fn a_damaged_image_is_never_used() {
        let dir = tempfile::tempdir().expect("dir");
        let path = image(dir.path(), "k", b"layers");
        assert!(find(dir.path(), "k", &log()).expect("find").is_some());
        assert!(find(dir.path(), "other", &log()).expect("find").is_none());
        fs::write(&path, b"layerz").expect("damage");
        assert!(find(dir.path(), "k", &log()).expect("find").is_none());
        assert!(!path.exists());
    }

    #[test]
    fn eviction_takes_the_oldest_and_never_what_is_used() {
        let dir = tempfile::tempdir().expect("dir");
        let old = image(dir.path(), "a", &[1; 1000]);
        let used = image(dir.path(), "b", &[2; 1000]);
        let new = image(dir.path(), "c", &[3; 1000]);
        for (path, age) in [(&old, 300), (&used, 600), (&new, 0)] {
            let when = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
            File::options().append(true).open(path).expect("open").set_modified(when).expect("age");
        }
        let _use = open_locked(&used).expect("open").expect("there");
        evict(dir.path(), 2000).expect("evict");
        assert_eq!((old.exists(), used.exists(), new.exists()), (false, true, true));
    }

    #[test]
    fn a_directory_made_anew_is_another_layer() {
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

    #[test]
    fn overlay_options_escape_what_separates() {
        let options = overlay_options(&["/a:b".into(), "/c,d".into()], Path::new("/e"));
        assert_eq!(options, "lowerdir=/a\\:b:/c\\,d:/e");
    }
}
