//! The `delete` command: cleans up after a dead shim.
