//! The standard streams of processes: from the agent to the client's fifos and back.

pub mod pump;
pub mod sink;
pub mod stdin;
