//! Which pod a container belongs to, by the annotations of containerd's CRI plugin and of CRI-O.

use std::collections::HashMap;

use crate::error::{Context, Error, Result};
use crate::ids::{ContainerId, SandboxId};

/// The keys of (kind, sandbox id), containerd's and CRI-O's.
const ANNOTATIONS: [(&str, &str); 2] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
];

/// The annotation that says whether a container is a pod's sandbox container: key and value. Agents look at it, too.
pub(crate) fn container_type(annotations: &HashMap<String, String>) -> Option<(&'static str, &str)> {
    ANNOTATIONS.iter().find_map(|(key, _)| Some((*key, annotations.get(*key)?.as_str())))
}

/// A container's role in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// No CRI annotations (`ctr run`): the only container of its sandbox.
    Single,
    /// The pod's sandbox container: its id is the sandbox id.
    Sandbox,
    /// A further container of this pod.
    Member { sandbox: SandboxId },
}

impl Role {
    /// The pod's id, for the container `id`.
    pub fn sandbox(&self, id: &ContainerId) -> SandboxId {
        match self {
            Self::Single | Self::Sandbox => id.to_sandbox(),
            Self::Member { sandbox } => sandbox.clone(),
        }
    }

    /// The agent's name for it (`io.katacontainers.pkg.oci.container_type`).
    pub fn agent_name(&self) -> &'static str {
        match self {
            Self::Single => "single_container",
            Self::Sandbox => "pod_sandbox",
            Self::Member { .. } => "pod_container",
        }
    }

    /// Reads the role of container `id` from its annotations.
    pub(crate) fn from_annotations(annotations: &HashMap<String, String>, id: &ContainerId) -> Result<Self> {
        for (kind_key, sandbox_key) in ANNOTATIONS {
            let Some(kind) = annotations.get(kind_key) else { continue };
            let sandbox = annotations
                .get(sandbox_key)
                .map(|text| SandboxId::parse(text).context(format!("annotation {sandbox_key}")))
                .transpose()?;
            return match (kind.as_str(), sandbox) {
                ("sandbox", None) => Ok(Self::Sandbox),
                ("sandbox", Some(sandbox)) if sandbox.is(id) => Ok(Self::Sandbox),
                ("sandbox", Some(sandbox)) => Err(Error::invalid(format!(
                    "container {id}: is marked as the sandbox container, but {sandbox_key} names {sandbox}"
                ))),
                ("container", Some(sandbox)) if !sandbox.is(id) => Ok(Self::Member { sandbox }),
                ("container", Some(_)) => Err(Error::invalid(format!(
                    "container {id}: is marked as a member of the sandbox that it is itself"
                ))),
                ("container", None) => Err(Error::invalid(format!(
                    "container {id}: {kind_key} is \"container\", but {sandbox_key} is missing"
                ))),
                (other, _) => Err(Error::invalid(format!(
                    "container {id}: {kind_key} is {other:?}: expected \"sandbox\" or \"container\""
                ))),
            };
        }
        Ok(Self::Single)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Role> {
        let annotations = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Role::from_annotations(&annotations, &ContainerId::parse("c1").expect("id"))
    }

    #[test]
    fn both_sets_of_annotations_and_none() {
        let member = Role::Member { sandbox: SandboxId::parse("s1").expect("id") };
        assert_eq!(of(&[]), Ok(Role::Single));
        for (kind, sandbox) in ANNOTATIONS {
            assert_eq!(of(&[(kind, "sandbox")]), Ok(Role::Sandbox));
            assert_eq!(of(&[(kind, "sandbox"), (sandbox, "c1")]), Ok(Role::Sandbox));
            assert_eq!(of(&[(kind, "container"), (sandbox, "s1")]), Ok(member.clone()));
            for bad in [
                vec![(kind, "sandbox"), (sandbox, "s1")],
                vec![(kind, "container")],
                vec![(kind, "container"), (sandbox, "c1")],
                vec![(kind, "container"), (sandbox, "../x")],
                vec![(kind, "pod")],
            ] {
                assert!(of(&bad).is_err(), "{bad:?}");
            }
        }
    }
}
