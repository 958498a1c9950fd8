//! Which image a guest pulls for a container, by what each caller says.
//!
//! containerd's CRI plugin names it in an annotation, in 2.0 and later as the pod's author wrote it, before as the
//! first name that the node knows for the image; for `ctr` a person gives the same annotation. CRI-O has a name that
//! may be empty, and what the pod's author wrote. nydus-snapshotter and CRI-O also send it as a root file system's
//! mount option, a volume of Kata.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::error::{Context, Error, Result};
use crate::limits;
use crate::oci::role::Role;
use crate::oci::spec::Bundle;
use crate::plan::rootfs::{PULL_OPTION, RootfsMount};

/// The guest has its own image for the sandbox container; agents do not look at the name.
const PAUSE: &str = "pause";

const CONTAINERD: &str = "io.kubernetes.cri.image-name";
const CRI_O: [&str; 2] = ["io.kubernetes.cri-o.ImageName", "io.kubernetes.cri-o.Image"];

/// For messages: an image's id, which no registry knows.
const CRI_O_ID: &str = "io.kubernetes.cri-o.ImageRef";

/// What nydus-snapshotter writes when it does not know the name.
const NO_NAME: &str = "dummy-image-reference";

/// Kata's volume, as far as it is about an image's name.
#[derive(Deserialize)]
struct Volume {
    volume_type: String,
    #[serde(default)]
    source: String,
}

/// The reference that the guest is to pull, as the caller has it.
pub(crate) fn of(bundle: &Bundle, mounts: &[RootfsMount]) -> Result<String> {
    let volume = mounts.iter().find_map(option).map(volume).transpose()?;
    if bundle.role == Role::Sandbox {
        return Ok(PAUSE.to_owned());
    }
    let none = HashMap::new();
    let annotations = bundle.spec.annotations().as_ref().unwrap_or(&none);
    let named = |key: &&str| annotations.get(*key).filter(|name| !name.is_empty());
    let name = [CONTAINERD].iter().chain(&CRI_O).find_map(named).cloned();
    let name = name.or(volume.filter(|name| !name.is_empty() && name != NO_NAME));
    check(name.ok_or_else(|| missing(annotations))?)
}

/// Whether the reference names one content for ever.
pub(crate) fn is_pinned(reference: &str) -> bool {
    reference.split_once('@').is_some_and(|(_, digest)| digest.contains(':'))
}

fn missing(annotations: &HashMap<String, String>) -> Error {
    let (keys, id) = match annotations.get(CRI_O_ID) {
        Some(id) => (CRI_O.join(" and "), format!(" (the image's id is {id:?}, which no registry knows)")),
        None => (CONTAINERD.to_owned(), String::new()),
    };
    let count = if keys.contains(' ') { "annotations" } else { "annotation" };
    Error::invalid(format!(
        "rootfs.mode = \"guest-pull\": the {count} {keys} with the image's name is missing or empty{id}: give the image \
         a name in the pod; with ctr, give --annotation {CONTAINERD}=NAME"
    ))
}

/// Refuses what cannot be a reference. What is one is the guest's to say: it is passed on unchanged.
fn check(name: String) -> Result<String> {
    let refused = |why: &str| {
        let shown: String = name.chars().take(limits::text::QUOTED_CHARS).collect();
        Err(Error::invalid(format!("image {shown:?}: {why}")))
    };
    if name.len() > limits::spec::IMAGE_NAME_BYTES {
        return refused(&format!("its name is longer than {} bytes", limits::spec::IMAGE_NAME_BYTES));
    }
    if name.chars().any(|c| !c.is_ascii_graphic()) {
        return refused("its name has characters that no reference has");
    }
    if name.starts_with("sha256:") {
        return refused(
            "this is an image's id, which no registry knows: give the image a name in the pod, or a tag on the node",
        );
    }
    Ok(name)
}

fn option(mount: &RootfsMount) -> Option<&str> {
    mount.options.iter().find_map(|option| option.strip_prefix(PULL_OPTION)?.strip_prefix('='))
}

