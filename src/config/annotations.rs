//! What a pod may change of the configuration by its annotations: which of the allowed images it boots.
//!
//! A pod's author is not the node's owner, so only images that the owner listed are accepted. Annotations for
//! other parts of the boot are refused rather than ignored: a pod must not run as something other than it asked
//! for.

use std::path::{Path, PathBuf};

use crate::config::{Boot, Config};
use crate::error::{Code, Error, Result};

const PREFIX: &str = "io.katacontainers.config.hypervisor.";

/// The full path of one of the sealed images in `guest.allowed_images`.
const IMAGE: &str = "image";

/// Other names with that prefix that choose what is booted, and why a pod cannot set them.
const NEVER: [(&str, &str); 6] = [
    ("kernel", "the kernel is sealed in the image"),
    ("initrd", "the initrd is sealed in the image"),
    ("kernel_params", "the kernel's parameters are sealed in the image"),
    ("kernel_verity_params", "the kernel's parameters are sealed in the image"),
    ("firmware", "a guest of IBM Z has none"),
    ("path", "the node's owner alone chooses QEMU"),
];

/// The configuration for a pod; `annotation` looks one up in the pod's first container.
pub(crate) fn apply<'a>(mut config: Config, annotation: impl Fn(&str) -> Option<&'a str>) -> Result<Config> {
    let given = |name: &str| annotation(&format!("{PREFIX}{name}")).map(|value| (name.to_owned(), value));
    for (name, why) in NEVER {
        if let Some((name, value)) = given(name) {
            return Err(refused(&name, value, &format!("{why}: remove the annotation")));
        }
    }
    if let Some((name, value)) = given(IMAGE) {
        let image = allowed(&config, Path::new(value)).map_err(|why| refused(&name, value, &why))?;
        config.boot = Boot::Sealed { image };
    }
    Ok(config)
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
    let value: String = value.chars().take(200).collect();
    Error::new(Code::PermissionDenied, format!("annotation {PREFIX}{name} = {value:?}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    fn config(text: &str) -> Config {
        file::parse(&[("/c.toml".into(), text.to_owned())]).expect("configuration")
    }

    /// The image that would be booted, or the refusal.
    fn of(text: &str, name: &str, value: &str) -> std::result::Result<PathBuf, String> {
        let key = format!("{PREFIX}{name}");
        match apply(config(text), |asked| (asked == key).then_some(value)).map_err(|e| e.to_string())?.boot {
            Boot::Sealed { image } => Ok(image),
            Boot::Plain { .. } => Err("plain".to_owned()),
        }
    }

    const TWO: &str = "[guest]\nimage = \"/i/one\"\nallowed_images = [\"/i/two\"]";

    #[test]
    fn a_pod_boots_the_configured_image_or_one_that_is_listed() {
        for (name, value, wanted) in
            [("other", "/x", "/i/one"), ("image", "/i/one", "/i/one"), ("image", "/i/two", "/i/two")]
        {
            assert_eq!(of(TWO, name, value), Ok(wanted.into()), "{name} {value}");
        }
    }

    #[test]
    fn what_is_not_listed_is_refused_with_the_key_that_would_allow_it() {
        for value in ["/i/three", "/i/../i/two", "/i/two/", "//i/two", "i/two", "", "/i/two\n"] {
            let e = of(TWO, "image", value).expect_err(value);
            assert!(e.starts_with("annotation io.katacontainers.config.hypervisor.image = \""), "{e}");
            assert!(e.ends_with("added to guest.allowed_images"), "{e}");
        }
        for (name, _) in NEVER {
            let e = of(TWO, name, "/i/two").expect_err(name);
            assert!(e.contains(&format!("hypervisor.{name} = \"/i/two\"")) && e.contains("remove"), "{e}");
        }
        let plain =
            "[qemu]\naccelerator = \"tcg\"\n[guest]\nconfidential = false\nkernel = \"/k\"\ninitrd = \"/i\"";
        assert!(of(plain, "image", "/i/one").expect_err("plain").contains("boot no sealed image"));
        let long = of(TWO, "image", &"x".repeat(10_000)).expect_err("long");
        assert!(long.len() < 500, "{}", long.len());
    }
}
