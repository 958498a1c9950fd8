//! QEMU: its command line, its process, QMP, and what its end means.

pub(crate) mod args;
pub(crate) mod event;
pub(crate) mod failure;
pub(crate) mod hotplug;
mod opt;
pub(crate) mod qmp;
pub(crate) mod ultravisor;
pub(crate) mod vm;
pub(crate) mod vsock_device;