/// The name in a volume of the right type.
fn volume(text: &str) -> Result<String> {
    let context = || format!("root file system option {PULL_OPTION}");
    if text.len() > limits::spec::PULL_VOLUME_BYTES {
        return Err(Error::invalid(format!(
            "{}: {} bytes, at most {} are allowed",
            context(),
            text.len(),
            limits::spec::PULL_VOLUME_BYTES
        )));
    }
    let json = STANDARD.decode(text).map_err(|e| Error::invalid(format!("not base64: {e}")));
    let json = json.with_context(context)?;
    let volume: Volume = serde_json::from_slice(&json)
        .map_err(|e| Error::invalid(format!("no volume: {e}")))
        .with_context(context)?;
    if volume.volume_type != "image_guest_pull" {
        let typ: String = volume.volume_type.chars().take(limits::text::QUOTED_CHARS).collect();
        return Err(Error::unimplemented(format!(
            "{}: its type is {typ:?}, of which only image_guest_pull is supported: configure the snapshotter for guest \
             pull",
            context()
        )));
    }
    Ok(volume.source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ContainerId;
    use crate::oci::spec;
    use serde_json::json;

    const CRI: (&str, &str) = ("io.kubernetes.cri.container-type", "container");

    fn named(annotations: &[(&str, &str)], volume: Option<&str>) -> Result<String> {
        let all: HashMap<_, _> = annotations.iter().copied().collect();
        let config = json!({
            "ociVersion": "1.1.0", "root": {"path": "rootfs"}, "linux": {},
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["x"], "cwd": "/"},
            "annotations": all,
        });
        let id = ContainerId::parse("c1").expect("id");
        let bundle = spec::parse(config.to_string().as_bytes(), &id).expect("bundle");
        let mounts = volume.into_iter().map(|text| RootfsMount {
            fstype: "fuse.nydus-overlayfs".into(),
            source: "overlay".into(),
            options: vec!["lowerdir=/x".into(), format!("{PULL_OPTION}={text}")],
        });
        of(&bundle, &mounts.collect::<Vec<_>>())
    }

    fn encoded(volume: &serde_json::Value) -> String {
        STANDARD.encode(volume.to_string())
    }

    #[test]
    fn each_caller_names_the_image_in_its_own_way() {
        let member = ("io.kubernetes.cri.sandbox-id", "s1");
        let crio = [
            ("io.kubernetes.cri-o.ContainerType", "container"),
            ("io.kubernetes.cri-o.SandboxID", "s1"),
            ("io.kubernetes.cri-o.Image", "user/wrote:1"),
        ];
        let volume = encoded(&json!({
            "volume_type": "image_guest_pull", "source": "from/volume:1", "fs_type": "overlay_fs", "options": ["a=b"],
            "image_pull": {"metadata": {"k": "v"}}
        }));
        let dummy = encoded(&json!({"volume_type": "image_guest_pull", "source": NO_NAME}));
        for (annotations, volume, wanted) in [
            (vec![CRI, member, (CONTAINERD, "docker.io/library/a:1")], None, "docker.io/library/a:1"),
            (vec![(CONTAINERD, "reg:5000/a@sha256:00")], None, "reg:5000/a@sha256:00"),
            ([&crio[..], &[("io.kubernetes.cri-o.ImageName", "known/as:1")]].concat(), None, "known/as:1"),
            ([&crio[..], &[("io.kubernetes.cri-o.ImageName", "")]].concat(), None, "user/wrote:1"),
            (vec![(CRI.0, "sandbox")], None, PAUSE),
            (vec![("io.kubernetes.cri-o.ContainerType", "sandbox")], Some(dummy.as_str()), PAUSE),
            (vec![CRI, member], Some(volume.as_str()), "from/volume:1"),
            (vec![CRI, member, (CONTAINERD, "a:1")], Some(volume.as_str()), "a:1"),
            (vec![CRI, member, (CONTAINERD, "a:1")], Some(dummy.as_str()), "a:1"),
        ] {
            assert_eq!(named(&annotations, volume).expect(wanted), wanted);
        }
        assert!(is_pinned("reg:5000/a:1@sha256:00") && !is_pinned("reg:5000/a:1"));
    }

    #[test]
    fn a_name_that_is_missing_or_none_is_refused_with_the_key() {
        let crio = [
            ("io.kubernetes.cri-o.ContainerType", "container"),
            ("io.kubernetes.cri-o.SandboxID", "s1"),
            (CRI_O_ID, "8135583d97fe"),
        ];
        let long = "x".repeat(5000);
        let typed = encoded(&json!({"volume_type": "image_raw_block", "source": "/dev/x"}));
        let dummy = encoded(&json!({"volume_type": "image_guest_pull", "source": NO_NAME}));
        let large = "A".repeat(1 << 20);
        for (annotations, volume, wanted) in [
            (
                vec![],
                None,
                "the annotation io.kubernetes.cri.image-name with the image's name is missing or empty: ",
            ),
            (vec![(CONTAINERD, "")], None, "io.kubernetes.cri.image-name with"),
            (vec![], Some(dummy.as_str()), "io.kubernetes.cri.image-name with"),
            (crio.to_vec(), None, "io.kubernetes.cri-o.ImageName and io.kubernetes.cri-o.Image with"),
            (crio.to_vec(), None, "the image's id is \"8135583d97fe\""),
            (vec![(CONTAINERD, long.as_str())], None, "longer than"),
            (vec![(CONTAINERD, "a b")], None, "characters that no reference has"),
            (vec![(CONTAINERD, "a\n")], None, "characters that no reference has"),
            (vec![(CONTAINERD, "sha256:0011")], None, "this is an image's id"),
            (vec![], Some("%"), "option io.katacontainers.volume: not base64"),
            (vec![], Some("e30="), "option io.katacontainers.volume: no volume: missing field"),
            (vec![], Some(large.as_str()), "bytes, at most"),
            (vec![(CONTAINERD, "a")], Some(typed.as_str()), "its type is \"image_raw_block\""),
        ] {
            let e = named(&annotations, volume).expect_err(wanted).to_string();
            assert!(e.contains(wanted) && e.len() < 500, "{e}");
        }
    }
}
