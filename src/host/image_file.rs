//! An image file, opened once and read at offsets; `image` reads what is in it.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Result as IoResult;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

use crate::error::{Error, Result};
use crate::host::files::open_error;
use crate::image::ReadAt;

/// An opened regular file. Replacing the file by renaming another over it does not change this one.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    identity: Identity,
}

/// A file in one state: equal values mean equal content, as far as the file system shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    /// Of the last change of content, seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Of the last change of anything; `touch` cannot set it back.
    pub changed: (i64, i64),
}

impl ImageFile {
    /// Opens the file. Anything but a regular file is refused, without waiting for it.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e| open_error(format_args!("open image {}", path.display()), &e);
        // O_NONBLOCK: a fifo in the file's place must not block us.
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            let text = format!("open image {}: is {}, must be a regular file", path.display(), kind(&meta));
            return Err(Error::invalid(text));
        }
        Ok(Self { file, identity: Identity::of(&meta) })
    }

    /// The file as it was when it was opened.
    pub fn identity(&self) -> Identity {
        self.identity
    }
}

impl Identity {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl ReadAt for ImageFile {
    fn size(&self) -> u64 {
        self.identity.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> IoResult<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

fn kind(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a fifo",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() => "a block device",
        () => "a device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::image::{ImageError, read, verify};

    const IMAGE: &[u8] = include_bytes!("../image/testdata/by-hand.img");

    #[test]
    fn an_image_file_reads_like_its_bytes() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("image");
        std::fs::write(&path, IMAGE).expect("write");
        let file = ImageFile::open(&path).expect("open");
        let image = read(&file).expect("image");
        assert_eq!(image, read(IMAGE).expect("image"));
        let list = image.ipib.as_ref().expect("list");
        assert!(verify(&file, &image.header, list, |_, _| {}).expect("read").untouched());
        assert_eq!(ImageFile::open(&path).expect("again").identity(), file.identity());
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().expect("dir");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        let refused = |path: &Path| ImageFile::open(path).expect_err("refused").to_string();
        let (dir, fifo) = (dir.path(), fifo.as_path());
        assert_eq!(
            refused(dir),
            format!("open image {}: is a directory, must be a regular file", dir.display())
        );
        assert!(refused(fifo).ends_with("is a fifo, must be a regular file"));
        assert!(refused(Path::new("/dev/null")).ends_with("is a device, must be a regular file"));
        let missing = ImageFile::open(&dir.join("missing")).expect_err("missing");
        assert_eq!(missing.code(), Code::NotFound);
    }

    #[test]
    fn a_file_that_shrinks_or_is_empty_is_a_flaw() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("image");
        std::fs::write(&path, IMAGE).expect("write");
        let file = ImageFile::open(&path).expect("open");
        let whole = OpenOptions::new().write(true).open(&path).expect("open");
        whole.set_len(0x17100).expect("shrink");
        assert!(matches!(read(&file), Err(ImageError::Shrank { .. })));
        whole.set_len(0).expect("shrink");
        let empty = ImageFile::open(&path).expect("open");
        assert_eq!(read(&empty), Err(ImageError::NotSealed { size: 0 }));
    }
}
