//! The doors containerd knocks at: `start`, `delete`, the Task service, events, logs.

pub mod delete;
pub mod events;
pub mod log;
pub mod main;
pub mod serve;
pub mod start;
pub mod task;
