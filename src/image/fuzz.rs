//! The entry point for fuzzers of the reader; ordinary tests use it, too.

use std::io::{ErrorKind, Result};

use crate::image::digest::verify;
use crate::image::read::read;
use crate::image::source::ReadAt;

/// Digests are checked only up to this number of pages: the reader is what is tested.
const PAGES: u64 = 64;

/// Reads any bytes as a file, and as parts of a much larger file. Whatever they are, it does not panic
/// and does not keep more than some kilobytes.
pub fn fuzz_se_image(bytes: &[u8]) {
    attempt(bytes);
    if let Some((size, parts)) = bytes.split_first_chunk() {
        attempt(&Scattered { size: u64::from_be_bytes(*size), parts });
    }
}

fn attempt(source: &(impl ReadAt + Sync + ?Sized)) {
    let Ok(image) = read(source) else { return };
    let Some(ipib) = &image.ipib else { return };
    if ipib.pages() <= PAGES {
        drop(verify(source, &image.header, ipib, |_, _| {}));
    }
}

/// A sparse file of any size: `parts` are the bytes of each of [`PLACES`], one after the other, everything
/// else is zero.
struct Scattered<'a> {
    size: u64,
    parts: &'a [u8],
}

/// Offsets with the bytes there: PSW, metadata, the loader's arguments, and the rest, where a header may be.
const PLACES: [(u64, usize); 4] = [(0, 8), (0xc000, 28), (0x12bc0, 24), (0x14000, usize::MAX)];

impl Scattered<'_> {
    fn byte(&self, at: u64) -> u8 {
        let mut before: usize = 0;
        for (from, bytes) in PLACES {
            let offset = at.checked_sub(from).and_then(|offset| usize::try_from(offset).ok());
            if let Some(offset) = offset.filter(|offset| *offset < bytes) {
                let index = before.saturating_add(offset);
                return self.parts.get(index).copied().unwrap_or(0);
            }
            before = before.saturating_add(bytes);
        }
        0
    }
}

impl ReadAt for Scattered<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if offset.saturating_add(buffer.len() as u64) > self.size {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        for (at, byte) in (offset..).zip(buffer.iter_mut()) {
            *byte = self.byte(at);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::image::Hostile;

    /// A size, and what is at [`PLACES`]: header and IPIB of testdata/by-hand.img with their addresses
    /// changed to this place, and what starts them. The seed of a fuzzer.
    const CORPUS: &[u8] = include_bytes!("testdata/se_image.fuzz");

    #[test]
    fn the_corpus_is_an_image() {
        let (size, parts) = CORPUS.split_first_chunk().expect("size");
        let image = read(&Scattered { size: u64::from_be_bytes(*size), parts }).expect("image");
        assert_eq!(image.ipib.map(|ipib| ipib.components.len()), Some(4));
    }

    #[test]
    fn two_seconds_of_hostile_images_do_no_harm() {
        let mut hostile = Hostile::default();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) {
            fuzz_se_image(&hostile.changed(CORPUS));
        }
    }
}
