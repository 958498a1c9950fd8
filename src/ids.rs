//! Ids from outside, checked once: the only way from a text to a path component or an id for the agent.
//!
//! The agent requires an alphanumeric first character, then alphanumerics, `.`, `_` and `-`, and at
//! least two characters for a container; containerd's own ids are a subset of that.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::hex::hex;
use crate::limits;

/// Checks `text`; the error names the first invalid character and its position, counted from 0.
fn check(what: &str, text: &str, min: usize) -> Result<()> {
    let refuse = |why: String| Err(Error::invalid(format!("{what} {}: {why}", shown(text))));
    if text.len() < min || text.len() > limits::text::ID_BYTES {
        return refuse(format!("{} bytes long, allowed are {min} to {}", text.len(), limits::text::ID_BYTES));
    }
    for (at, c) in text.char_indices() {
        let fine = c.is_ascii_alphanumeric() || (at > 0 && matches!(c, '.' | '_' | '-'));
        if !fine {
            return refuse(format!(
                "character {c:?} at position {at} is not allowed (letters and digits; from the second character on also '.', '_', '-')"
            ));
        }
    }
    Ok(())
}

/// A bounded, quoted form for messages.
fn shown(text: &str) -> String {
    if text.chars().count() <= limits::text::QUOTED_ID_CHARS {
        format!("{text:?}")
    } else {
        let start: String = text.chars().take(limits::text::QUOTED_ID_CHARS).collect();
        format!("{start:?}...")
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $min:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Checks the text; the error names the character and its position.
            pub fn parse(text: &str) -> Result<Self> {
                check($what, text, $min)?;
                Ok(Self(text.to_owned()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// The id of a pod's sandbox: the id of its first container.
    SandboxId, "sandbox id", 2
);
id!(
    /// The id of a container, unique in its namespace.
    ContainerId, "container id", 2
);
id!(
    /// The id of an additional process, unique in its container.
    ExecId, "exec id", 1
);
id!(
    /// A containerd namespace.
    Namespace, "namespace", 1
);

impl ContainerId {
    /// The pod that this container creates if it is the first one.
    pub fn to_sandbox(&self) -> SandboxId {
        SandboxId(self.0.clone())
    }
}

impl SandboxId {
    /// Whether `container` is the pod's own (first) container.
    pub fn is(&self, container: &ContainerId) -> bool {
        self.0 == container.0
    }
}

/// One process of the pod: a container's init process, or an exec.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    pub container: ContainerId,
    pub exec: Option<ExecId>,
}

impl ProcessId {
    pub fn init(container: ContainerId) -> Self {
        Self { container, exec: None }
    }

    /// The process's id for the agent: an init process has its container's id.
    pub fn agent_exec_id(&self) -> &str {
        self.exec.as_ref().map_or(self.container.as_str(), ExecId::as_str)
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.exec {
            None => write!(f, "container {}", self.container),
            Some(exec) => write!(f, "exec {exec} of container {}", self.container),
        }
    }
}

/// The name of everything that belongs to one pod on the host: 32 hexadecimal digits of SHA-256 over
/// containerd's address, the namespace and the sandbox id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodKey(String);

impl PodKey {
    pub(crate) fn new(containerd: &str, namespace: &Namespace, sandbox: &SandboxId) -> Self {
        let mut hash = Sha256::new();
        for part in [containerd, namespace.as_str(), sandbox.as_str()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        Self(hex(&hash.finalize()[..16]))
    }

    /// Parses the key in a directory's name.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if text.len() == 32 && text.chars().all(hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::invalid(format!("pod key {}: not 32 lower-case hexadecimal digits", shown(text))))
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The first eight digits: room for a prefix in an interface name of 15 bytes.
    pub(crate) fn short(&self) -> &str {
        self.0.get(..8).unwrap_or_default()
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_ids_are_refused_with_character_and_position() {
        let cases = [
            ("", "container id \"\": 0 bytes long, allowed are 2 to 128"),
            ("a", "container id \"a\": 1 bytes long, allowed are 2 to 128"),
            ("..", "container id \"..\": character '.' at position 0"),
            ("a/b", "container id \"a/b\": character '/' at position 1"),
            ("a\0b", "container id \"a\\0b\": character '\\0' at position 1"),
            ("a\nb", "container id \"a\\nb\": character '\\n' at position 1"),
            ("-a", "container id \"-a\": character '-' at position 0"),
            ("aé", "container id \"aé\": character 'é' at position 1"),
            ("a,b", "container id \"a,b\": character ',' at position 1"),
            ("a%b", "container id \"a%b\": character '%' at position 1"),
        ];
        for (text, start) in cases {
            let message = ContainerId::parse(text).expect_err(text).to_string();
            assert!(message.starts_with(&start.replace('\0', "\\0")), "{message}");
        }
        assert!(ContainerId::parse(&"a".repeat(1000)).is_err());
    }

    #[test]
    fn valid_ids_are_accepted() {
        for text in ["c1", "a.b_c-d", &"f".repeat(64)] {
            assert_eq!(ContainerId::parse(text).map(|id| id.to_string()), Ok(text.to_owned()));
        }
        assert!(ExecId::parse("x").is_ok());
    }

    #[test]
    fn pod_keys_keep_their_parts_apart() {
        let ns = |t| Namespace::parse(t).expect(t);
        let sb = |t| SandboxId::parse(t).expect(t);
        let one = PodKey::new("/run/a", &ns("b1"), &sb("c1"));
        assert_ne!(one, PodKey::new("/run/ab", &ns("1"), &sb("c1")));
        assert_eq!(one.as_str().len(), 32);
        assert_eq!(PodKey::parse(one.as_str()), Ok(one));
    }
}
