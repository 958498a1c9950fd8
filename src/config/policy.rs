//! A policy for the guest's agent, given by a pod or by the node's owner: its form, by the agent's own limits. What it
//! allows is the guest's business. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::{Error, Result};
use crate::limits;

/// The package in which the agent looks for its rules.
const PACKAGE: &str = "agent_policy";

/// A policy in Rego, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy(String);

impl Policy {
    /// Reads a policy. Errors do not quote it.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self> {
        let most = limits::guest_data::POLICY_BYTES;
        if bytes.len() > most {
            let length = bytes.len();
            return Err(Error::invalid(format!(
                "{length} bytes, more than the {most} of one message to the guest"
            )));
        }
        let text = String::from_utf8(bytes)
            .map_err(|e| Error::invalid(format!("not UTF-8 text: {}: it has to be Rego", e.utf8_error())))?;
        check_lines(&text)?;
        let is_package = |line: &str| {
            let mut words = line.split(|c: char| c.is_whitespace() || c == '#');
            words.next() == Some("package") && words.find(|word| !word.is_empty()) == Some(PACKAGE)
        };
        if !text.lines().any(|line| is_package(line.trim_start())) {
            return Err(Error::invalid(format!(
                "has no line `package {PACKAGE}`: the guest's agent would find no rule and deny every call"
            )));
        }
        Ok(Self(text))
    }

    /// Reads an annotation's value, in base64.
    pub(crate) fn of_annotation(value: &str) -> Result<Self> {
        let text: String = value.trim().chars().filter(|c| !"\r\n".contains(*c)).collect();
        if text.is_empty() {
            return Err(Error::invalid("is empty: encode the policy with `base64 -w0`, or remove it"));
        }
        let bytes = STANDARD.decode(&text).map_err(|e| {
            Error::invalid(format!(
                "not base64 with the standard alphabet and padding ({e}): use `base64 -w0`"
            ))
        })?;
        Self::parse(bytes)
    }

    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

/// The agent's limits on a policy, also on one in initdata.
pub(crate) fn check_lines(text: &str) -> Result<()> {
    let most = limits::guest_data::POLICY_LINE_BYTES;
    if let Some((number, line)) = text.lines().enumerate().find(|(_, line)| line.len() > most) {
        return Err(Error::invalid(format!(
            "line {} has {} bytes, more than the {most} that the guest's agent reads: break it",
            number + 1,
            line.len()
        )));
    }
    let (lines, most) = (text.lines().count(), limits::guest_data::POLICY_LINES);
    if lines > most {
        return Err(Error::invalid(format!(
            "{lines} lines, more than the {most} that the guest's agent reads"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# x\n  package agent_policy # y\ndefault CreateSandboxRequest := true\n";

    #[test]
    fn a_policy_is_sent_as_it_was_written() {
        let encoded = STANDARD.encode(GOOD);
        let (first, rest) = encoded.split_at(40);
        for value in [encoded.clone(), format!(" {first}\r\n{rest}\n")] {
            assert_eq!(Policy::of_annotation(&value).expect("policy").text(), GOOD);
        }
        for package in ["package agent_policy", "package\tagent_policy#x", "\u{a0}package agent_policy"] {
            assert!(Policy::parse(package.into()).is_ok(), "{package:?}");
        }
    }

    #[test]
    fn what_no_agent_takes_is_refused_with_the_line_and_without_a_quote() {
        let long = |bytes: usize| format!("package agent_policy\n\n# {}\n", "S".repeat(bytes - 2));
        let lines = |count: usize| format!("package agent_policy{}", "\n#".repeat(count - 1));
        assert!(Policy::parse(long(65536).into()).is_ok() && Policy::parse(lines(200_000).into()).is_ok());
        for (text, wanted) in [
            (long(65537), "line 3 has 65537 bytes, more than the 65536 that the guest's agent reads"),
            (lines(200_001), "200001 lines, more than the 200000 that"),
            ("S".repeat(4 << 20), "4194304 bytes, more than the "),
            (String::new(), "has no line `package agent_policy`"),
            ("package agent_policy2".into(), "has no line `package agent_policy`"),
            ("packages agent_policy".into(), "has no line"),
            ("# package agent_policy".into(), "has no line"),
        ] {
            let e = Policy::parse(text.into()).expect_err(wanted).to_string();
            assert!(e.starts_with(wanted) && !e.contains("SSS"), "{e}");
        }
        assert!(Policy::parse(vec![0xff]).expect_err("bytes").to_string().starts_with("not UTF-8 text"));
        for (value, wanted) in [(" \n", "is empty"), ("cGFj!", "not base64"), ("cGFja2FnZQ==", "has no line")]
        {
            let e = Policy::of_annotation(value).expect_err(wanted).to_string();
            assert!(e.starts_with(wanted), "{e}");
        }
    }
}
