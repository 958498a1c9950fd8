//! The IPL information block (IPIB): the addresses of the sealed components in the guest's memory.
//!
//! Layout: Linux, arch/s390/include/uapi/asm/ipl.h (`ipl_pb0_pv`); all integers are big-endian.

use std::fmt;

use crate::image::error::{Bound, ImageError};
use crate::image::fields::{Fields, Number, block};
use crate::image::header::Header;
use crate::image::source::ReadAt;

/// One page, in bytes: components are aligned to pages, and digests count pages.
pub(crate) const PAGE: u64 = 4096;

/// The block without its list, and one entry of the list.
const FIXED_BYTES: u64 = 136;
const COMPONENT_BYTES: u64 = 24;

/// QEMU and the kernel keep the block in one page (`IplParameterBlock`, hw/s390x/ipl.h).
const MAX_BYTES: u64 = PAGE;
const MAX_COMPONENTS: u64 = (MAX_BYTES - FIXED_BYTES) / COMPONENT_BYTES;

/// The block's own head, which the length of the inner PV block does not include.
const HEAD_BYTES: u64 = 8;

/// The IPL type "protected virtualization".
const TYPE_PV: u64 = 5;

/// The block, as far as a host needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipib {
    /// Where in the file the block begins.
    pub at: u64,
    /// In the order of the file's list, which is the order of the digests; they do not overlap.
    pub components: Vec<Component>,
}

impl Ipib {
    /// Pages of all components together.
    pub fn pages(&self) -> u64 {
        self.components.iter().map(Component::pages).fold(0, u64::saturating_add)
    }
}

/// A sealed part of the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// First byte, a multiple of the page size.
    pub address: u64,
    /// In bytes; the last page is padded.
    pub size: u64,
    /// Upper half of the first page's tweak.
    pub tweak: u64,
}

/// What a component contains; pvimg stores it in the upper 16 bits of the component's tweak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComponentKind {
    Kernel,
    Ramdisk,
    CommandLine,
    /// The boot loader inside the sealed part.
    Stage3b,
    Other(u16),
}

/// Reads and checks the block at `at`, which must refer to the header that was found.
pub(crate) fn read(
    source: &(impl ReadAt + ?Sized),
    at: u64,
    header_at: u64,
    header: &Header,
) -> Result<Ipib, ImageError> {
    let fixed = block(source, "IPIB", at, FIXED_BYTES)?;
    let mut fields = Fields::new(&fixed, at);
    let least = FIXED_BYTES + COMPONENT_BYTES;
    let size = fields.u32("length of the IPIB")?;
    let size = size.must_be(Bound::Within(least, MAX_BYTES), "no component list has this length")?;
    fields.take::<3>("flags of the IPIB")?;
    fields.u8("version of the IPIB")?.must_be(Bound::Exactly(1), "made by a newer or a broken tool")?;
    let inner = fields.u32("length of the IPIB's PV block")?;
    inner.must_be(Bound::Within(least - HEAD_BYTES, size - HEAD_BYTES), "it must lie inside the IPIB")?;
    fields
        .u8("type of the IPIB's PV block")?
        .must_be(Bound::Exactly(TYPE_PV), "the image is not for a protected guest")?;
    fields.take::<{ 3 + 8 + 87 }>("reserved bytes of the IPIB")?;
    fields
        .u8("version of the IPIB's PV block")?
        .must_be(Bound::Exactly(1), "made by a newer or a broken tool")?;
    fields.take::<4>("reserved bytes of the IPIB")?;
    let count = fields.u32("number of components")?;
    let most = (inner.any() + HEAD_BYTES - FIXED_BYTES) / COMPONENT_BYTES;
    let count =
        count.must_be(Bound::Within(1, most.min(MAX_COMPONENTS)), "its list must lie inside the IPIB")?;
    let address = fields.u64("header address in the IPIB")?;
    address.must_be(Bound::Exactly(header_at), "the header is at another address")?;
    let length = fields.u64("header size in the IPIB")?;
    length.must_be(Bound::Exactly(header.size.into()), "the header has another size")?;

    let list_at = at + FIXED_BYTES;
    let list = block(source, "component list", list_at, count * COMPONENT_BYTES)?;
    let mut fields = Fields::new(&list, list_at);
    let mut components = Vec::new();
    for _ in 0..count {
        let component = component(&mut fields, source.size(), components.last())?;
        components.push(component);
    }
    check_disjoint(&components, list_at, [(header_at, header.size.into()), (at, size)])?;
    Ok(Ipib { at, components })
}

