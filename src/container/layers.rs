//! The cache of packed image layers.
