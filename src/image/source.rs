//! Where an image's bytes come from: anything that can be read at an offset.
//!
//! The file itself is in `host`; a slice of bytes serves programs that have an image in memory.

use std::io::{Error, ErrorKind, Result};

/// A thing of a known size that is read at offsets, without a position of its own.
pub trait ReadAt {
    /// Bytes, as far as known when it was opened.
    fn size(&self) -> u64;

    /// Fills the whole buffer from `offset` on; `UnexpectedEof` when there is less.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
}

impl ReadAt for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let found = usize::try_from(offset)
            .ok()
            .and_then(|from| self.get(from..)?.get(..buffer.len()))
            .ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))?;
        buffer.copy_from_slice(found);
        Ok(())
    }
}