/// One entry of the list: aligned, inside the file, and its tweak above the previous one, an order that
/// QEMU requires (hw/s390x/ipl.h, `ipl_valid_pv_components`).
fn component(
    fields: &mut Fields,
    file_size: u64,
    previous: Option<&Component>,
) -> Result<Component, ImageError> {
    let tweak = fields.u64("tweak of a component")?;
    let address = fields.u64("address of a component")?;
    let size = fields.u64("size of a component")?;
    if let Some(previous) = previous {
        let above = Bound::AtLeast(previous.tweak.saturating_add(1));
        tweak.must_be(above, "tweaks must increase from component to component")?;
    }
    let address = address.must_be(Bound::MultipleOf(PAGE), "components are aligned to pages")?;
    let room = file_size.saturating_sub(address);
    let size_in_pages =
        size.must_be(Bound::Within(1, room), "the component would extend beyond the end of the file")?;
    let padded = size_in_pages.div_ceil(PAGE).saturating_mul(PAGE);
    if padded > room {
        size.must_be(
            Bound::AtMost(room / PAGE * PAGE),
            "its last page would extend beyond the end of the file",
        )?;
    }
    Ok(Component { address, size: size.any(), tweak: tweak.any() })
}

/// Refuses components that overlap each other or one of the `others` (offset, size).
fn check_disjoint(components: &[Component], list_at: u64, others: [(u64, u64); 2]) -> Result<(), ImageError> {
    let mut sorted: Vec<_> = components.iter().zip(0..).collect();
    sorted.sort_by_key(|(component, _)| component.address);
    let address_at = |index: u64| list_at + index * COMPONENT_BYTES + 8;
    for pair in sorted.windows(2) {
        let [(previous, _), (component, index)] = pair else { continue };
        let address = Number::new("address of a component", address_at(*index), component.address);
        address.must_be(Bound::AtLeast(previous.end()), "it overlaps another component")?;
    }
    for (component, index) in sorted {
        for (offset, size) in others {
            let address = Number::new("address of a component", address_at(index), component.address);
            if component.address < offset.saturating_add(size) && offset < component.end() {
                let behind = Bound::AtLeast(offset.saturating_add(size));
                address.must_be(behind, "it overlaps the SE header or the IPIB")?;
            }
        }
    }
    Ok(())
}

impl Component {
    pub fn kind(&self) -> ComponentKind {
        match u16::from_be_bytes([self.tweak.to_be_bytes()[0], self.tweak.to_be_bytes()[1]]) {
            40 => ComponentKind::Kernel,
            50 => ComponentKind::Ramdisk,
            60 => ComponentKind::CommandLine,
            70 => ComponentKind::Stage3b,
            other => ComponentKind::Other(other),
        }
    }

    pub fn pages(&self) -> u64 {
        self.size.div_ceil(PAGE)
    }

    /// The first address after its last page.
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.pages().saturating_mul(PAGE))
    }
}

impl fmt::Display for ComponentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str("kernel"),
            Self::Ramdisk => f.write_str("ramdisk"),
            Self::CommandLine => f.write_str("command line"),
            Self::Stage3b => f.write_str("stage3b"),
            Self::Other(number) => write!(f, "component of kind {number}"),
        }
    }
}
