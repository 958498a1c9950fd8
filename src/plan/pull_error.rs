//! What is said of an image that the guest could not pull: which limit ended it, and what an operator can do about an
//! error of the guest.

use std::fmt;
use std::time::Duration;

/// How far a pull is, as seen from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) elapsed: Duration,
    /// Bytes that have come over the pod's network since it began; None: not known.
    pub(crate) received: Option<u64>,
    /// `agent.image_pull_timeout_s`.
    pub(crate) limit: Duration,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.elapsed.as_secs())?;
        match self.received {
            Some(bytes) => {
                let (whole, tenth) = (bytes / 1_000_000, bytes / 100_000 % 10);
                write!(f, ", {whole}.{tenth} MB came over the pod's network")
            }
            None => f.write_str(", what came over the pod's network is not known"),
        }
    }
}

/// The limits of those who call, which do not grow with ours.
const OTHER_LIMITS: &str = "the kubelet's runtimeRequestTimeout (2 min by default) and CRI-O's container_create_timeout (240 s by default)";

/// Our own limit was reached.
pub(crate) fn timeout(image: &str, progress: &Progress) -> String {
    format!(
        "image {image}: the guest has not pulled it within {} s (agent.image_pull_timeout_s): {progress}: raise the limit, \
         and with it {OTHER_LIMITS}; if nothing came, check that the guest reaches the registry and has its Confidential \
         Data Hub, without which it never answers",
        progress.limit.as_secs()
    )
}

/// The caller has ended the creation before our limit.
pub(crate) fn given_up(image: &str, progress: &Progress) -> String {
    format!(
        "image {image}: the guest was still pulling it when its container was given up after {progress}. Our limit is \
         {} s (agent.image_pull_timeout_s); smaller ones are {OTHER_LIMITS}. The guest keeps the layers that are complete",
        progress.limit.as_secs()
    )
}

/// Parts of the guest's error texts (its Confidential Data Hub's) and what they mean for an operator; `{}` is what half
/// of the guest's memory is.
const HINTS: [(&[&str], &str); 5] = [
    (
        &["No space left"],
        "the layers are kept in the guest's memory, of which images can have half, {} MiB: give the pod more memory, or a \
         disk at /dev/trusted_store",
    ),
    (
        &["Image policy rejected", "Denied by policy"],
        "the guest's own policy for signatures refuses this image",
    ),
    (
        &["Failed to decrypt layer", "decryption key"],
        "the guest got no key for the image's layers: its key broker releases it after attestation only",
    ),
    (
        &["layers are not pulled"],
        "a pull of the same layers failed before in this guest: see the log for the first error",
    ),
    (
        &[
            "Failed to pull image manifest",
            "failed to pull image manifest",
            "Not authorized",
            "Illegal registry auth",
        ],
        "the guest cannot reach the registry, or has no credentials for it: they come from the guest's own configuration \
         (cdh.toml), never from imagePullSecrets",
    ),
];

/// What to do about an error of the guest, if it is known.
pub(crate) fn hint(text: &str, memory_mib: u32) -> Option<String> {
    let known = HINTS.iter().find(|(parts, _)| parts.iter().any(|part| text.contains(part)));
    known.map(|(_, hint)| hint.replace("{}", &(memory_mib / 2).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_the_guest_has_its_hint() {
        let outer = "[CDH] [ERROR]: Image Pull error: Failed to pull image r/a:1 from all mirror/mapping locations or \
                     original location: image: r/a:1, error: ";
        for (inner, wanted) in [
            (
                "Errors happened when pulling image: Failed to pull image manifest",
                "cannot reach the registry",
            ),
            (
                "Errors happened when pulling image: failed to pull image manifest: error sending request for url",
                "cannot reach the registry",
            ),
            ("Not authorized: url http://r/v2/", "never from imagePullSecrets"),
            ("Illegal registry auth", "never from imagePullSecrets"),
            ("Image policy rejected: Denied by policy: rejected by `reject` rule", "policy for signatures"),
            ("Failed to decrypt layer: no decryption key", "after attestation only"),
            ("failed to unpack: No space left on device (os error 28)", "half, 1024 MiB"),
            ("layers are not pulled", "failed before"),
        ] {
            let hint = hint(&format!("{outer}{inner}"), 2048).expect(inner);
            assert!(hint.contains(wanted), "{inner}: {hint}");
        }
        assert_eq!(hint(&format!("{outer}something else"), 2048), None);
    }

    #[test]
    fn a_limit_says_which_one_it_is_what_came_and_which_others_there_are() {
        let limit = Duration::from_secs(600);
        let mut progress = Progress { elapsed: limit, received: Some(1_234_567), limit };
        let text = timeout("r/a:1", &progress);
        assert!(text.starts_with(
            "image r/a:1: the guest has not pulled it within 600 s (agent.image_pull_timeout_s): 600 s, 1.2 MB came"
        ));
        for other in ["runtimeRequestTimeout", "container_create_timeout"] {
            assert!(text.contains(other), "{text}");
        }
        progress = Progress { elapsed: Duration::from_secs(120), received: None, ..progress };
        let text = given_up("r/a:1", &progress);
        assert!(
            text.contains("given up after 120 s, what came") && text.contains("Our limit is 600 s"),
            "{text}"
        );
        assert!(text.contains("runtimeRequestTimeout (2 min by default)"), "{text}");
    }
}
