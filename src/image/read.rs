//! Reads an image's header and component list with a few small reads.

use crate::image::error::{Bound, ImageError};
use crate::image::fields::{Fields, block, read_exactly};
use crate::image::header::{self, Header};
use crate::image::ipib::{self, Ipib, PAGE};
use crate::image::source::ReadAt;
use crate::image::start;

/// The offset and size of the image's metadata.
const METADATA_AT: u64 = 0xc000;
const METADATA_BYTES: u64 = 28;
const METADATA_MAGIC: [u8; 8] = *b"SeImgLnx";

/// Where older tools put the header: on one of the pages after their loader.
const SEARCH_FROM: u64 = 0x14000;
const SEARCH_PAGES: u64 = 0x15;

/// What an image file says about itself. Its parts are consistent with each other and lie inside the file,
/// and QEMU starts the loader that leads to them; whether the content is what was sealed is checked
/// separately ([`crate::image::verify`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedImage {
    /// The size of the whole file, in bytes.
    pub size: u64,
    /// The offset of the header in the file.
    pub header_at: u64,
    pub header: Header,
    /// The list of components; older tools do not record its offset in the file.
    pub ipib: Option<Ipib>,
}

/// Reads what the image says about itself: never the whole file, at most 24 KiB.
pub fn read(source: &(impl ReadAt + ?Sized)) -> Result<SealedImage, ImageError> {
    let offsets = find(source)?;
    let header = header::read(source, offsets.header)?;
    let ipib = match offsets.ipib {
        Some(at) => Some(ipib::read(source, at, offsets.header, &header)?),
        None => None,
    };
    start::check(source, offsets.header, &header, ipib.as_ref())?;
    Ok(SealedImage { size: source.size(), header_at: offsets.header, header, ipib })
}

/// The header's bytes exactly as they are in the file: the `hdr.bin` of attestation services.
pub(crate) fn header_bytes(
    source: &(impl ReadAt + ?Sized),
    image: &SealedImage,
) -> Result<Vec<u8>, ImageError> {
    block(source, "SE header", image.header_at, image.header.size.into())
}

struct Offsets {
    header: u64,
    ipib: Option<u64>,
}

/// Finds them by the metadata if there is any, else by a search.
fn find(source: &(impl ReadAt + ?Sized)) -> Result<Offsets, ImageError> {
    if starts_with(source, "image metadata", METADATA_AT, METADATA_MAGIC)? {
        return from_metadata(source);
    }
    for page in 0..SEARCH_PAGES {
        let at = SEARCH_FROM + page * PAGE;
        if starts_with(source, "SE header", at, header::MAGIC)? {
            return Ok(Offsets { header: at, ipib: None });
        }
    }
    Err(ImageError::NotSealed { size: source.size() })
}

fn from_metadata(source: &(impl ReadAt + ?Sized)) -> Result<Offsets, ImageError> {
    let bytes = block(source, "image metadata", METADATA_AT, METADATA_BYTES)?;
    let mut fields = Fields::new(&bytes, METADATA_AT);
    fields.take::<8>("magic of the image metadata")?;
    let header = fields.u64("offset of the SE header")?;
    fields
        .u32("version of the image metadata")?
        .must_be(Bound::Exactly(1), "made by a newer or a broken tool")?;
    let ipib = fields.u64("offset of the IPIB")?.any();
    let highest = source.size().saturating_sub(header::FIXED_BYTES);
    let header = header
        .must_be(Bound::Within(METADATA_AT + METADATA_BYTES, highest), "a header does not fit there")?;
    Ok(Offsets { header, ipib: (ipib != 0).then_some(ipib) })
}

/// Whether the file has these bytes at `at`; false if it ends before them.
fn starts_with(
    source: &(impl ReadAt + ?Sized),
    field: &'static str,
    at: u64,
    magic: [u8; 8],
) -> Result<bool, ImageError> {
    if at.saturating_add(8) > source.size() {
        return Ok(false);
    }
    let mut found = [0; 8];
    read_exactly(source, field, at, &mut found)?;
    Ok(found == magic)
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
