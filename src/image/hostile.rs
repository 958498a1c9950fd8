//! Bytes that are almost right, for tests: each run makes the same.

/// A small generator of numbers (xorshift).
pub(crate) struct Hostile(u64);

impl Default for Hostile {
    fn default() -> Self {
        Self(0x5eed)
    }
}

impl Hostile {
    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).expect("small")
    }

    /// `seed`, which is not empty, with up to four of its bytes changed, and cut now and then.
    pub(crate) fn changed(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            bytes[at] = u8::try_from(self.below(256)).expect("byte");
        }
        if self.below(8) == 0 {
            bytes.truncate(self.below(bytes.len()));
        }
        bytes
    }
}
