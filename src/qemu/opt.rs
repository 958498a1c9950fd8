//! QEMU's key=value option syntax, with commas doubled.
