//! Secure Execution images: what a file says about itself, read without any key.
//!
//! An image is the guest's memory from address 0 on: an offset in the file is an address in the
//! guest. Which machine can run it is decided in `plan`.

mod digest;
mod error;
mod fields;
#[cfg(any(test, feature = "test-api"))]
mod fuzz;
mod header;
#[cfg(test)]
mod hostile;
mod ipib;
mod read;
mod source;
mod start;

pub use digest::{Verdict, verify};
#[cfg(test)]
pub(crate) use error::Bound;
pub use error::ImageError;
#[cfg(any(test, feature = "test-api"))]
pub use fuzz::fuzz_se_image;
pub(crate) use header::{CustomerKey, KeyHash, PlainFlags};
#[cfg(test)]
pub(crate) use header::{Header, KeySlot};
#[cfg(test)]
pub(crate) use hostile::Hostile;
#[cfg(any(test, feature = "test-api"))]
pub use ipib::Component;
pub use ipib::ComponentKind;
#[cfg(test)]
pub(crate) use ipib::Ipib;
pub(crate) use ipib::PAGE;
pub(crate) use read::header_bytes;
pub use read::{SealedImage, read};
pub(crate) use source::ReadAt;
