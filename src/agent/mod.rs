//! The guest agent: how it is reached and what it is asked.

pub mod calls;
pub mod client;
mod convert;
pub mod dial;
mod figures;
mod messages;
mod method;
