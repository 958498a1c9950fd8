//! Bringing a container's root file system into the guest.
