//! Host key documents: the X.509 certificates that tell a machine's public key. Data in, data out.
//!
//! The shim only takes the key's hash out of a document the operator configured (`document`); who
//! signed it is checked where a person decides to trust it, in the node command.

pub mod certificate;
pub mod chain;
pub mod document;
mod name;
mod signature;

pub use certificate::{Certificate, RevocationList};
pub use chain::{Chain, Trust};
pub use document::{Document, key_hash, pem};
