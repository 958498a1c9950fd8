//! The SE header, version 1 (0x100): fields in plaintext, key slots, and an encrypted area.
//!
//! Layout: s390-tools, rust/pvimg/src/pv_utils/se_hdr/hdr_v1.rs; all integers are big-endian.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use crate::hex::{hex, parse_hex};
use crate::image::error::{Bound, ImageError};
use crate::image::fields::{Fields, block};
use crate::image::source::ReadAt;
use crate::limits;

pub(crate) const MAGIC: [u8; 8] = *b"IBMSecEx";

/// The fields before the key slots.
pub(crate) const FIXED_BYTES: u64 = 416;

const SLOT_BYTES: u64 = 80;
const TAG_BYTES: u64 = 16;

/// The encrypted area without optional items: two keys, a PSW, flags, a count.
const MIN_ENCRYPTED_BYTES: u64 = 128;

/// The ultravisor accepts two pages; 95 slots fit into them beside everything else.
const MAX_BYTES: u64 = 8192;
const MAX_SLOTS: u64 = 95;
const MIN_BYTES: u64 = FIXED_BYTES + SLOT_BYTES + MIN_ENCRYPTED_BYTES + TAG_BYTES;

/// The only version whose layout is known.
const VERSION: u64 = 0x100;

/// The header of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub version: u32,
    /// The size of the whole header, including its tag, in bytes.
    pub size: u32,
    pub iv: [u8; 12],
    /// The public half of the key pair made for this image; each slot's wrapping key is derived from it and a host key.
    pub customer_key: CustomerKey,
    pub slots: Vec<KeySlot>,
    /// The size of the encrypted area, in bytes.
    pub encrypted_size: u64,
    /// The number of pages of all components together.
    pub pages: u64,
    pub flags: PlainFlags,
    /// SHA-512 over the pages' content as it is stored.
    pub content_digest: [u8; 64],
    /// SHA-512 over the pages' addresses.
    pub address_digest: [u8; 64],
    /// SHA-512 over the pages' tweaks.
    pub tweak_digest: [u8; 64],
    /// The "SE tag": attestation identifies an image by it.
    pub tag: [u8; 16],
}

/// A P-521 point: X and Y, each of 80 bytes, padded with zeros on the left.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CustomerKey(pub [u8; 160]);

/// The header's key, wrapped for one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    pub host_key: KeyHash,
    pub wrapped: [u8; 32],
    pub tag: [u8; 16],
}

/// SHA-256 of a host key, X and Y padded as in [`CustomerKey`]: it identifies a machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub [u8; 32]);

/// Reads and checks the header at `at`.
pub(crate) fn read(source: &(impl ReadAt + ?Sized), at: u64) -> Result<Header, ImageError> {
    let fixed = block(source, "SE header", at, FIXED_BYTES)?;
    let mut fields = Fields::new(&fixed, at);
    let magic = Bound::Exactly(u64::from_be_bytes(MAGIC));
    fields
        .u64("magic of the SE header")?
        .must_be(magic, "there is no header at the address in the metadata")?;
    let version = fields.u32("version of the SE header")?;
    let version = version.must_be(Bound::Exactly(VERSION), "other layouts are not known to this program")?;
    let size = fields.u32("size of the SE header (sehs)")?;
    let size = size.must_be(Bound::Within(MIN_BYTES, MAX_BYTES), "the ultravisor accepts no other size")?;
    let left = source.size().saturating_sub(at);
    if size > left {
        // Fails, with the message of every block that is cut off.
        block(source, "SE header", at, size)?;
    }
    let iv = fields.take("iv of the SE header")?;
    fields.take::<4>("reserved bytes of the SE header")?;
    let slots = fields.u64("number of key slots (nks)")?;
    let slots =
        slots.must_be(Bound::Within(1, MAX_SLOTS), "a header cannot have this number of key slots")?;
    let encrypted = fields.u64("size of the encrypted area (sea)")?;
    // Both were checked above: no sum overflows.
    let room = size.saturating_sub(FIXED_BYTES + SLOT_BYTES * slots + TAG_BYTES);
    let encrypted_size =
        encrypted.must_be(Bound::AtLeast(MIN_ENCRYPTED_BYTES), "the encrypted fields do not fit")?;
    encrypted.must_be(Bound::Exactly(room), "size, key slots and encrypted area contradict each other")?;
    let mut header = Header {
        version: narrow(version),
        size: narrow(size),
        iv,
        pages: fields.u64("number of component pages (nep)")?.any(),
        flags: PlainFlags(fields.u64("plaintext control flags (pcf)")?.any()),
        customer_key: CustomerKey(fields.take("customer public key")?),
        slots: Vec::new(),
        encrypted_size,
        content_digest: fields.take("content digest (pld)")?,
        address_digest: fields.take("address digest (ald)")?,
        tweak_digest: fields.take("tweak digest (tld)")?,
        tag: [0; 16],
    };
    let variable = block(source, "SE header", at + FIXED_BYTES, size - FIXED_BYTES)?;
    let mut fields = Fields::new(&variable, at + FIXED_BYTES);
    for _ in 0..slots {
        header.slots.push(KeySlot {
            host_key: KeyHash(fields.take("host key hash of a key slot")?),
            wrapped: fields.take("wrapped key of a key slot")?,
            tag: fields.take("tag of a key slot")?,
        });
    }
    fields.skip("encrypted area", encrypted_size)?;
    header.tag = fields.take("tag of the SE header")?;
    Ok(header)
}

/// For a number that is a `u32` in the file.
fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl KeyHash {
    /// The first 16 digits: enough to distinguish machines in a message.
    pub fn short(&self) -> String {
        self.to_string().chars().take(16).chain(['…']).collect()
    }
}

/// The plaintext control flags, in IBM's numbering: bit 0 is the most significant one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PlainFlags(pub u64);

/// The known bits and their names.
const FLAGS: [(u32, &str); 7] = [
    (34, "dump allowed"),
    (35, "no component encryption"),
    (56, "PCKMO DEA/TDEA keys"),
    (57, "PCKMO AES keys"),
    (58, "PCKMO ECC keys"),
    (59, "PCKMO HMAC keys"),
    (62, "backup target keys"),
];

impl PlainFlags {
    /// The guest's memory may be dumped, encrypted for the image's owner.
    pub const DUMP: u32 = 34;
    /// The components are integrity-protected but not encrypted.
    pub const NO_ENCRYPTION: u32 = 35;

    /// Is `bit` (0 to 63, 0 the most significant) set?
    pub fn has(self, bit: u32) -> bool {
        1_u64.checked_shl(63_u32.wrapping_sub(bit)).is_some_and(|mask| self.0 & mask != 0)
    }

    /// The names of all bits that are set; `bit N` for a bit without a name.
    pub fn names(self) -> Vec<String> {
        let name = |bit| {
            let known = FLAGS.iter().find(|(known, _)| *known == bit);
            known.map_or_else(|| format!("bit {bit}"), |(_, name)| (*name).to_owned())
        };
        (0..64).filter(|bit| self.has(*bit)).map(name).collect()
    }
}

impl FromStr for KeyHash {
    type Err = Error;

    /// 64 hexadecimal digits, as the kernel and the tools print a hash; white space around them is skipped.
    fn from_str(text: &str) -> Result<Self, Error> {
        parse_hex(text.trim()).map(Self).ok_or_else(|| {
            let start: String = text.chars().take(limits::text::QUOTED_CHARS).collect();
            Error::invalid(format!("{start:?} is not a hash of 64 hexadecimal digits"))
        })
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for PlainFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x} ({})", self.0, self.names().join(", "))
    }
}
