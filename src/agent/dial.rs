//! Connecting to the agent: vsock and hybrid vsock.
