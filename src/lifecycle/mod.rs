//! What may happen when, as data: the state table of a process, and the ends a VM can have.

pub mod diagnosis;
pub mod process;
pub mod vm;
