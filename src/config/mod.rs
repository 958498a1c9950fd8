//! The configuration: what the operator wrote (`file`), and what it means (`resolved`).

pub mod file;
pub mod resolved;

pub use resolved::{Accelerator, AgentConfig, Boot, Config, LogLevel, QemuConfig, RootfsConfig, VsockConfig};
