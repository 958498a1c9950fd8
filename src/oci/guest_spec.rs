//! Rewrites a host's OCI spec into the one that the guest agent accepts.
//!
//! One function per rule; the rules are the agent's contract, and policies in real guests compare the
//! result. Nothing of the host may remain: no path, no namespace, no hook.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Mount, Process, Spec};

use crate::ids::ContainerId;
use crate::oci::resources;
use crate::oci::role::Role;
use crate::oci::spec::{Bundle, ExecProcess};
use crate::oci::storage::rootfs_path;

const CONTAINER_TYPE: &str = "io.katacontainers.pkg.oci.container_type";
const BUNDLE_PATH: &str = "io.katacontainers.pkg.oci.bundle_path";
const NETWORK_NAMESPACE: &str = "nerdctl/network-namespace";
/// For the guest's programs, on a disk of its own; policies refuse it in a container's spec.
const INITDATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";

/// A spec that may be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct GuestSpec(pub(crate) Spec);

impl GuestSpec {
    /// Adds the container's seccomp profile, for an agent that applies it. Only what the protocol has reaches
    /// the guest: no listener of the host.
    #[must_use]
    pub fn with_seccomp(mut self, bundle: &Bundle) -> Self {
        if let Some(linux) = self.0.linux_mut() {
            linux.set_seccomp(bundle.spec.linux().as_ref().and_then(|linux| linux.seccomp().clone()));
        }
        self
    }
}

/// A process that may be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct GuestProcess(pub(crate) Process);

/// Rewrites a container's spec; `mounts` are those that the guest makes, `bundle_path` is only passed to
/// the guest as an annotation.
pub(crate) fn guest_spec(
    bundle: &Bundle,
    id: &ContainerId,
    bundle_path: &Path,
    mounts: Vec<Mount>,
) -> GuestSpec {
    let mut spec = bundle.spec.clone();
    spec.set_hooks(None);
    set_root(&mut spec, id);
    clear_labels(&mut spec);
    annotate(&mut spec, bundle, bundle_path);
    spec.set_mounts(Some(mounts));
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(None);
        linux.set_mount_label(None);
        // It is about later mounts on the host, which a guest does not see; policies refuse it.
        linux.set_rootfs_propagation(None);
        let kept = linux.namespaces().iter().flatten().filter(|n| is_kept(n.typ())).cloned();
        let mut kept: Vec<_> = kept.collect();
        kept.iter_mut().for_each(|n| {
            n.set_path(None);
        });
        linux.set_namespaces(Some(kept));
        if let Some(resources) = linux.resources_mut() {
            resources::trim(resources);
        }
    }
    GuestSpec(spec)
}

/// Rewrites an exec's process: labels of the host's security modules mean nothing in the guest, and
/// policies refuse capabilities here, as the agent gives an exec those of its container.
/// `terminal` is the request's: it decides for the streams, and CRI-O says it nowhere else.
pub fn guest_process(process: ExecProcess, terminal: bool) -> GuestProcess {
    let mut process = process.0;
    process.set_terminal(terminal.then_some(true));
    process.set_capabilities(None);
    process.set_selinux_label(None);
    process.set_apparmor_profile(None);
    GuestProcess(process)
}

fn set_root(spec: &mut Spec, id: &ContainerId) {
    if let Some(root) = spec.root_mut() {
        root.set_path(rootfs_path(id).into());
    }
}

fn clear_labels(spec: &mut Spec) {
    if let Some(process) = spec.process_mut() {
        process.set_selinux_label(None);
    }
}

fn annotate(spec: &mut Spec, bundle: &Bundle, bundle_path: &Path) {
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    annotations.remove(INITDATA);
    annotations.insert(CONTAINER_TYPE.into(), bundle.role.agent_name().into());
    annotations.insert(BUNDLE_PATH.into(), bundle_path.display().to_string());
    // Generated policies want it of a sandbox container and refuse it elsewhere; the guest makes nothing of it.
    annotations.remove(NETWORK_NAMESPACE);
    if let (Role::Sandbox, Some(path)) = (&bundle.role, bundle.network_namespace()) {
        annotations.insert(NETWORK_NAMESPACE.into(), path.display().to_string());
    }
    spec.set_annotations(Some(annotations));
}

/// The guest has one network; the agent manages pid namespaces (`sandbox_pidns`) and does not support
/// cgroup and time namespaces.
fn is_kept(typ: LinuxNamespaceType) -> bool {
    matches!(typ, LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts | LinuxNamespaceType::Mount)
}

#[cfg(test)]
#[path = "guest_spec_tests.rs"]
mod tests;
