//! Launching QEMU: spawn, QMP, cont.
