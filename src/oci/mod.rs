//! What an OCI bundle requests, and what the guest is sent instead: pure rewriting without I/O.

pub(crate) mod device;
pub(crate) mod guest_spec;
pub(crate) mod image_name;
pub(crate) mod pod_spec;
pub(crate) mod requests;
pub(crate) mod resources;
pub(crate) mod role;
pub(crate) mod spec;
pub(crate) mod storage;
pub(crate) mod termination;
pub(crate) mod tree;
pub(crate) mod unsupported;
pub(crate) mod volume;
