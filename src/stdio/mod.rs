//! The standard streams of processes: from the agent to the client's fifos and back.

pub(crate) mod pump;
pub(crate) mod sink;
pub(crate) mod stdin;
