//! Where an image's bytes come from: anything that can be read at an offset.
//!
//! Files are in `host`; a slice of bytes is for programs that have an image in memory.

use std::io::{Error, ErrorKind, Result};

/// Bytes of a known size that are read at offsets, without a cursor.
pub trait ReadAt {
    /// The size in bytes when it was opened.
    fn size(&self) -> u64;

    /// Fills the whole buffer from `offset` on; `UnexpectedEof` if there are fewer bytes.
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
