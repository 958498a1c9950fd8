//! Fields of a block of an image, taken one after the other, big-endian.
//!
//! Everything that leaves the block or the file is a flaw; nothing here indexes.

use std::io::ErrorKind;

use crate::image::{Flaw, Limit, ReadAt};

/// A block that was read, with its place in the file for messages.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    at: u64,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(block: &'a [u8], at: u64) -> Self {
        Self { rest: block, at }
    }

    /// The next `N` bytes.
    pub(crate) fn take<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Flaw> {
        let Some((bytes, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(Flaw::Field {
                field,
                offset: self.at,
                value: self.rest.len() as u64,
                limit: Limit::AtLeast(N as u64),
                text: "its block ends before it",
            });
        };
        self.rest = rest;
        self.at = self.at.saturating_add(N as u64);
        Ok(*bytes)
    }

    /// Leaves out `bytes` bytes.
    pub(crate) fn skip(&mut self, field: &'static str, bytes: u64) -> Result<(), Flaw> {
        let rest = usize::try_from(bytes).ok().and_then(|n| self.rest.get(n..));
        self.rest = rest.ok_or(Flaw::Field {
            field,
            offset: self.at,
            value: bytes,
            limit: Limit::AtMost(self.rest.len() as u64),
            text: "its block ends before it",
        })?;
        self.at = self.at.saturating_add(bytes);
        Ok(())
    }

    /// The next number of four bytes; with it, a check against what it may be.
    pub(crate) fn u32(&mut self, field: &'static str) -> Result<Number, Flaw> {
        let offset = self.at;
        Ok(Number { field, offset, value: u32::from_be_bytes(self.take(field)?).into() })
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<Number, Flaw> {
        let offset = self.at;
        Ok(Number { field, offset, value: u64::from_be_bytes(self.take(field)?) })
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<Number, Flaw> {
        let offset = self.at;
        Ok(Number { field, offset, value: u8::from_be_bytes(self.take(field)?).into() })
    }
}

/// A number with its place: it becomes plain only through a check.
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

    /// Any value is good.
    pub(crate) fn any(self) -> u64 {
        self.value
    }

    pub(crate) fn must_be(self, limit: Limit, text: &'static str) -> Result<u64, Flaw> {
        let fits = match limit {
            Limit::Exactly(n) => self.value == n,
            Limit::AtLeast(n) => self.value >= n,
            Limit::AtMost(n) => self.value <= n,
            Limit::Within(low, high) => (low..=high).contains(&self.value),
            Limit::MultipleOf(n) => self.value.checked_rem(n) == Some(0),
        };
        if fits {
            return Ok(self.value);
        }
        Err(Flaw::Field { field: self.field, offset: self.offset, value: self.value, limit, text })
    }
}

/// Reads `size` bytes at `offset`; the block must lie inside the file. `size` is bounded by callers.
pub(crate) fn block(
    source: &(impl ReadAt + ?Sized),
    field: &'static str,
    offset: u64,
    size: u64,
) -> Result<Vec<u8>, Flaw> {
    let end = Number::new(field, offset, offset.saturating_add(size));
    end.must_be(Limit::AtMost(source.size()), "it would end behind the file's end: the file was cut off")?;
    let length = usize::try_from(size).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length];
    read_exactly(source, field, offset, &mut bytes)?;
    Ok(bytes)
}

/// Fills `buffer`; that the file ends before its own size is its own flaw.
pub(crate) fn read_exactly(
    source: &(impl ReadAt + ?Sized),
    field: &'static str,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), Flaw> {
    source.read_at(buffer, offset).map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => {
            Flaw::Shrank { field, offset, wanted: buffer.len() as u64, size: source.size() }
        }
        _ => Flaw::Unreadable { field, offset, text: e.to_string() },
    })
}
