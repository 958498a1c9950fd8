//! Reads the fields of a block of an image, one after the other, big-endian.
//!
//! Reading beyond the block or the file is an error; nothing here indexes.

use std::io::ErrorKind;

use crate::image::error::{Bound, ImageError};
use crate::image::source::ReadAt;

/// A block that was read, and its offset in the file for messages.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    at: u64,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(block: &'a [u8], at: u64) -> Self {
        Self { rest: block, at }
    }

    /// The next `N` bytes.
    pub(crate) fn take<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], ImageError> {
        let Some((bytes, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(ImageError::InvalidField {
                field,
                offset: self.at,
                value: self.rest.len() as u64,
                bound: Bound::AtLeast(N as u64),
                text: "its block ends before it",
            });
        };
        self.rest = rest;
        self.at = self.at.saturating_add(N as u64);
        Ok(*bytes)
    }

    /// Skips `bytes` bytes.
    pub(crate) fn skip(&mut self, field: &'static str, bytes: u64) -> Result<(), ImageError> {
        let rest = usize::try_from(bytes).ok().and_then(|n| self.rest.get(n..));
        self.rest = rest.ok_or(ImageError::InvalidField {
            field,
            offset: self.at,
            value: bytes,
            bound: Bound::AtMost(self.rest.len() as u64),
            text: "its block ends before it",
        })?;
        self.at = self.at.saturating_add(bytes);
        Ok(())
    }

    /// The next number of four bytes, to be checked by the caller.
    pub(crate) fn u32(&mut self, field: &'static str) -> Result<Number, ImageError> {
        let offset = self.at;
        Ok(Number { field, offset, value: u32::from_be_bytes(self.take(field)?).into() })
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<Number, ImageError> {
        let offset = self.at;
        Ok(Number { field, offset, value: u64::from_be_bytes(self.take(field)?) })
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<Number, ImageError> {
        let offset = self.at;
        Ok(Number { field, offset, value: u8::from_be_bytes(self.take(field)?).into() })
    }
}

/// A number with its offset: its value is available only through a check.
#[derive(Clone, Copy)]
pub(crate) struct Number {
    field: &'static str,
    offset: u64,
    value: u64,
}

impl Number {
    pub(crate) fn new(field: &'static str, offset: u64, value: u64) -> Self {
        Self { field, offset, value }
    }

    /// The value, where every value is valid.
    pub(crate) fn any(self) -> u64 {
        self.value
    }

    pub(crate) fn must_be(self, bound: Bound, text: &'static str) -> Result<u64, ImageError> {
        let fits = match bound {
            Bound::Exactly(n) => self.value == n,
            Bound::Not(n) => self.value != n,
            Bound::AtLeast(n) => self.value >= n,
            Bound::AtMost(n) => self.value <= n,
            Bound::Within(low, high) => (low..=high).contains(&self.value),
            Bound::MultipleOf(n) => self.value.checked_rem(n) == Some(0),
        };
        if fits {
            return Ok(self.value);
        }
        Err(ImageError::InvalidField {
            field: self.field,
            offset: self.offset,
            value: self.value,
            bound,
            text,
        })
    }
}

/// Reads `size` bytes at `offset`; the block must lie inside the file. The callers bound `size`.
pub(crate) fn block(
    source: &(impl ReadAt + ?Sized),
    field: &'static str,
    offset: u64,
    size: u64,
) -> Result<Vec<u8>, ImageError> {
    let end = Number::new(field, offset, offset.saturating_add(size));
    end.must_be(
        Bound::AtMost(source.size()),
        "it would end beyond the end of the file: the file is truncated",
    )?;
    let length = usize::try_from(size).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length];
    read_exactly(source, field, offset, &mut bytes)?;
    Ok(bytes)
}

/// Fills `buffer`; a file that ends before its size has an error of its own.
pub(crate) fn read_exactly(
    source: &(impl ReadAt + ?Sized),
    field: &'static str,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), ImageError> {
    source.read_at(buffer, offset).map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => {
            ImageError::Shrank { field, offset, wanted: buffer.len() as u64, size: source.size() }
        }
        _ => ImageError::Unreadable { field, offset, text: e.to_string() },
    })
}
