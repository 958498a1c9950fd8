//! Reads an image's header and component list with a few small reads.

use crate::image::fields::{Fields, block, read_exactly};
use crate::image::{Bound, ImageError, PAGE, ReadAt, SealedImage, header, ipib};

/// Where the image's metadata stand, and how many bytes they have.
const METADATA_AT: u64 = 0xc000;
const METADATA_BYTES: u64 = 28;
const METADATA_MAGIC: [u8; 8] = *b"SeImgLnx";

/// Where older tools put the header: on one of the pages after their loader.
const SEARCH_FROM: u64 = 0x14000;
const SEARCH_PAGES: u64 = 0x15;

/// Reads what the image says about itself; never the whole file, never more than 16 KiB.
pub fn read(source: &(impl ReadAt + ?Sized)) -> Result<SealedImage, ImageError> {
    let places = find(source)?;
    let header = header::read(source, places.header)?;
    let ipib = match places.ipib {
        Some(at) => Some(ipib::read(source, at, places.header, &header)?),
        None => None,
    };
    Ok(SealedImage { size: source.size(), header_at: places.header, header, ipib })
}

/// The header's bytes as they stand in the file, exactly as many as it says: the `hdr.bin` of
/// attestation services.
pub(crate) fn header_bytes(
    source: &(impl ReadAt + ?Sized),
    image: &SealedImage,
) -> Result<Vec<u8>, ImageError> {
    block(source, "SE header", image.header_at, image.header.size.into())
}

struct Places {
    header: u64,
    ipib: Option<u64>,
}

/// By the metadata if there are any, else by a search.
fn find(source: &(impl ReadAt + ?Sized)) -> Result<Places, ImageError> {
    if starts_with(source, "image metadata", METADATA_AT, METADATA_MAGIC)? {
        return from_metadata(source);
    }
    for page in 0..SEARCH_PAGES {
        let at = SEARCH_FROM + page * PAGE;
        if starts_with(source, "SE header", at, header::MAGIC)? {
            return Ok(Places { header: at, ipib: None });
        }
    }
    Err(ImageError::NotSealed { size: source.size() })
}

fn from_metadata(source: &(impl ReadAt + ?Sized)) -> Result<Places, ImageError> {
    let bytes = block(source, "image metadata", METADATA_AT, METADATA_BYTES)?;
    let mut fields = Fields::new(&bytes, METADATA_AT);
    fields.take::<8>("magic of the image metadata")?;
    let header = fields.u64("place of the SE header")?;
    fields
        .u32("version of the image metadata")?
        .must_be(Bound::Exactly(1), "a newer or broken tool made it")?;
    let ipib = fields.u64("place of the IPIB")?.any();
    let highest = source.size().saturating_sub(header::FIXED_BYTES);
    let header =
        header.must_be(Bound::Within(METADATA_AT + METADATA_BYTES, highest), "no header fits there")?;
    Ok(Places { header, ipib: (ipib != 0).then_some(ipib) })
}

/// Are these bytes at this place? A file that ends before them has others.
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
