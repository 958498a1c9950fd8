//! The pure way from a VmPlan to QEMU's argument vector.
