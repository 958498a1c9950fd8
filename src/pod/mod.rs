//! The pod: the truth about one sandbox, and the operations the doors call.

pub mod event;
pub mod journal;
pub mod network;
pub mod request;
pub mod step;
pub mod tasks;
pub mod undo;
