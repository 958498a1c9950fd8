//! Why an image is refused: which field, where, with which value, and what the value must be.

use std::fmt;

use crate::error::{Code, Error};

/// Why a file is refused as a Secure Execution image. One line when shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// There is no header: some other kind of file, of `size` bytes.
    NotSealed { size: u64 },
    /// A field has a value that it cannot have.
    InvalidField { field: &'static str, offset: u64, value: u64, bound: Bound, text: &'static str },
    /// The file became shorter than its size while it was read: something writes to it.
    Shrank { field: &'static str, offset: u64, wanted: u64, size: u64 },
    /// The file cannot be read.
    Unreadable { field: &'static str, offset: u64, text: String },
}

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Exactly(u64),
    Not(u64),
    AtLeast(u64),
    AtMost(u64),
    Within(u64, u64),
    MultipleOf(u64),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(n) => write!(f, "{n:#x}"),
            Self::Not(n) => write!(f, "anything but {n:#x}"),
            Self::AtLeast(n) => write!(f, "at least {n:#x}"),
            Self::AtMost(n) => write!(f, "at most {n:#x}"),
            Self::Within(low, high) => write!(f, "{low:#x} to {high:#x}"),
            Self::MultipleOf(n) => write!(f, "a multiple of {n:#x}"),
        }
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSealed { size } => write!(
                f,
                "not a Secure Execution image: there is no header in its {size} bytes, and QEMU would boot \
                 it unprotected: seal it with pvimg"
            ),
            Self::InvalidField { field, offset, value, bound, text } => {
                write!(f, "damaged image: {field} at {offset:#x} is {value:#x}, must be {bound}: {text}")
            }
            Self::Shrank { field, offset, wanted, size } => write!(
                f,
                "the image changes while it is read: {field}: {wanted} bytes at {offset:#x} are missing, the \
                 file had {size} bytes: replace images by renaming, not in place"
            ),
            Self::Unreadable { field, offset, text } => {
                write!(f, "the image cannot be read: {field} at {offset:#x}: {text}")
            }
        }
    }
}

impl ImageError {
    /// As the program's error. A method and not `From`, which would make `?` ambiguous elsewhere.
    pub fn into_error(self) -> Error {
        let code = match self {
            Self::NotSealed { .. } | Self::InvalidField { .. } => Code::FailedPrecondition,
            Self::Shrank { .. } => Code::Unavailable,
            Self::Unreadable { .. } => Code::Internal,
        };
        Error::new(code, self.to_string())
    }
}
