//! The files of /etc that containerd's CRI plugin makes with a pause container. A pod of the Sandbox API has
//! them in its own directory, and each container gets those that it does not bring itself.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Code, Context, Result};
use crate::host::files::read_bounded;
use crate::limits;

/// All of them.
const NAMES: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// Makes them in the pod's directory, with which they go. `resolver`: the lines of resolv.conf.
pub(crate) fn write(dir: &Path, hostname: &str, resolver: &[String]) -> Result<()> {
    // The node's, as the plugin does it; the kubelet brings each pod's own.
    let hosts = match read_bounded(Path::new("/etc/hosts"), limits::HOSTS_BYTES) {
        Err(e) if e.code() == Code::NotFound => b"127.0.0.1\tlocalhost\n".to_vec(),
        hosts => hosts?,
    };
    let lines = resolver.join("\n");
    let contents = [format!("{hostname}\n").into_bytes(), hosts, format!("{lines}\n").into_bytes()];
    for (name, content) in NAMES.iter().zip(contents) {
        let path = dir.join(name);
        let written = fs::write(&path, content);
        // For every user of a container; the directory is for nobody else.
        let open = written.and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o644)));
        open.with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Where each is mounted, and where it stands.
pub(crate) fn mounts(dir: &Path) -> impl Iterator<Item = (PathBuf, PathBuf)> {
    NAMES.iter().map(|name| (Path::new("/etc").join(name), dir.join(name)))
}
