//! Host key documents: the X.509 certificates that carry a machine's public key. Data in, data out.
//!
//! The shim only takes the key's hash out of a document that the operator configured (`document`); its
//! signatures are checked where a person decides to trust it, in the node command.
//!
//! The chain is checked by this module over the RustCrypto crates, not by a ready verifier. IBM's own
//! crate, `s390_pv`, has the rules, but needs OpenSSL and libcurl, both C. `rustls-webpki` verifies P-521,
//! the curve of every host key, only through aws-lc, which is C too, and it compares names byte by byte,
//! which IBM's documents and lists do not survive (`name`).

pub(crate) mod certificate;
pub(crate) mod chain;
pub(crate) mod document;
mod name;
pub(crate) mod pem;
mod rules;
mod scope;
mod signature;

pub(crate) use certificate::{Certificate, RevocationList};
pub(crate) use chain::Trust;
pub(crate) use document::{Document, key_hash};
