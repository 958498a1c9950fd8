//! The configuration: what the operator wrote (`file`), what it means (`resolved`), and what a pod may change
//! of it (`annotations`).

pub mod annotations;
pub mod file;
pub mod resolved;

pub use resolved::{Accelerator, AgentConfig, Boot, Config, LogLevel, QemuConfig, RootfsConfig, VsockConfig};
