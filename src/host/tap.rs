//! Tap devices, non-persistent, handed over as descriptors.
