//! QEMU: its command line, its life, and QMP.

pub mod args;
pub mod event;
pub mod failure;
pub mod hotplug;
pub mod launch;
mod opt;
pub mod qmp;
pub mod tail;
pub mod ultravisor;
pub mod vsock_device;
