//! Which files were verified, sealed images and packed layers: a small note per file, so that its content is
//! hashed once and not at every start. The notes' folder does not outlive the host's boot.
//!
//! A note is about one state of one file (device, inode, size, times) and its content's name. It is
//! ignored unless only our user can have written it. Two shims may write the same note at once: at
//! worst both hash the file. Only good verdicts are noted: a bad one is found again at the next start.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::hex::hex;
use crate::host::files::{read_bounded, write_atomic};
use crate::host::image_file::{Identity, ImageFile};
use crate::image::{ImageError, SealedImage, Verdict, verify};
use crate::limits;

/// Prefix of every note's name.
const PREFIX: &str = "verified-";

/// The digests' verdict, from a note or by reading the whole file (`progress` gets the bytes read and their
/// total). None: the image has no component list, so that nothing can be checked.
pub(crate) fn verdict(
    folder: &Path,
    file: &ImageFile,
    image: &SealedImage,
    progress: impl FnMut(u64, u64),
) -> Result<Option<Verdict>, ImageError> {
    let Some(ipib) = &image.ipib else { return Ok(None) };
    let note = Note::of(sealed(&file.identity(), image));
    let pages = image.header.pages;
    if note.is_in(folder) {
        return Ok(Some(Verdict { content: true, addresses: true, tweaks: true, pages: (pages, pages) }));
    }
    let verdict = verify(file, &image.header, ipib, progress)?;
    if verdict.untouched() {
        note.write_to(folder);
    }
    Ok(Some(verdict))
}

fn sealed(identity: &Identity, image: &SealedImage) -> String {
    format!(
        "device {} inode {} size {} modified {:?} changed {:?} tag {:02x?}\n",
        identity.device, identity.inode, identity.size, identity.modified, identity.changed, image.header.tag
    )
}

/// A note about a packed image of this digest. Each use sets the file's time of access, and with it the time of
/// its last change: that one does not count.
pub(super) struct LayerNote(Note);

impl LayerNote {
    pub(super) fn of(meta: &fs::Metadata, digest: &str) -> Self {
        let (device, inode, size) = (meta.dev(), meta.ino(), meta.len());
        let modified = (meta.mtime(), meta.mtime_nsec());
        Self(Note::of(format!(
            "device {device} inode {inode} size {size} modified {modified:?} digest {digest}\n"
        )))
    }

    pub(super) fn is_in(&self, folder: &Path) -> bool {
        self.0.is_in(folder)
    }

    pub(super) fn write_to(&self, folder: &Path) {
        self.0.write_to(folder);
    }
}

struct Note {
    name: String,
    text: String,
}

impl Note {
    fn of(text: String) -> Self {
        let digest = Sha256::digest(&text);
        Self { name: format!("{PREFIX}{}", hex(&digest[..16])), text }
    }

    fn is_in(&self, folder: &Path) -> bool {
        let path = folder.join(&self.name);
        is_ours(folder, true) && is_ours(&path, false) && {
            let most = self.text.len() as u64;
            read_bounded(&path, most).is_ok_and(|bytes| bytes == self.text.as_bytes())
        }
    }

    /// A note that cannot be written is no error. At the bound, all others are removed.
    fn write_to(&self, folder: &Path) {
        if !is_ours(folder, true) {
            return;
        }
        let notes: Vec<_> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
            .collect();
        if notes.len() >= limits::host::VERIFIED_NOTES {
            for note in notes {
                fs::remove_file(note.path()).ok();
            }
        }
        write_atomic(folder, &self.name, self.text.as_bytes()).ok();
    }
}

/// Whether it is a directory or file as wanted, and only our user can have written it.
fn is_ours(path: &Path, folder: bool) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    fs::symlink_metadata(path).is_ok_and(|meta| {
        let kind = if folder { meta.is_dir() } else { meta.is_file() };
        kind && meta.uid() == own && meta.mode() & 0o077 == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    const IMAGE: &[u8] = include_bytes!("../image/testdata/by-hand.img");

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("dir");
            let place = Self { dir };
            fs::create_dir(place.folder()).expect("mkdir");
            fs::set_permissions(place.folder(), Permissions::from_mode(0o700)).expect("chmod");
            fs::write(place.image(), IMAGE).expect("write");
            place
        }

        fn folder(&self) -> std::path::PathBuf {
            self.dir.path().join("state")
        }

        fn image(&self) -> std::path::PathBuf {
            self.dir.path().join("image")
        }

        /// The verdict, and whether the content was read for it.
        fn check(&self) -> (bool, bool) {
            let file = ImageFile::open(&self.image()).expect("open");
            let image = crate::image::read(&file).expect("image");
            let read = Cell::new(false);
            let verdict = verdict(&self.folder(), &file, &image, |_, _| read.set(true)).expect("read");
            (verdict.expect("list").untouched(), read.get())
        }
    }

    #[test]
    fn content_is_read_once_for_each_state_of_the_file() {
        let place = Place::new();
        assert_eq!(place.check(), (true, true));
        assert_eq!(place.check(), (true, false));
        let mut other = IMAGE.to_vec();
        let last = other.len() - 5000;
        other[last] ^= 1;
        fs::write(place.dir.path().join("new"), IMAGE).expect("write");
        fs::rename(place.dir.path().join("new"), place.image()).expect("rename");
        assert_eq!(place.check(), (true, true));
    }

    #[test]
    fn a_bad_verdict_is_not_kept() {
        let place = Place::new();
        let file = ImageFile::open(&place.image()).expect("open");
        let image = crate::image::read(&file).expect("image");
        let at = image.ipib.expect("list").components.first().expect("component").address;
        let mut bytes = IMAGE.to_vec();
        bytes[usize::try_from(at).expect("small")] ^= 1;
        fs::write(place.image(), bytes).expect("write");
        assert_eq!(place.check(), (false, true));
        assert_eq!(place.check(), (false, true));
    }

    #[test]
    fn a_note_others_could_have_written_does_not_count() {
        let place = Place::new();
        assert_eq!(place.check(), (true, true));
        let note = fs::read_dir(place.folder()).expect("list").next().expect("note").expect("entry").path();
        fs::set_permissions(&note, Permissions::from_mode(0o620)).expect("chmod");
        assert_eq!(place.check(), (true, true));
        assert_eq!(place.check(), (true, false), "it was written again");
        fs::set_permissions(place.folder(), Permissions::from_mode(0o770)).expect("chmod");
        assert_eq!(place.check(), (true, true));
        fs::set_permissions(place.folder(), Permissions::from_mode(0o700)).expect("chmod");
        fs::write(&note, "half").expect("write");
        assert_eq!(place.check(), (true, true));
    }

    #[test]
    fn notes_do_not_pile_up() {
        let place = Place::new();
        for n in 0..limits::host::VERIFIED_NOTES {
            fs::write(place.folder().join(format!("{PREFIX}{n}")), "").expect("write");
        }
        fs::create_dir(place.folder().join("a-pod")).expect("mkdir");
        place.check();
        assert_eq!(fs::read_dir(place.folder()).expect("list").count(), 2);
    }
}
