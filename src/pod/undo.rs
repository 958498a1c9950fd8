//! What is owed for each resource, and how it is paid back.
//!
//! Each entry treats "not there" as success, names only things that are ours by construction, and
//! ends in bounded time.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One resource that must not outlive its scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "owe", rename_all = "snake_case")]
pub enum Undo {
    /// The pod's leaf cgroup with every process in it (QEMU and helpers); `path` as in
    /// `host::cgroup`, below the hierarchies' roots.
    Cgroup { path: PathBuf },
    /// A tap device in a network namespace (gone with QEMU; a belt).
    Tap { netns: PathBuf, name: String },
    /// Our mirroring filters and the ingress qdisc on a link of a network namespace.
    Mirror { netns: PathBuf, link: String, tap: String },
    /// A file, socket or empty directory directly below the pod's own directory.
    Path { name: String },
}
