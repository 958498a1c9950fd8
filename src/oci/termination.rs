//! The file with a container's termination message, which the kubelet reads when the container has ended.
//!
//! containerd passes the two annotations on only if its runtime handler has
//! `container_annotations = ["io.kubernetes.container.terminationMessage*"]`.

use std::path::Path;

use oci_spec::runtime::Mount;

use crate::oci::spec::{Bundle, is_bind};

const PATH: &str = "io.kubernetes.container.terminationMessagePath";
const POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";

/// The policy that takes the message from the file alone. With FallbackToLogsOnError an empty file is what makes the
/// kubelet read the log.
const FROM_FILE: &str = "File";

/// Kubernetes' own place for it in a container.
const USUAL: &str = "/dev/termination-log";

/// Whether the container writes its message there: the host has nothing to say in it.
pub(crate) fn is_message(bundle: &Bundle, mount: &Mount) -> bool {
    mount.destination() == Path::new(annotation(bundle, PATH).unwrap_or(USUAL))
}

/// The host's file that gets the message. Only the one mount of its place that a container may write to.
pub(crate) fn message_file(bundle: &Bundle) -> Option<&Path> {
    annotation(bundle, PATH)?;
    annotation(bundle, POLICY).filter(|policy| *policy == FROM_FILE)?;
    let mut mounts = bundle.spec.mounts().iter().flatten().filter(|mount| is_message(bundle, mount));
    let (Some(mount), None) = (mounts.next(), mounts.next()) else { return None };
    let is_writable = !mount.options().iter().flatten().any(|option| option == "ro");
    mount.source().as_deref().filter(|_| is_bind(mount) && is_writable)
}

fn annotation<'a>(bundle: &'a Bundle, name: &str) -> Option<&'a str> {
    bundle.spec.annotations().as_ref()?.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ContainerId;
    use crate::oci::spec;
    use serde_json::{Value, json};

    fn bundle(annotations: &Value, mounts: &Value) -> Bundle {
        let spec = json!({
            "ociVersion": "1.0.2", "root": {"path": "rootfs"}, "linux": {},
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
            "mounts": mounts, "annotations": annotations,
        });
        spec::parse(spec.to_string().as_bytes(), &ContainerId::parse("c1").expect("id")).expect("spec")
    }

    #[test]
    fn the_file_is_that_of_the_one_mount_which_the_container_may_write_to() {
        let of = |policy: &str| json!({PATH: "/m", POLICY: policy});
        let mount = |at: &str, from: &str, mode: &str| json!({"destination": at, "type": "bind", "source": from, "options": ["rbind", mode]});
        let good = || mount("/m", "/h/1", "rw");
        for (annotations, mounts, wanted) in [
            (of("File"), json!([mount("/x", "/h/0", "rw"), good()]), Some("/h/1")),
            (of("FallbackToLogsOnError"), json!([good()]), None),
            (json!({PATH: "/m"}), json!([good()]), None),
            (json!({POLICY: "File"}), json!([mount(USUAL, "/h/1", "rw")]), None),
            (of("File"), json!([mount("/m", "/h/1", "ro")]), None),
            (of("File"), json!([good(), mount("/m", "/h/2", "rw")]), None),
            (of("File"), json!([{"destination": "/m", "type": "tmpfs", "source": "tmpfs"}]), None),
            (of("File"), json!([]), None),
        ] {
            let bundle = bundle(&annotations, &mounts);
            assert_eq!(message_file(&bundle), wanted.map(Path::new), "{annotations} {mounts}");
        }
    }
}
