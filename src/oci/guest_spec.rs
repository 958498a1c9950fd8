//! The pure rewriting of a host's OCI spec into the one the guest agent accepts.
