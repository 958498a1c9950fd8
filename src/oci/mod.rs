//! What the OCI bundle asks for and what the guest is sent instead: pure rewriting, no I/O.

pub mod bundle;
pub mod guest_spec;
pub mod limits;
pub mod pod;
pub mod pod_spec;
pub mod refusal;
pub mod resources;
pub mod storage;
pub mod volume;
