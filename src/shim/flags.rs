//! The flags that containerd passes, in Go's style, then an action.

use std::path::PathBuf;

use crate::error::{Context, Error, Result};
use crate::ids::{ContainerId, Namespace};

/// What containerd passes to the program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub namespace: String,
    pub address: String,
    pub publish_binary: String,
    pub id: String,
    pub bundle: String,
    pub debug: bool,
    pub version: bool,
    pub info: bool,
    pub action: String,
}

impl Flags {
    /// Takes `-flag value`, `-flag=value` and `-switch`, with one dash or two. The first other word is the action.
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut flags = Self::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let Some(name) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                flags.action = arg;
                break;
            };
            let (name, mut value) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            let switch = value.as_deref() != Some("false");
            let mut text = || {
                value
                    .take()
                    .or_else(|| args.next())
                    .ok_or_else(|| Error::invalid(format!("flag -{name}: no value")))
            };
            match name {
                "namespace" => flags.namespace = text()?,
                "address" => flags.address = text()?,
                "publish-binary" => flags.publish_binary = text()?,
                "id" => flags.id = text()?,
                "bundle" => flags.bundle = text()?,
                // From older versions of containerd; `start` names the socket itself.
                "socket" => {
                    text()?;
                }
                "debug" => flags.debug = switch,
                "v" | "version" => flags.version = switch,
                "info" => flags.info = switch,
                other => return Err(Error::invalid(format!("unknown flag -{other}"))),
            }
        }
        Ok(flags)
    }

    /// Namespace and container id, validated.
    pub(crate) fn ids(&self) -> Result<(Namespace, ContainerId)> {
        Ok((Namespace::parse(&self.namespace)?, ContainerId::parse(&self.id)?))
    }

    /// The bundle's absolute path; the working directory unless -bundle is given.
    pub(crate) fn bundle_dir(&self) -> Result<PathBuf> {
        if self.bundle.is_empty() {
            return std::env::current_dir().context("working directory");
        }
        let given = PathBuf::from(&self.bundle);
        if given.is_absolute() {
            Ok(given)
        } else {
            Ok(std::env::current_dir().context("working directory")?.join(given))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Flags> {
        Flags::parse(words.iter().map(|w| (*w).to_owned()))
    }

    #[test]
    fn flags_are_parsed_as_go_parses_them() {
        let flags = parse(&[
            "-namespace",
            "ns",
            "--address=/a",
            "-id=c1",
            "-debug",
            "-publish-binary",
            "/b",
            "start",
        ]);
        let wanted = Flags {
            namespace: "ns".into(),
            address: "/a".into(),
            id: "c1".into(),
            debug: true,
            publish_binary: "/b".into(),
            action: "start".into(),
            ..Flags::default()
        };
        assert_eq!(flags, Ok(wanted));
        assert!(parse(&["-v"]).expect("flags").version);
        assert_eq!(parse(&["-id"]).expect_err("no value").to_string(), "flag -id: no value");
        assert_eq!(parse(&["-x", "start"]).expect_err("unknown").to_string(), "unknown flag -x");
    }
}
