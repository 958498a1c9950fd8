//! Writes an SE header, version 1.

use aes_gcm::{Aes256Gcm, KeyInit};

use crate::secrets::Secrets;
use crate::{Result, keys};

pub const MAGIC: &[u8; 8] = b"IBMSecEx";
pub const VERSION: u32 = 0x100;
pub const SLOT_BYTES: usize = 80;
/// Where the key slots begin.
pub const FIXED_BYTES: usize = 416;
pub const SEALED_BYTES: usize = 128;
pub const TAG_BYTES: usize = 16;

/// The mask of all PSWs here: 64-bit addressing.
pub const PSW_MASK: u64 = 0x1_8000_0000;

/// Plaintext control flags that pvimg sets unless told otherwise.
pub const DEFAULT_FLAGS: u64 = 0xe0;

/// The flag of this number, counted from the most significant bit.
pub fn flag(bit: u32) -> u64 {
    1_u64.checked_shl(63_u32.wrapping_sub(bit)).unwrap_or(0)
}

pub const DUMP_ALLOWED: u32 = 34;
pub const NO_COMPONENT_ENCRYPTION: u32 = 35;
pub const BACKUP_TARGET_KEYS: u32 = 62;

/// The fields in clear text that are not known from elsewhere.
#[derive(Clone, Debug)]
pub struct Clear {
    pub version: u32,
    pub pages: u64,
    pub flags: u64,
    pub customer_key: [u8; 160],
    pub content_digest: [u8; 64],
    pub address_digest: [u8; 64],
    pub tweak_digest: [u8; 64],
    pub slots: Vec<[u8; SLOT_BYTES]>,
}

/// The sealed fields that are not in [`Secrets`].
#[derive(Clone, Copy, Debug)]
pub struct Inner {
    /// Where the guest begins inside the sealed part.
    pub entry: u64,
    pub flags: u64,
}

/// How long a header with so many slots is.
pub fn size(slots: usize) -> usize {
    FIXED_BYTES + SLOT_BYTES * slots + SEALED_BYTES + TAG_BYTES
}

/// The whole header, sealed.
pub fn write(clear: &Clear, inner: Inner, secrets: &Secrets) -> Result<Vec<u8>> {
    let size = size(clear.slots.len());
    let mut header = Vec::with_capacity(size);
    header.extend(MAGIC);
    header.extend(clear.version.to_be_bytes());
    header.extend(u32::try_from(size).map_err(|e| format!("too many key slots: {e}"))?.to_be_bytes());
    header.extend(secrets.iv);
    header.extend([0; 4]);
    header.extend((clear.slots.len() as u64).to_be_bytes());
    header.extend((SEALED_BYTES as u64).to_be_bytes());
    header.extend(clear.pages.to_be_bytes());
    header.extend(clear.flags.to_be_bytes());
    header.extend(clear.customer_key);
    for digest in [&clear.content_digest, &clear.address_digest, &clear.tweak_digest] {
        header.extend(digest);
    }
    header.extend(clear.slots.iter().flatten());

    let mut secret = Vec::with_capacity(SEALED_BYTES);
    secret.extend(secrets.communication_key);
    secret.extend(secrets.component_key);
    for number in [PSW_MASK, inner.entry, inner.flags, 0] {
        secret.extend(number.to_be_bytes());
    }
    let key = Aes256Gcm::new((&secrets.header_key).into());
    let sealed = keys::seal(&key, secrets.iv, &header, &secret)?;
    header.extend(sealed);
    Ok(header)
}
