//! The name of an image, as a pod writes it.

use std::fmt;

/// What is meant where a name has no registry.
const DEFAULT_REGISTRY: &str = "docker.io";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Host and port.
    pub(crate) registry: String,
    pub(crate) repository: String,
    tag: Option<String>,
    /// `sha256:…`
    pub(crate) digest: Option<String>,
}

impl Reference {
    /// The parts of `[registry/]repository[:tag][@digest]`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
            _ => (DEFAULT_REGISTRY, name),
        };
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (path, None),
        };
        let official = registry == DEFAULT_REGISTRY && !path.contains('/');
        let repository = if official { format!("library/{path}") } else { path.to_owned() };
        let word = |text: &str, more: &str| {
            !text.is_empty()
                && text.len() <= 255
                && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        let lower = !path.chars().any(|c| c.is_ascii_uppercase());
        let good = word(registry, ".-:[]")
            && lower
            && path.split('/').all(|part| word(part, "._-"))
            && tag.is_none_or(|tag| word(tag, "._-"))
            && digest.is_none_or(super::is_digest);
        good.then(|| Self {
            registry: registry.to_owned(),
            repository,
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }

    /// What the registry is asked for: the digest, where there is one.
    pub(crate) fn version(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.tag, &self.digest) {
            (None, None) => f.write_str(":latest"),
            (tag, digest) => {
                tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))?;
                digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_completed() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, whole, version) in [
            ("busybox", "docker.io/library/busybox:latest", "latest"),
            ("a/b:1", "docker.io/a/b:1", "1"),
            ("localhost/a", "localhost/a:latest", "latest"),
            ("10.88.1.1:5000/a/b:v1.2", "10.88.1.1:5000/a/b:v1.2", "v1.2"),
            ("r.test:5000/a", "r.test:5000/a:latest", "latest"),
            (&format!("r.test/a:1@{digest}"), &format!("r.test/a:1@{digest}"), digest.as_str()),
            (&format!("r.test/a@{digest}"), &format!("r.test/a@{digest}"), digest.as_str()),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!((reference.to_string().as_str(), reference.version()), (whole, version), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(256);
        for text in
            ["", ":1", "A/b", "r.test/", "r.test//a", "a b", "a@sha256:00", "a:", "r.test/../a?x", &long]
        {
            assert_eq!(Reference::parse(text), None, "{text}");
        }
    }
}
