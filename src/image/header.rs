//! The SE header, version 1 (0x100): fields in clear text, key slots, and a sealed area.
//!
//! Layout: s390-tools, rust/pvimg/src/pv_utils/se_hdr/hdr_v1.rs; all integers are big-endian.

use std::fmt;

/// The header of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub version: u32,
    /// Of the whole header, its tag included, bytes.
    pub size: u32,
    pub iv: [u8; 12],
    /// The public half of the key made for this image; the host keys wrap against it.
    pub customer_key: CustomerKey,
    pub slots: Vec<KeySlot>,
    /// Of the sealed area, bytes.
    pub encrypted_size: u64,
    /// Pages of all components together.
    pub pages: u64,
    pub flags: PlainFlags,
    /// SHA-512 over the pages' content as stored.
    pub content_digest: [u8; 64],
    /// SHA-512 over the pages' addresses.
    pub address_digest: [u8; 64],
    /// SHA-512 over the pages' tweaks.
    pub tweak_digest: [u8; 64],
    /// The "SE tag": attestation names an image by it.
    pub tag: [u8; 16],
}

/// A P-521 point: X and Y, each of 80 bytes, padded with zeros on the left.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CustomerKey(pub [u8; 160]);

/// The key of the header, wrapped for one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    pub host_key: KeyHash,
    pub wrapped: [u8; 32],
    pub tag: [u8; 16],
}

/// SHA-256 of a host key, X and Y padded as in [`CustomerKey`]: how machines are named.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// The first 16 digits: enough to tell machines apart in a message.
    pub fn short(&self) -> String {
        self.to_string().chars().take(16).chain(['…']).collect()
    }
}

/// The plaintext control flags, by IBM's count: bit 0 is the most significant one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PlainFlags(pub u64);

/// Bits and their names.
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
    /// The components are signed but not encrypted.
    pub const NO_ENCRYPTION: u32 = 35;

    /// Is `bit` (0 to 63, 0 the most significant) set?
    pub fn has(self, bit: u32) -> bool {
        1_u64.checked_shl(63_u32.wrapping_sub(bit)).is_some_and(|mask| self.0 & mask != 0)
    }

    /// The names of all set bits, `bit N` for those without one.
    pub fn names(self) -> Vec<String> {
        let name = |bit| {
            let known = FLAGS.iter().find(|(known, _)| *known == bit);
            known.map_or_else(|| format!("bit {bit}"), |(_, name)| (*name).to_owned())
        };
        (0..64).filter(|bit| self.has(*bit)).map(name).collect()
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for PlainFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x} ({})", self.0, self.names().join(", "))
    }
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}
