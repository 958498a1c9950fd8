//! What a pod's annotations may do: choose one of the allowed images, bring initdata for its guest.
//!
//! A pod's author is not the node's owner, so only images that the owner listed are accepted. What only the guest
//! sees needs no permission. Every other annotation that would change a guest, its agent or its runtime is refused by
//! name rather than ignored: a pod must not run as something other than it asked for, and without what it relies on.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::config::initdata::Initdata;
use crate::config::{Boot, Config};
use crate::error::{Code, Context, Error, Result};

/// Kata's settings for one pod.
const PREFIX: &str = "io.katacontainers.config.";

/// The full path of one of the sealed images in `guest.allowed_images`.
const IMAGE: &str = "hypervisor.image";

/// Documents for the guest's programs.
const INITDATA: &str = "hypervisor.cc_init_data";

/// Others with that prefix, and why a pod cannot set them.
const REFUSED: [(&str, &str); 11] = [
    ("hypervisor.kernel", "the kernel is sealed in the image"),
    ("hypervisor.initrd", "the initrd is sealed in the image"),
    ("hypervisor.kernel_params", "the kernel's parameters are sealed in the image"),
    ("hypervisor.kernel_verity_params", "the kernel's parameters are sealed in the image"),
    ("hypervisor.firmware", "a guest of IBM Z has none"),
    ("hypervisor.path", "the node's owner alone chooses QEMU"),
    ("hypervisor.default_memory", SIZE),
    ("hypervisor.default_vcpus", SIZE),
    ("hypervisor.default_max_vcpus", SIZE),
    ("hypervisor.machine_type", "a guest of IBM Z has one type only"),
    ("agent.policy", "it is not passed to guests, and the pod would run without what it protects"),
];

const SIZE: &str =
    "a VM is as large as the limits of its pod's containers, above a base that the node's owner sets";

/// What a pod is started with: the configuration as its annotations change it, and what they bring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) config: Config,
    pub(crate) initdata: Option<Initdata>,
}

/// Applies the annotations of a pod, those of its first container.
pub(crate) fn apply(config: Config, annotations: &HashMap<String, String>) -> Result<Applied> {
    let mut applied = Applied { config, initdata: None };
    let mut given: Vec<_> =
        annotations.iter().filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value))).collect();
    given.sort_unstable(); // always the same one is refused
    for (name, value) in given {
        match name {
            IMAGE => {
                let image = allowed(&applied.config, Path::new(value));
                applied.config.boot =
                    Boot::Sealed { image: image.map_err(|why| refused(name, value, &why))? };
            }
            // Not quoted: it may have secrets.
            INITDATA => {
                let initdata = Initdata::of_annotation(value);
                applied.initdata = Some(initdata.with_context(|| format!("annotation {PREFIX}{name}"))?);
            }
            _ => {
                let known = REFUSED.iter().find(|(refused, _)| *refused == name);
                let why = known.map_or("kata-se has no such setting for a pod", |(_, why)| why);
                return Err(refused(name, value, &format!("{why}: remove the annotation")));
            }
        }
    }
    Ok(applied)
}

fn allowed(config: &Config, wanted: &Path) -> std::result::Result<PathBuf, String> {
    let Boot::Sealed { image } = &config.boot else {
        return Err("this node's guests boot no sealed image (guest.confidential = false)".to_owned());
    };
    // Compared byte by byte: no link and no ".." leads to an image that is not listed.
    let known = config.allowed_images.iter().chain([image]);
    known.into_iter().find(|known| known.as_os_str() == wanted.as_os_str()).cloned().ok_or_else(|| {
        "the node's owner has not allowed this image: use the configured one, or have the path added to \
         guest.allowed_images"
            .to_owned()
    })
}

