//! `config.json` bytes to a checked OCI spec.
