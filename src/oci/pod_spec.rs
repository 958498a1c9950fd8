//! What a pod's VM is started with, whether the pod is created by its first container's bundle or by the
//! Sandbox API, which has no such container.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::error::Result;
use crate::ids::SandboxId;
use crate::oci::requests;
use crate::oci::role::Role;
use crate::oci::spec::Bundle;
use crate::oci::volume;
use crate::plan::cpus::CpuList;
use crate::plan::size::Requested;

/// What must be known of a pod to start it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodSpec {
    /// At most 64 bytes. None: the sandbox's id is the host name.
    pub hostname: Option<String>,
    /// None: no network.
    pub network_namespace: Option<PathBuf>,
    /// As in an OCI spec: a path, or `slice:prefix:name`.
    pub cgroups_path: Option<String>,
    pub oom_score_adj: Option<i32>,
    /// The host's CPUs that the VM may run on.
    pub cpus: CpuList,
    /// The sum of its containers' limits.
    pub requested: Requested,
    pub annotations: HashMap<String, String>,
    pub resolver: Resolver,
    /// Its only container is none of CRI's (`ctr`).
    pub single: bool,
    /// Kernel settings of each container; empty if a sandbox container has them.
    pub sysctls: HashMap<String, String>,
}

/// The servers that the guest's own resolver asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Resolver {
    #[default]
    None,
    /// Those in this resolv.conf of the host.
    File(PathBuf),
    /// The lines of a resolv.conf.
    Lines(Vec<String>),
}

impl PodSpec {
    /// The pod that this first container creates.
    pub(crate) fn of_bundle(bundle: &Bundle) -> Result<Self> {
        Ok(Self {
            hostname: bundle.hostname(),
            network_namespace: bundle.network_namespace(),
            cgroups_path: bundle.cgroups_path(),
            oom_score_adj: bundle.spec.process().as_ref().and_then(|process| process.oom_score_adj()),
            cpus: bundle.cpus()?,
            requested: requests::requested(bundle)?,
            annotations: bundle.spec.annotations().clone().unwrap_or_default(),
            resolver: volume::resolv_conf(bundle).map_or(Resolver::None, |path| Resolver::File(path.into())),
            single: bundle.role == Role::Single,
            sysctls: HashMap::new(),
        })
    }

    /// The sandbox's id for the agent. A newer agent may take the container of this id for the sandbox container, and
    /// run its pause program instead of the image that it was to pull; none looks for OOMs of that container.
    pub(crate) fn id_in_guest(&self, id: &SandboxId) -> String {
        if self.single { format!("{id}-sandbox") } else { id.as_str().to_owned() }
    }
}
