//! What may happen when, as data: the state tables of a process and of the VM, and how a VM can end.

pub(crate) mod process;
pub(crate) mod vm;
