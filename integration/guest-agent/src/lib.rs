//! A small guest agent for demo and tests: speaks the protocol of `src/agent/proto`, and can be told to misbehave.
//!
//! For development only: nothing here protects anything. See README.md.

// It stands alone: the product's rules for tasks and children are not its own.
#![allow(clippy::disallowed_methods)]

mod agent;
mod boot;
mod cgroup;
mod check;
mod cli;
mod copy;
mod crun;
mod device;
mod environment;
mod exec_gate;
mod failure;
mod interpose;
pub mod messages;
mod network;
mod oci;
mod oom;
mod plain;
mod process;
mod reaper;
mod record;
pub mod script;
mod serve;
mod service;
mod stdio;
mod storage;
mod sys;
mod sysctl;

pub use cli::run;
