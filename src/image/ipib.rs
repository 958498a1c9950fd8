//! The IPL information block: where in memory the sealed components lie.
//!
//! Layout: Linux, arch/s390/include/uapi/asm/ipl.h (`ipl_pb0_pv`); all integers are big-endian.

use std::fmt;

/// The block, as far as a host needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipib {
    /// Where in the file the block begins.
    pub at: u64,
    /// In the order of the file's list, which is that of the digests; they do not overlap.
    pub components: Vec<Component>,
}

/// A sealed part of the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// First byte, a multiple of the page size.
    pub address: u64,
    /// Bytes; the last page is filled up.
    pub size: u64,
    /// Upper half of the first page's tweak.
    pub tweak: u64,
}

/// What a component holds; kept in the upper 16 bits of its tweak by pvimg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Kernel,
    Ramdisk,
    CommandLine,
    /// The loader inside the sealed part.
    Stage3b,
    Other(u16),
}

impl Component {
    pub fn kind(&self) -> Kind {
        match u16::from_be_bytes([self.tweak.to_be_bytes()[0], self.tweak.to_be_bytes()[1]]) {
            40 => Kind::Kernel,
            50 => Kind::Ramdisk,
            60 => Kind::CommandLine,
            70 => Kind::Stage3b,
            other => Kind::Other(other),
        }
    }

    pub fn pages(&self) -> u64 {
        self.size.div_ceil(super::PAGE)
    }
}

impl fmt::Display for Kind {
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
