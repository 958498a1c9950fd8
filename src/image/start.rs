//! What QEMU starts, which the header does not say: a kernel with a header behind it would run in clear.
//!
//! QEMU loads the file at address 0 and starts it at the address of its PSW or, if it looks like Linux, at
//! 0x10000 (hw/s390x/ipl.c, `s390_ipl_realize`; a file with this PSW is no ELF). The loader that pvimg puts
//! there enters protected mode with the header and the list that its arguments name (s390-tools,
//! rust/pvimg/boot/stage3a.c). That the loader's code is pvimg's is not checked: versions differ. The machine
//! is asked later.

use crate::image::error::{Bound, ImageError};
use crate::image::fields::{Fields, Number, block};
use crate::image::header::Header;
use crate::image::ipib::Ipib;
use crate::image::source::ReadAt;

/// The loader's entry, and the short PSW that starts it: 64 bit mode, and bit 12, which marks it as short.
const ENTRY: u64 = 0x11000;
const PSW: u64 = 0x0008_0001_8000_0000 | ENTRY;

/// Where Linux has the word `S390EP`.
const LINUX_AT: u64 = 0x10008;
const LINUX: u64 = u64::from_be_bytes(*b"\0\0S390EP");

/// The loader ends before this address, and its last bytes are its arguments, aligned (stage3a.lds.S).
const LOADER_END: u64 = 0x13000;
const ARGUMENTS_BYTES: u64 = 24;
const ARGUMENTS_ALIGN: usize = 16;

const UNPROTECTED: &str = "QEMU would start something else than the image's loader, unprotected";
const ANOTHER: &str = "the image's loader would start something else than what was checked";

/// Checks that QEMU starts the loader, and the loader what was read from the image.
pub(crate) fn check(
    source: &(impl ReadAt + ?Sized),
    header_at: u64,
    header: &Header,
    ipib: Option<&Ipib>,
) -> Result<(), ImageError> {
    let first = block(source, "start PSW", 0, 8)?;
    Fields::new(&first, 0).u64("start PSW")?.must_be(Bound::Exactly(PSW), UNPROTECTED)?;
    let linux = block(source, "start of the loader", LINUX_AT, 8)?;
    let linux = Fields::new(&linux, LINUX_AT).u64("start of the loader")?.any() >> 16;
    Number::new("start of the loader", LINUX_AT, linux).must_be(Bound::Not(LINUX), UNPROTECTED)?;

    let addresses = ipib.iter().flat_map(|ipib| ipib.components.iter().map(|component| component.address));
    let others = addresses.chain(ipib.map(|ipib| ipib.at)).chain([header_at, LOADER_END]);
    let end = others.fold(u64::MAX, u64::min);
    Number::new("end of the loader", ENTRY, end)
        .must_be(Bound::AtLeast(ENTRY + ARGUMENTS_BYTES), UNPROTECTED)?;
    let loader = block(source, "loader", ENTRY, end - ENTRY)?;
    // Behind the arguments are zeros; their own last eight bytes are not zero.
    let last = loader.iter().rposition(|byte| *byte != 0).unwrap_or_default();
    let offset = last.saturating_sub(16) / ARGUMENTS_ALIGN * ARGUMENTS_ALIGN;
    let at = ENTRY + offset as u64;
    let mut arguments = Fields::new(loader.get(offset..).unwrap_or_default(), at);
    let header_offset = arguments.u64("offset of the SE header in the loader's arguments")?;
    header_offset.must_be(Bound::Exactly(header_at - at), ANOTHER)?;
    let size = arguments.u64("size of the SE header in the loader's arguments")?;
    size.must_be(Bound::Exactly(header.size.into()), ANOTHER)?;
    let ipib_offset = arguments.u64("offset of the IPIB in the loader's arguments")?;
    if let Some(ipib) = ipib {
        ipib_offset.must_be(Bound::Exactly(ipib.at - at), ANOTHER)?;
    }
    Ok(())
}
