//! The guest agent: how it is reached and what it is asked.

pub(crate) mod calls;
pub(crate) mod client;
mod convert;
mod messages;
mod methods;
mod stats;
pub(crate) mod transport;
