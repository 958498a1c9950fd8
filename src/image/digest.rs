//! Checks an image's pages against the digests in its header; no key is needed.
//!
//! This proves that a file is complete and unmodified, not who made it. One digest covers the whole
//! content, so a difference cannot be located; only which of the four values differs is known. SHA-512
//! is sequential: one thread hashes the content while a second reads ahead and a third hashes the two
//! small lists. More cores do not help, and memory is bounded by the few chunks in flight.

use std::fmt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use sha2::{Digest, Sha512};

use crate::image::error::ImageError;
use crate::image::fields::read_exactly;
use crate::image::header::Header;
use crate::image::ipib::{Component, Ipib, PAGE};
use crate::image::source::ReadAt;
use crate::limits::image::DIGEST_CHUNK_BYTES;
use crate::limits::image::DIGEST_CHUNKS;

/// Which values equal those in the header; if all do, the file is complete and unmodified since it was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub content: bool,
    pub addresses: bool,
    pub tweaks: bool,
    /// The number of pages by the component list, and by the header.
    pub pages: (u64, u64),
}

impl Verdict {
    pub fn untouched(&self) -> bool {
        self.content && self.addresses && self.tweaks && self.pages.0 == self.pages.1
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.untouched() {
            return write!(f, "all {} pages are as they were sealed", self.pages.0);
        }
        let (listed, sealed) = self.pages;
        let count = format!("the number of pages ({listed}, sealed were {sealed})");
        let all = [
            (!self.content, "the content of the pages"),
            (!self.addresses, "the components' addresses"),
            (!self.tweaks, "the components' tweaks"),
            (listed != sealed, count.as_str()),
        ];
        let differ: Vec<_> = all.iter().filter(|(differs, _)| *differs).map(|(_, what)| *what).collect();
        write!(f, "modified or truncated since it was sealed: {}", differ.join(", "))
    }
}

/// Hashes all components, in the list's order. Calls `progress` often, on the caller's thread, with the
/// number of bytes done and of all bytes.
pub fn verify(
    source: &(impl ReadAt + Sync + ?Sized),
    header: &Header,
    ipib: &Ipib,
    mut progress: impl FnMut(u64, u64),
) -> Result<Verdict, ImageError> {
    let components = &ipib.components;
    let total = ipib.pages().saturating_mul(PAGE);
    std::thread::scope(|scope| {
        let lists = scope.spawn(|| lists(components));
        let (filled, chunks) = sync_channel(DIGEST_CHUNKS);
        let (used, spare) = sync_channel(DIGEST_CHUNKS + 1);
        for _ in 0..DIGEST_CHUNKS {
            drop(used.send(vec![0; DIGEST_CHUNK_BYTES]));
        }
        scope.spawn(move || read_ahead(source, components, &filled, &spare));
        let mut content = Sha512::new();
        let mut done = 0_u64;
        for chunk in chunks {
            let chunk = chunk?;
            content.update(&chunk);
            done = done.saturating_add(chunk.len() as u64);
            progress(done, total);
            drop(used.send(chunk)); // fails when the reader is done: this was the last chunk
        }
        let (addresses, tweaks) = lists.join().unwrap_or(([0; 64], [0; 64]));
        Ok(Verdict {
            content: content.finalize()[..] == header.content_digest,
            addresses: addresses == header.address_digest,
            tweaks: tweaks == header.tweak_digest,
            pages: (ipib.pages(), header.pages),
        })
    })
}

/// Reads all pages into chunks, until the end, an error, or until the receiver is gone.
fn read_ahead(
    source: &(impl ReadAt + ?Sized),
    components: &[Component],
    filled: &SyncSender<Result<Vec<u8>, ImageError>>,
    spare: &Receiver<Vec<u8>>,
) {
    for component in components {
        let mut at = component.address;
        while at < component.end() {
            let Ok(mut chunk) = spare.recv() else { return };
            let size = usize::try_from(component.end() - at)
                .map_or(DIGEST_CHUNK_BYTES, |left| left.min(DIGEST_CHUNK_BYTES));
            chunk.resize(size, 0);
            let read = read_exactly(source, "content of a component", at, &mut chunk).map(|()| chunk);
            let failed = read.is_err();
            if filled.send(read).is_err() || failed {
                return;
            }
            at = at.saturating_add(size as u64);
        }
    }
}

type Sha512Sum = [u8; 64];

/// The digests of all pages' addresses and tweaks.
fn lists(components: &[Component]) -> (Sha512Sum, Sha512Sum) {
    let (mut addresses, mut tweaks) = (Sha512::new(), Sha512::new());
    for component in components {
        // A tweak is one number of 16 bytes, which increases by the page size from page to page.
        let first = u128::from(component.tweak) << 64;
        for page in 0..component.pages() {
            let offset = page.saturating_mul(PAGE);
            addresses.update(component.address.saturating_add(offset).to_be_bytes());
            tweaks.update((first + u128::from(offset)).to_be_bytes());
        }
    }
    (addresses.finalize().into(), tweaks.finalize().into())
}
