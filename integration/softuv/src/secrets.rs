//! What is random in an image: keys, iv, tweaks. From the system, or from a seed for images that
//! are the same each time.

use std::io::Read;

use sha2::{Digest, Sha512};

use crate::Result;

/// Everything random.
pub struct Secrets {
    /// The private number of the image's own key.
    pub customer: [u8; 64],
    pub header_key: [u8; 32],
    pub iv: [u8; 12],
    /// The customer communication key: dumps are encrypted with it.
    pub communication_key: [u8; 32],
    pub component_key: [u8; 64],
    /// Lower six bytes of each component's tweak prefix: kernel, ramdisk, command line, stage3b.
    pub tweaks: [[u8; 6]; 4],
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

impl Secrets {
    /// New ones, or those of a seed.
    pub fn new(seed: Option<&str>) -> Result<Self> {
        Ok(Self {
            customer: take(seed, "customer")?,
            header_key: take(seed, "header key")?,
            iv: take(seed, "iv")?,
            communication_key: take(seed, "communication key")?,
            component_key: take(seed, "component key")?,
            tweaks: [
                take(seed, "tweak 0")?,
                take(seed, "tweak 1")?,
                take(seed, "tweak 2")?,
                take(seed, "tweak 3")?,
            ],
        })
    }
}

/// Up to 64 bytes for this purpose.
pub fn take<const N: usize>(seed: Option<&str>, purpose: &str) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    match seed {
        Some(seed) => {
            let sum = Sha512::new().chain_update(seed).chain_update("\0").chain_update(purpose).finalize();
            bytes.iter_mut().zip(sum).for_each(|(to, from)| *to = from);
        }
        None => std::fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut bytes))
            .map_err(|e| format!("/dev/urandom: {e}"))?,
    }
    Ok(bytes)
}
