//! Which pod a container belongs to: the annotations of containerd's CRI plugin and of CRI-O.

use crate::ids::SandboxId;

/// A container's place in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// No CRI annotations (`ctr run`): one container, a sandbox of its own.
    Single,
    /// The pod's sandbox container: its id is the sandbox id.
    Sandbox,
    /// One more container of the pod named.
    Member { sandbox: SandboxId },
}
