//! The guest's agent: connecting to it, and its calls.

pub(crate) mod calls;
pub(crate) mod client;
mod convert;
pub(crate) mod guard;
mod messages;
mod methods;
mod stats;
pub(crate) mod transport;
