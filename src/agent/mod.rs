//! The guest agent: how it is reached and what it is asked.

pub mod calls;
pub mod client;
pub mod convert;
pub mod dial;
