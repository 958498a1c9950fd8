//! What is known of the host, as far as Secure Execution requires: data that `host::facts` reads.

use crate::image::KeyHash;

/// One fact. A missing file is a fact, and so is a file that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact<T> {
    Known(T),
    /// The kernel does not report it.
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

/// The host's side of Secure Execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// As `uname -m` prints it.
    pub architecture: String,
    /// CPU facility 158 (ultravisor call).
    pub uv_facility: Fact<bool>,
    /// This kernel was started with prot_virt=1 and runs secure guests.
    pub prot_virt_host: Fact<bool>,
    /// This kernel is itself a secure guest.
    pub prot_virt_guest: Fact<bool>,
    /// The most virtual CPUs of one guest, the most secure guests, and a guest's highest address in bytes.
    pub max_cpus: Fact<u64>,
    pub max_guests: Fact<u64>,
    pub max_address: Fact<u64>,
    /// Supported header versions, by (version >> 8), and plaintext flags: masks, whose bit 0 is the most
    /// significant one.
    pub header_versions: Fact<u64>,
    pub header_flags: Fact<u64>,
    pub keys: Fact<HostKeys>,
    pub kvm: Kvm,
    /// Secure guests that run now; None if they were not counted.
    pub running_guests: Option<u64>,
}

/// The hashes of the host keys that an image can be sealed for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostKeys {
    pub host: Option<KeyHash>,
    /// Replaces the host key when the machine's keys are renewed.
    pub backup: Option<KeyHash>,
}

/// What /dev/kvm can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kvm {
    Missing,
    /// It cannot be opened; why.
    Unusable(String),
    /// KVM works, without KVM_CAP_S390_PROTECTED.
    Unprotected,
    Protected,
}
