//! The pod's network: from its namespace into the guest.
