//! How a container's root file system reaches the guest, decided from the mounts containerd sent.

use std::path::PathBuf;

/// One mount of Task.Create's `rootfs` list, as sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootfsMount {
    pub fstype: String,
    pub source: String,
    pub options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootfsPlan {
    /// Directories, topmost layer first: packed into one read-only image.
    Packed {
        layers: Vec<PathBuf>,
        /// Committed layers that never change (shared, cached), or a container's own directory.
        shared: bool,
    },
    /// A file or block device with a file system: attached as it is.
    Block { source: PathBuf, fstype: String, read_only: bool, options: Vec<String> },
}
