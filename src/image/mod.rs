//! Secure Execution images: what a file says about itself, read without any key.
//!
//! An image is the guest's memory from address 0 on: an offset in the file is an address in the
//! guest. Who may run it, and on which machine, is decided elsewhere (`plan`).

mod digest;
mod error;
mod fields;
#[cfg(any(test, feature = "test-api"))]
mod fuzz;
mod header;
mod ipib;
mod read;
mod source;

pub use digest::{Verdict, verify};
pub(crate) use error::Bound;
pub use error::ImageError;
#[cfg(any(test, feature = "test-api"))]
pub use fuzz::fuzz_se_image;
#[cfg(test)]
pub(crate) use header::KeySlot;
pub(crate) use header::{CustomerKey, Header, KeyHash, PlainFlags};
pub(crate) use ipib::Ipib;
pub use ipib::{Component, ComponentKind};
pub(crate) use read::header_bytes;
pub use read::read;
pub(crate) use source::ReadAt;

/// One page, in bytes: the unit of everything in an image.
pub(crate) const PAGE: u64 = 4096;

/// What an image file says about itself. Its parts are consistent with each other and lie inside
/// the file; whether the content is what was sealed is another question (the digests).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedImage {
    /// Of the whole file, bytes.
    pub size: u64,
    /// Where in the file the header begins.
    pub header_at: u64,
    pub header: Header,
    /// The list of components; older tools did not say where in the file it is.
    pub ipib: Option<Ipib>,
}
