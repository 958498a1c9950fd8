//! A small guest agent for demo and tests: it implements `src/agent/proto`, and can be scripted to misbehave.
//!
//! For development only: nothing here protects anything. See README.md.

// A separate program: the product's rules for tasks and children do not apply.
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
mod format;
mod guest_pull;
mod image;
mod interpose;
pub mod messages;
mod network;
mod oci;
mod oom;
mod plain;
mod policy;
mod process;
mod reaper;
mod record;
pub mod script;
mod serve;
mod service;
mod settings;
mod stdio;
mod storage;
mod sys;
mod sysctl;

pub use cli::run;
