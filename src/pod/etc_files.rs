//! The files of /etc that containerd's CRI plugin makes with a pause container. A pod of the Sandbox API has
//! them in its directory, and each container gets those that it does not bring itself.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Code, Context, Result};
use crate::host::files::read_bounded;
use crate::ids::SandboxId;
use crate::limits;
use crate::oci::pod_spec::{PodSpec, Resolver};
use crate::pod::dir::ETC;

/// Makes them in the pod's directory, with which they go. `resolver`: the lines of resolv.conf.
pub(crate) fn write(dir: &Path, hostname: &str, resolver: &[String]) -> Result<()> {
    // The node's, as the plugin does it; the kubelet brings each pod's own.
    let hosts = match read_bounded(Path::new("/etc/hosts"), limits::spec::HOSTS_BYTES) {
        Err(e) if e.code() == Code::NotFound => b"127.0.0.1\tlocalhost\n".to_vec(),
        hosts => hosts?,
    };
    let lines = resolver.join("\n");
    let contents = [format!("{hostname}\n").into_bytes(), hosts, format!("{lines}\n").into_bytes()];
    for (name, content) in ETC.iter().zip(contents) {
        let path = dir.join(name);
        let written = fs::write(&path, content);
        // Readable by every user of a container; on the host the directory's mode keeps others out.
        let open = written.and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o644)));
        open.with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// The pod's host name: its own, or its id.
pub(crate) fn hostname(sandbox: &SandboxId, spec: &PodSpec) -> String {
    let id = || sandbox.as_str().chars().take(64).collect();
    spec.hostname.clone().unwrap_or_else(id)
}

/// The lines of resolv.conf: the guest's own resolver gets what the pod's has.
pub(crate) fn resolver_lines(resolver: &Resolver) -> Result<Vec<String>> {
    match resolver {
        Resolver::None => Ok(Vec::new()),
        Resolver::Lines(lines) => Ok(lines.clone()),
        Resolver::File(path) => {
            let read = read_bounded(path, limits::spec::RESOLV_CONF_BYTES);
            let bytes = read.context("resolv.conf of the pod")?;
            Ok(String::from_utf8_lossy(&bytes).split('\n').map(str::to_owned).collect())
        }
    }
}

/// Where each is mounted in a container, and where it is on the host.
pub(crate) fn mounts(dir: &Path) -> impl Iterator<Item = (PathBuf, PathBuf)> {
    ETC.iter().map(|name| (Path::new("/etc").join(name), dir.join(name)))
}
