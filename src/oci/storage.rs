//! What the agent mounts before it starts a container: its `Storage` message as plain data.

/// One storage; drivers and option strings are those of `agent::proto` (see the table there).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    pub driver: String,
    pub driver_options: Vec<String>,
    pub source: String,
    pub fstype: String,
    pub options: Vec<String>,
    /// Where the guest mounts it.
    pub mount_point: String,
    /// Kept by the agent until the sandbox ends, and mounted only once per mount point.
    pub shared: bool,
}
