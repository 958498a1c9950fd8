//! The configuration: what the operator wrote (`file`), what it means (`resolved`), and what a pod may change
//! of it (`annotations`).

pub(crate) mod annotations;
pub(crate) mod file;
pub(crate) mod resolved;

pub use resolved::{Accelerator, AgentConfig, Boot};
pub(crate) use resolved::{Config, LogLevel, QemuConfig, RootfsConfig, VsockConfig};
