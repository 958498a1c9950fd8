//! Sealing of pages: AES-256-XTS, each page a data unit whose tweak is its own number.

use aes::Aes256;
use aes::cipher::{BlockDecrypt, BlockEncrypt, KeyInit};

pub const PAGE: usize = 4096;

/// Up to the next page.
pub fn padded(size: usize) -> usize {
    size.div_ceil(PAGE) * PAGE
}

/// The tweak of a component's page: a number of 16 bytes that grows by the page size.
pub fn tweak(prefix: u64, page: usize) -> [u8; 16] {
    ((u128::from(prefix) << 64) + (page * PAGE) as u128).to_be_bytes()
}

/// A component key: one half for the data, one for the tweaks.
pub struct PageKey {
    data: Aes256,
    tweaks: Aes256,
}

impl std::fmt::Debug for PageKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PageKey")
    }
}

impl PageKey {
    pub fn new(key: &[u8; 64]) -> Self {
        let (data, tweaks) = key.split_at(32);
        Self { data: Aes256::new(data.into()), tweaks: Aes256::new(tweaks.into()) }
    }

    pub fn seal(&self, page: &mut [u8], tweak: [u8; 16]) {
        self.each_block(page, tweak, |block| self.data.encrypt_block(block.into()));
    }

    pub fn unseal(&self, page: &mut [u8], tweak: [u8; 16]) {
        self.each_block(page, tweak, |block| self.data.decrypt_block(block.into()));
    }

    /// IEEE 1619: a block is masked before and after, and the mask doubles from block to block.
    fn each_block(&self, page: &mut [u8], tweak: [u8; 16], turn: impl Fn(&mut [u8])) {
        let mut mask = tweak;
        self.tweaks.encrypt_block((&mut mask).into());
        let mut mask = u128::from_le_bytes(mask);
        for block in page.chunks_exact_mut(16) {
            apply(block, mask);
            turn(block);
            apply(block, mask);
            mask = (mask << 1) ^ if mask >> 127 == 1 { 0x87 } else { 0 };
        }
    }
}

fn apply(block: &mut [u8], mask: u128) {
    for (byte, mask) in block.iter_mut().zip(mask.to_le_bytes()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tweak_grows_by_the_page_size_over_all_sixteen_bytes() {
        assert_eq!(tweak(0x0028_0102_0304_0506, 0)[..8], [0, 0x28, 1, 2, 3, 4, 5, 6]);
        assert_eq!(tweak(1, 3)[8..], 0x3000_u64.to_be_bytes());
    }

    #[test]
    fn a_page_is_unsealed_to_what_was_sealed() {
        let key = PageKey::new(&[7; 64]);
        let mut page = vec![1; PAGE];
        key.seal(&mut page, tweak(1, 2));
        assert_ne!(page, vec![1; PAGE]);
        let mut other = page.clone();
        key.unseal(&mut other, tweak(1, 3));
        assert_ne!(other, vec![1; PAGE]);
        key.unseal(&mut page, tweak(1, 2));
        assert_eq!(page, vec![1; PAGE]);
    }
}
