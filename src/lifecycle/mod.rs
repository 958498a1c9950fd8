//! The state tables: what may happen when, as data.

pub mod process;
pub mod vm;
