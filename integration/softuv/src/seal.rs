//! Seals kernel, initrd and command line into an image, as `pvimg create` does.

use p521::PublicKey;
use sha2::{Digest, Sha512};

use crate::damage::Damage;
use crate::header::{self, Clear, Inner};
use crate::page::{PAGE, PageKey, padded, tweak};
use crate::secrets::Secrets;
use crate::{Result, keys};

/// Address and entry of the loader in clear text.
pub const STAGE3A_AT: usize = 0x10000;
pub const STAGE3A_ENTRY: usize = 0x11000;
const STAGE3A_ARGUMENTS: usize = 24;
const STAGE3B_ARGUMENTS: usize = 64;

pub const METADATA_AT: usize = 0xc000;
pub const METADATA_MAGIC: &[u8; 8] = b"SeImgLnx";

/// Entry of every kernel.
const KERNEL_ENTRY: u64 = 0x10000;

/// A short PSW (8 bytes) has bit 12 set and the address in its lower half.
const SHORT_PSW: u64 = 0x0008_0001_8000_0000;

/// Kinds of components: the upper 16 bits of their tweaks.
pub const KERNEL: u16 = 40;
pub const RAMDISK: u16 = 50;
pub const COMMAND_LINE: u16 = 60;
pub const STAGE3B: u16 = 70;

/// What is sealed, and the loaders that unseal it.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    pub kernel: Vec<u8>,
    pub ramdisk: Option<Vec<u8>>,
    /// Without a NUL at its end.
    pub command_line: Vec<u8>,
    pub stage3a: Vec<u8>,
    pub stage3b: Vec<u8>,
}

/// For whom and how.
#[derive(Clone, Debug)]
pub struct Options {
    pub hosts: Vec<PublicKey>,
    /// Plaintext control flags.
    pub flags: u64,
    /// Secret control flags.
    pub secret_flags: u64,
    pub damage: Option<Damage>,
}

impl Options {
    pub fn new(hosts: Vec<PublicKey>) -> Self {
        Self { hosts, flags: header::DEFAULT_FLAGS, secret_flags: 0, damage: None }
    }
}

/// One component: its address, its unpadded size, its tweak.
struct Component {
    address: usize,
    size: usize,
    tweak: u64,
}

/// Addresses of the blocks behind the components.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    pub header: usize,
    pub header_size: usize,
    pub ipib: usize,
    /// The first sealed page.
    pub first_page: usize,
}

/// The whole image.
pub fn seal(parts: &Parts, options: &Options, secrets: &Secrets) -> Result<Vec<u8>> {
    let encrypted = options.flags & header::flag(header::NO_COMPONENT_ENCRYPTION) == 0;
    let mut image = Image::new(parts, secrets, encrypted)?;
    image.component(KERNEL, &parts.kernel);
    if let Some(ramdisk) = &parts.ramdisk {
        image.component(RAMDISK, ramdisk);
    }
    let command_line = [&parts.command_line[..], &[0]].concat();
    image.component(COMMAND_LINE, &command_line);
    let stage3b = stage3b(parts, &image.components)?;
    let entry = image.component(STAGE3B, &stage3b);
    let inner = Inner { entry: entry as u64, flags: options.secret_flags };
    image.finish(parts, options, inner)
}

struct Image<'a> {
    bytes: Vec<u8>,
    secrets: &'a Secrets,
    key: Option<PageKey>,
    components: Vec<Component>,
    content: Sha512,
    addresses: Sha512,
    tweaks: Sha512,
    pages: u64,
}

impl<'a> Image<'a> {
    fn new(parts: &Parts, secrets: &'a Secrets, encrypted: bool) -> Result<Self> {
        if parts.stage3a.len() < STAGE3A_ARGUMENTS {
            return Err("stage3a is shorter than its arguments".into());
        }
        Ok(Self {
            bytes: vec![0; STAGE3A_AT + padded(parts.stage3a.len())],
            secrets,
            key: encrypted.then(|| PageKey::new(&secrets.component_key)),
            components: Vec::new(),
            content: Sha512::new(),
            addresses: Sha512::new(),
            tweaks: Sha512::new(),
            pages: 0,
        })
    }

    /// Seals a component behind the others; returns its address.
    fn component(&mut self, kind: u16, content: &[u8]) -> usize {
        let address = self.bytes.len();
        let random = self.secrets.tweaks[usize::from(kind - KERNEL) / 10];
        let prefix = (u64::from(kind) << 48) | random.iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
        self.bytes.extend(content);
        self.bytes.resize(address + padded(content.len()), 0);
        for (index, page) in self.bytes[address..].chunks_mut(PAGE).enumerate() {
            let tweak = tweak(prefix, index);
            if let Some(key) = &self.key {
                key.seal(page, tweak);
            }
            self.content.update(&*page);
            self.addresses.update(((address + index * PAGE) as u64).to_be_bytes());
            self.tweaks.update(tweak);
            self.pages += 1;
        }
        self.components.push(Component { address, size: content.len(), tweak: prefix });
        address
    }

