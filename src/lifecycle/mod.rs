//! The state table of a process: what may happen when, as data.

pub mod process;
pub mod vm;
