//! What is known of the machine, as far as Secure Execution asks: data, read by `host::facts`.

use crate::image::KeyHash;

/// One fact. That a file is not there is a fact, and that it makes no sense is one, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact<T> {
    Known(T),
    /// The kernel does not tell it.
    Absent,
    /// What is wrong with which file, one line.
    Unclear(String),
}

impl<T> Fact<T> {
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Absent | Self::Unclear(_) => None,
        }
    }
}

/// The machine's side of Secure Execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// As `uname -m` says it.
    pub architecture: String,
    /// CPU facility 158 (ultravisor call).
    pub uv_facility: Fact<bool>,
    /// This kernel was started with prot_virt=1 and runs secure guests.
    pub prot_virt_host: Fact<bool>,
    /// This kernel is itself a secure guest.
    pub prot_virt_guest: Fact<bool>,
    /// Virtual CPUs of one guest, secure guests of the machine, highest guest address in bytes.
    pub max_cpus: Fact<u64>,
    pub max_guests: Fact<u64>,
    pub max_address: Fact<u64>,
    /// Header versions by (version >> 8), and plaintext flags: masks, bit 0 the most significant.
    pub header_versions: Fact<u64>,
    pub header_flags: Fact<u64>,
    pub keys: Fact<HostKeys>,
    pub kvm: Kvm,
    /// Secure guests that run now, as far as they were counted.
    pub running_guests: Option<u64>,
}

/// The hashes of the host keys an image can be sealed for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostKeys {
    pub host: Option<KeyHash>,
    /// Takes the host key's place when the machine's keys are renewed.
    pub backup: Option<KeyHash>,
}

/// What /dev/kvm says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kvm {
    Missing,
    /// It cannot be opened, and why.
    Unusable(String),
    /// KVM works, without KVM_CAP_S390_PROTECTED.
    Unprotected,
    Protected,
}