    /// Header, IPIB, and the part in clear text.
    fn finish(mut self, parts: &Parts, options: &Options, inner: Inner) -> Result<Vec<u8>> {
        let customer = keys::private(&self.secrets.customer)?;
        let slot = |host| keys::slot(&customer, host, &self.secrets.header_key);
        let mut clear = Clear {
            version: header::VERSION,
            pages: self.pages,
            flags: options.flags,
            customer_key: keys::point(&customer.public_key()),
            content_digest: self.content.clone().finalize().into(),
            address_digest: self.addresses.clone().finalize().into(),
            tweak_digest: self.tweaks.clone().finalize().into(),
            slots: options.hosts.iter().map(slot).collect::<Result<_>>()?,
        };
        if let Some(damage) = options.damage {
            damage.before_sealing(&mut clear);
        }
        let header = header::write(&clear, inner, self.secrets)?;
        let at = self.bytes.len();
        let places = Places {
            header: at,
            header_size: header.len(),
            ipib: at + padded(header.len()),
            first_page: STAGE3A_AT + padded(parts.stage3a.len()),
        };
        self.bytes.extend(header);
        self.bytes.resize(places.ipib, 0);
        self.bytes.extend(ipib(&self.components, places)?);
        clear_part(&mut self.bytes, &parts.stage3a, places);
        if let Some(damage) = options.damage {
            damage.after_sealing(&mut self.bytes, places);
        }
        Ok(self.bytes)
    }
}

/// The inner loader with its arguments: the addresses of everything.
fn stage3b(parts: &Parts, components: &[Component]) -> Result<Vec<u8>> {
    let mut loader = parts.stage3b.clone();
    let from = loader.len().checked_sub(STAGE3B_ARGUMENTS).ok_or("stage3b is shorter than its arguments")?;
    loader.truncate(from);
    for kind in [KERNEL, COMMAND_LINE, RAMDISK] {
        let found = components.iter().find(|c| c.tweak >> 48 == u64::from(kind));
        let (address, size) = found.map_or((0, 0), |c| (c.address, c.size));
        loader.extend((address as u64).to_be_bytes());
        loader.extend((size as u64).to_be_bytes());
    }
    loader.extend(header::PSW_MASK.to_be_bytes());
    loader.extend(KERNEL_ENTRY.to_be_bytes());
    Ok(loader)
}

fn ipib(components: &[Component], places: Places) -> Result<Vec<u8>> {
    let inner_size = u32::try_from(128 + 24 * components.len()).map_err(|e| e.to_string())?;
    let mut block = Vec::new();
    block.extend((inner_size + 8).to_be_bytes());
    block.extend([0, 0, 0, 1]); // flags, reserved, version
    block.extend(inner_size.to_be_bytes());
    block.extend([5, 0, 0, 0]); // type PV
    block.extend([0; 8 + 87]); // loadparm, reserved
    block.extend([1, 0, 0, 0, 0]); // version, reserved
    block.extend(u32::try_from(components.len()).map_err(|e| e.to_string())?.to_be_bytes());
    block.extend((places.header as u64).to_be_bytes());
    block.extend((places.header_size as u64).to_be_bytes());
    for component in components {
        for number in [component.tweak, component.address as u64, padded(component.size) as u64] {
            block.extend(number.to_be_bytes());
        }
    }
    Ok(block)
}

/// PSW, metadata, and the loader with its arguments: distances from where they stand.
fn clear_part(image: &mut [u8], stage3a: &[u8], places: Places) {
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(SHORT_PSW | STAGE3A_ENTRY as u64).to_be_bytes());
    put(METADATA_AT, METADATA_MAGIC);
    put(METADATA_AT + 8, &(places.header as u64).to_be_bytes());
    put(METADATA_AT + 16, &1_u32.to_be_bytes());
    put(METADATA_AT + 20, &(places.ipib as u64).to_be_bytes());
    put(STAGE3A_AT, stage3a);
    let arguments = STAGE3A_AT + stage3a.len() - STAGE3A_ARGUMENTS;
    let numbers = [places.header - arguments, places.header_size, places.ipib - arguments];
    for (index, number) in numbers.into_iter().enumerate() {
        put(arguments + 8 * index, &(number as u64).to_be_bytes());
    }
}
