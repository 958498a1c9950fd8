//! Host key documents: the X.509 certificates that tell a machine's public key. Data in, data out.
//!
//! The shim only takes the key's hash out of a document the operator configured (`document`); who
//! signed it is checked where a person decides to trust it, in the node command.

pub(crate) mod certificate;
pub(crate) mod chain;
pub(crate) mod document;
mod name;
mod signature;

pub(crate) use certificate::{Certificate, RevocationList};
pub(crate) use chain::Trust;
pub(crate) use document::{Document, key_hash, pem};
