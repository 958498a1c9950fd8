//! The ultravisor's part: unpacks an image with a machine's private keys, or refuses it.
//!
//! Which check comes first where several would fail is our choice: it is not documented.

use std::ops::Range;

use aes_gcm::{Aes256Gcm, KeyInit};
use p521::SecretKey;
use sha2::{Digest, Sha512};

use crate::header::{self, FIXED_BYTES, SEALED_BYTES, SLOT_BYTES, TAG_BYTES};
use crate::keys;
use crate::page::{PAGE, PageKey, tweak};
use crate::refusal::Refusal;
use crate::seal::STAGE3A_ENTRY;

/// A machine's capabilities.
pub struct Host {
    pub key: SecretKey,
    pub backup_key: Option<SecretKey>,
    /// Plaintext flags that it knows.
    pub flags: u64,
    /// Header versions that it knows: a bit for each, version 1 the second from the left.
    pub versions: u64,
    /// Secret flags that it knows.
    pub secret_flags: u64,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Host {{ key: {} }}", keys::hex(&keys::hash(&self.key.public_key())))
    }
}

/// What was sealed. Not shown by `Debug`.
#[derive(PartialEq, Eq)]
pub struct Guest {
    pub kernel: Vec<u8>,
    pub ramdisk: Option<Vec<u8>>,
    /// Without its NUL.
    pub command_line: Vec<u8>,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ramdisk = self.ramdisk.as_ref().map_or(0, Vec::len);
        write!(f, "Guest {{ kernel: {} bytes, ramdisk: {ramdisk} bytes }}", self.kernel.len())
    }
}

/// The reason why there is no guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Not a sealed image: a machine boots it as it is, unprotected.
    NotSealed,
    /// The ultravisor refused it.
    Refused(Refusal),
    /// QEMU refused the component list: diagnose 308's answer.
    BadList(u16),
    /// The sealed part does not contain what this emulation looks for.
    Unknown(String),
}

/// Where Linux has its magic: QEMU then starts it, whatever the PSW says.
const LINUX_AT: usize = 0x10008;
/// The address in a short PSW.
const SHORT_ADDRESS: usize = 0x7fff_ffff;
/// The loader ends before this address.
const STAGE3A_END: usize = 0x13000;

/// Diagnose 308: invalid (QEMU, hw/s390x/ipl.h).
const DIAGNOSE_INVALID: u16 = 0x402;

