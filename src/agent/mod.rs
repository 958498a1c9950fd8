//! The guest's agent: connecting to it, and its calls.

pub(crate) mod calls;
pub(crate) mod client;
pub(crate) mod convert;
mod denials;
pub(crate) mod guard;
pub(crate) mod messages;
mod methods;
pub(crate) mod stats;
pub(crate) mod transport;
