//! One container's operations; the truth about it stands in `pod`.

pub mod layers;
pub mod rootfs;