/// Unpacks an image.
pub fn unpack(mut image: Vec<u8>, host: &Host) -> Result<Guest, Fate> {
    let places = find(&image).ok_or(Fate::NotSealed)?;
    let (header_at, header_size, components) = list(&image, places).ok_or(Fate::BadList(DIAGNOSE_INVALID))?;
    let bytes = image.get(header_at..).ok_or(Fate::Refused(Refusal::HEADER_SIZE))?;
    let header = Header::open(bytes, header_size, host).map_err(Fate::Refused)?;
    header.verify(&image, &components).map_err(Fate::Refused)?;
    if header.flags & header::flag(header::NO_COMPONENT_ENCRYPTION) == 0 {
        let key = PageKey::new(&header.component_key);
        for component in &components {
            for (index, page) in image[component.range.clone()].chunks_mut(PAGE).enumerate() {
                key.unseal(page, tweak(component.tweak, index));
            }
        }
    }
    guest(&image, &header, &components).ok_or_else(|| Fate::Unknown("no arguments in stage3b".into()))
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

fn place(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(number(bytes, at)?).ok()
}

/// Header and list, as the loader's arguments name them: none where QEMU would not start the loader.
fn find(image: &[u8]) -> Option<(usize, usize)> {
    let linux = image.get(LINUX_AT..)?.starts_with(b"S390EP");
    (!linux && place(image, 0)? & SHORT_ADDRESS == STAGE3A_ENTRY).then_some(())?;
    (STAGE3A_ENTRY..STAGE3A_END).step_by(16).find_map(|arguments| {
        let header = arguments.checked_add(place(image, arguments)?)?;
        (image.get(header..)?.first_chunk()? == header::MAGIC).then_some(())?;
        Some((header, arguments.checked_add(place(image, arguments + 16)?)?))
    })
}

struct Component {
    range: Range<usize>,
    tweak: u64,
}

/// The list as QEMU accepts it (`ipl_valid_pv_components`): aligned, tweaks growing, all in memory.
fn list(image: &[u8], (header_at, ipib_at): (usize, usize)) -> Option<(usize, usize, Vec<Component>)> {
    let ipib = image.get(ipib_at..)?;
    let count = u32::from_be_bytes(*ipib.get(116..)?.first_chunk()?);
    let size = place(ipib, 128)?;
    if !(1..=165).contains(&count) || place(ipib, 120)? != header_at || size > 2 * PAGE {
        return None;
    }
    let mut components: Vec<Component> = Vec::new();
    for index in 0..usize::try_from(count).ok()? {
        let at = 136 + 24 * index;
        let (tweak, address, size) = (number(ipib, at)?, place(ipib, at + 8)?, place(ipib, at + 16)?);
        let end = address.checked_add(size.checked_next_multiple_of(PAGE)?)?;
        let grows = components.last().is_none_or(|before| before.tweak < tweak);
        if address % PAGE != 0 || !grows || end > image.len() {
            return None;
        }
        components.push(Component { range: address..end, tweak });
    }
    Some((header_at, size, components))
}

/// An opened header.
struct Header {
    flags: u64,
    pages: u64,
    /// Content, addresses, tweaks.
    digests: [[u8; 64]; 3],
    component_key: [u8; 64],
    entry: usize,
}

impl Header {
    /// Opens the header with the key of one of the host's slots.
    fn open(bytes: &[u8], size: usize, host: &Host) -> Result<Self, Refusal> {
        let wrong = Refusal::HEADER_SIZE;
        let version = u32::from_be_bytes(*bytes.get(8..).and_then(<[u8]>::first_chunk).ok_or(wrong)?);
        if host.versions & header::flag(version >> 8) == 0 || version & 0xff != 0 {
            return Err(Refusal::VERSION);
        }
        let at = |at| number(bytes, at).ok_or(wrong);
        let (slots, sealed) = (at(32)?, at(40)?);
        if slots == 0 {
            return Err(Refusal::NO_SLOTS);
        }
        if sealed < SEALED_BYTES as u64 || sealed > size as u64 {
            return Err(Refusal::ENCRYPTED_SIZE);
        }
        let said = u32::from_be_bytes(*bytes.get(12..).and_then(<[u8]>::first_chunk).ok_or(wrong)?);
        let fixed = FIXED_BYTES + TAG_BYTES;
        let sum = slots.checked_mul(SLOT_BYTES as u64).and_then(|n| n.checked_add(sealed + fixed as u64));
        if sum != Some(said.into()) || said as usize != size {
            return Err(wrong);
        }
        let header = bytes.get(..size).ok_or(wrong)?;
        let flags = at(56)?;
        if flags & !host.flags != 0 {
            return Err(Refusal::FLAGS);
        }
        let sealed = usize::try_from(sealed).ok().ok_or(wrong)?;
        let secret = unseal(header, size - TAG_BYTES - sealed, flags, host)?;
        let digest = |at: usize| header.get(at..).and_then(<[u8]>::first_chunk).copied().ok_or(wrong);
        if number(&secret, 112).is_none_or(|flags| flags & !host.secret_flags != 0) {
            return Err(Refusal::SECRET_FLAGS);
        }
        Ok(Self {
            flags,
            pages: at(48)?,
            digests: [digest(224)?, digest(288)?, digest(352)?],
            component_key: *secret.get(32..).and_then(<[u8]>::first_chunk).ok_or(wrong)?,
            entry: place(&secret, 104).ok_or(wrong)?,
        })
    }

    /// Compares number, addresses, content and tweaks of all pages.
    fn verify(&self, image: &[u8], components: &[Component]) -> Result<(), Refusal> {
        let (mut content, mut addresses, mut tweaks) = (Sha512::new(), Sha512::new(), Sha512::new());
        let mut pages = 0;
        for component in components {
            for (index, page) in image[component.range.clone()].chunks(PAGE).enumerate() {
                content.update(page);
                addresses.update(((component.range.start + index * PAGE) as u64).to_be_bytes());
                tweaks.update(tweak(component.tweak, index));
                pages += 1;
            }
        }
        let differs = |sum: Sha512, sealed: &[u8; 64]| sum.finalize()[..] != sealed[..];
        let [sealed_content, sealed_addresses, sealed_tweaks] = &self.digests;
        match () {
            () if pages != self.pages => Err(Refusal::PAGES),
            () if differs(addresses, sealed_addresses) => Err(Refusal::ADDRESSES),
            () if differs(content, sealed_content) => Err(Refusal::CONTENT),
            () if differs(tweaks, sealed_tweaks) => Err(Refusal::TWEAKS),
            () => Ok(()),
        }
    }
}

/// The sealed fields, by the key in one of the host's slots.
fn unseal(header: &[u8], sealed_at: usize, flags: u64, host: &Host) -> Result<Vec<u8>, Refusal> {
    let point = header.get(64..).and_then(<[u8]>::first_chunk).ok_or(Refusal::HEADER_SIZE)?;
    let customer = keys::from_point(point).ok_or(Refusal::CUSTOMER_KEY)?;
    let slots = header.get(FIXED_BYTES..sealed_at).ok_or(Refusal::HEADER_SIZE)?;
    let with_backup = flags & header::flag(header::BACKUP_TARGET_KEYS) != 0;
    let backup = host.backup_key.as_ref().filter(|_| with_backup);
    let mut fits = [Some(&host.key), backup].into_iter().flatten().flat_map(|key| {
        let name = keys::hash(&key.public_key());
        slots.chunks(SLOT_BYTES).filter(move |slot| slot.starts_with(&name)).map(move |slot| (key, slot))
    });
    let none = if with_backup { Refusal::NO_SLOT_FOR_BACKUP } else { Refusal::NO_SLOT_FOR_HOST };
    let (key, slot) = fits.next().ok_or(none)?;
    let key = keys::unwrap(key, &customer, slot).ok_or(Refusal::TAG)?;
    let iv = *header.get(16..).and_then(<[u8]>::first_chunk).ok_or(Refusal::HEADER_SIZE)?;
    let (clear, sealed) = header.split_at_checked(sealed_at).ok_or(Refusal::HEADER_SIZE)?;
    keys::open(&Aes256Gcm::new((&key).into()), iv, clear, sealed).ok_or(Refusal::TAG)
}

/// The loader's arguments, its last 64 bytes, end with the kernel's PSW.
fn guest(image: &[u8], header: &Header, components: &[Component]) -> Option<Guest> {
    let loader = components.iter().find(|component| component.range.contains(&header.entry))?;
    let loader = &image[loader.range.clone()];
    let psw = [header::PSW_MASK.to_be_bytes(), 0x10000_u64.to_be_bytes()].concat();
    let end = loader.windows(psw.len()).rposition(|window| window == psw)?;
    let arguments = loader.get(end.checked_sub(48)?..end)?;
    let blob = |at: usize| {
        let (from, size) = (place(arguments, at)?, place(arguments, at + 8)?);
        Some(image.get(from..from.checked_add(size)?)?.to_vec())
    };
    let mut command_line = blob(16)?;
    (command_line.pop()? == 0).then_some(())?;
    let ramdisk = blob(32)?;
    Some(Guest { kernel: blob(0)?, ramdisk: Some(ramdisk).filter(|bytes| !bytes.is_empty()), command_line })
}