fn refused(name: &str, value: &str, why: &str) -> Error {
    let [name, value] = [name, value].map(|text| text.chars().take(200).collect::<String>());
    let text = format!("annotation {PREFIX}{name} = {value:?}: {why}");
    Error::new(Code::PermissionDenied, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{file, initdata};

    fn config(text: &str) -> Config {
        file::parse(&[("/c.toml".into(), text.to_owned())]).expect("configuration")
    }

    /// The image that would be booted with an annotation, or the refusal.
    fn of(text: &str, key: &str, value: &str) -> std::result::Result<PathBuf, String> {
        let annotations = HashMap::from([(key.to_owned(), value.to_owned())]);
        match apply(config(text), &annotations).map_err(|e| e.to_string())?.config.boot {
            Boot::Sealed { image } => Ok(image),
            Boot::Plain { .. } => Err("plain".to_owned()),
        }
    }

    const TWO: &str = "[guest]\nimage = \"/i/one\"\nallowed_images = [\"/i/two\"]";
    const KEY: &str = "io.katacontainers.config.hypervisor.image";

    #[test]
    fn a_pod_boots_the_configured_image_or_one_that_is_listed() {
        for (key, value, wanted) in [
            ("io.katacontainers.pkg.oci.bundle_path", "/x", "/i/one"),
            ("image", "/i/two", "/i/one"),
            (KEY, "/i/one", "/i/one"),
            (KEY, "/i/two", "/i/two"),
        ] {
            assert_eq!(of(TWO, key, value), Ok(wanted.into()), "{key} {value}");
        }
    }

    #[test]
    fn what_is_not_listed_is_refused_with_the_key_that_would_allow_it() {
        for value in ["/i/three", "/i/../i/two", "/i/two/", "//i/two", "i/two", "", "/i/two\n"] {
            let e = of(TWO, KEY, value).expect_err(value);
            assert!(e.starts_with("annotation io.katacontainers.config.hypervisor.image = \""), "{e}");
            assert!(e.ends_with("added to guest.allowed_images"), "{e}");
        }
        let plain =
            "[qemu]\naccelerator = \"tcg\"\n[guest]\nconfidential = false\nkernel = \"/k\"\ninitrd = \"/i\"";
        assert!(of(plain, KEY, "/i/one").expect_err("plain").contains("boot no sealed image"));
    }

    #[test]
    fn initdata_is_taken_from_any_pod_and_never_quoted() {
        let annotation = include_str!("testdata/initdata.base64");
        let with = |value: &str| {
            let annotations = HashMap::from([(initdata::ANNOTATION.to_owned(), value.to_owned())]);
            apply(config(TWO), &annotations)
        };
        let applied = with(annotation).expect("initdata");
        assert_eq!(applied.initdata, Initdata::of_annotation(annotation).ok());
        let e = with("c2VjcmV0").expect_err("no gzip").to_string();
        let wanted = format!("annotation {}: not a whole gzip stream", initdata::ANNOTATION);
        assert!(e.starts_with(&wanted) && !e.contains("c2VjcmV0"), "{e}");
    }

    /// Names that Kata's documentation has (how-to-set-sandbox-config-kata.md), and others.
    #[test]
    fn every_other_setting_of_a_pod_is_refused_by_its_name_whatever_its_value() {
        let names = REFUSED.iter().map(|(name, _)| *name).chain([
            "hypervisor.enable_iommu",
            "hypervisor.virtio_fs_extra_args",
            "hypervisor.entropy_source",
            "hypervisor.hotplug_vfio_on_root_bus",
            "hypervisor.enable_guest_swap",
            "agent.kernel_modules",
            "agent.enable_tracing",
            "runtime.disable_guest_seccomp",
            "runtime.create_container_timeout",
            "hypervisor.Image",
            "hypervisor.image ",
            "",
        ]);
        for name in names {
            for value in ["0", "-1", "9223372036854775808", "NaN", "1e309", "lots", "true", "/i/two", ""] {
                let e = of(TWO, &format!("{PREFIX}{name}"), value).expect_err(name);
                assert!(e.starts_with(&format!("annotation {PREFIX}{name} = {value:?}: ")), "{e}");
                assert!(e.ends_with(": remove the annotation"), "{e}");
            }
        }
        let long = "x".repeat(10_000);
        for (key, value) in [(KEY.to_owned(), &long), (format!("{PREFIX}{long}"), &long)] {
            let e = of(TWO, &key, value).expect_err("long");
            assert!(e.len() < 700, "{}", e.len());
        }
        let both = ["hypervisor.path", "agent.policy"].map(|name| (format!("{PREFIX}{name}"), String::new()));
        let e = apply(config(TWO), &both.into()).expect_err("refused").to_string();
        assert!(e.contains("config.agent.policy"), "always the same one: {e}");
    }
}
