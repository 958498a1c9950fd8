//! How large a VM is.

/// Memory and virtual CPUs, fixed for the VM's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub memory_mib: u32,
    pub vcpus: u32,
}
