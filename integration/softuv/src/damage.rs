//! Images that are wrong in one way, each for one answer of the ultravisor.

use crate::header::{Clear, FIXED_BYTES, SLOT_BYTES};
use crate::seal::Places;

/// What is wrong, and when it goes wrong: before the header is sealed (so that its tag is right), or
/// after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// After: the header's tag.
    Tag,
    /// After: the tags of all key slots.
    Slots,
    /// After: one bit of the first sealed page.
    Page,
    /// Before: the digest over all content.
    Content,
    /// Before: the digest over all addresses.
    Addresses,
    /// Before: the digest over all tweaks.
    Tweaks,
    /// Before: the number of pages.
    Pages,
    /// Before: a header version that no machine knows.
    Version,
    /// Before: the image's key is no point of the curve.
    CustomerKey,
    /// After: the header says it is longer than its fields.
    HeaderSize,
    /// After: the sealed area is too small for its fields.
    EncryptedSize,
    /// After: there are no key slots.
    NoSlots,
}

impl Damage {
    pub const ALL: [(&'static str, Self); 12] = [
        ("tag", Self::Tag),
        ("slots", Self::Slots),
        ("page", Self::Page),
        ("content", Self::Content),
        ("addresses", Self::Addresses),
        ("tweaks", Self::Tweaks),
        ("pages", Self::Pages),
        ("version", Self::Version),
        ("customer-key", Self::CustomerKey),
        ("header-size", Self::HeaderSize),
        ("encrypted-size", Self::EncryptedSize),
        ("no-slots", Self::NoSlots),
    ];

    /// By its name on the command line.
    pub fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, damage)| *damage).ok_or_else(|| {
            let names = Self::ALL.map(|(name, _)| name).join(", ");
            format!("--damage {name}: unknown, must be one of {names}")
        })
    }

    pub(crate) fn before_sealing(self, header: &mut Clear) {
        match self {
            Self::Content => header.content_digest[0] ^= 1,
            Self::Addresses => header.address_digest[0] ^= 1,
            Self::Tweaks => header.tweak_digest[0] ^= 1,
            Self::Pages => header.pages += 1,
            Self::Version => header.version = 0x200,
            Self::CustomerKey => header.customer_key[159] ^= 1,
            Self::Tag | Self::Slots | Self::Page | Self::HeaderSize | Self::EncryptedSize | Self::NoSlots => {
            }
        }
    }

    pub(crate) fn after_sealing(self, image: &mut [u8], places: Places) {
        let at = places.header;
        let slots = places.header_size - 560;
        match self {
            Self::Tag => image[at + places.header_size - 1] ^= 1,
            Self::Slots => {
                for slot in image[at + FIXED_BYTES..at + FIXED_BYTES + slots].chunks_mut(SLOT_BYTES) {
                    slot[SLOT_BYTES - 1] ^= 1;
                }
            }
            Self::Page => image[places.first_page] ^= 1,
            Self::HeaderSize => image[at + 15] ^= 0x10,
            Self::EncryptedSize => image[at + 47] = 64,
            Self::NoSlots => image[at + 32..at + 40].fill(0),
            Self::Content
            | Self::Addresses
            | Self::Tweaks
            | Self::Pages
            | Self::Version
            | Self::CustomerKey => {}
        }
    }
}
