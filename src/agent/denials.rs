//! Calls that the guest's policy denies: told by their names, each once, and never by what was sent.
//!
//! The agent's text begins with the denied request's name and ends with all that the policy's rules printed, the whole
//! request among it, with arguments and environment. Nothing but the name of the rule that was tried last is taken out
//! of it: it is often not the one that failed, and nobody should be told more than that.

use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock};

use slog::{Logger, warn};

use crate::limits;
use crate::mutex::lock;

/// What has been told of one guest's policy.
#[derive(Debug, Default)]
pub(super) struct Denials {
    log: OnceLock<Logger>,
    told: Mutex<BTreeSet<&'static str>>,
}

impl Denials {
    pub(super) fn log_to(&self, log: Logger) {
        self.log.set(log).ok(); // the first one stays
    }

    /// Tells of a call that was denied, once for each name.
    pub(super) fn tell(&self, call: &'static str, denial: &str) {
        let Some(log) = self.log.get() else { return };
        if lock(&self.told).insert(call) {
            warn!(log, "agent {}: {}; further denials of this call are not logged", call, denial);
        }
    }
}

/// A denial in one line; None: the text is of another error. `permission`: the code says that it is one.
pub(super) fn denial(permission: bool, text: &str) -> Option<String> {
    // An agent whose policy has no rule of this name.
    let no_rule = text.contains("internal error policy check");
    if no_rule {
        return Some("the guest's policy denies it, as it has no rule of this name".to_owned());
    }
    if !permission {
        return None;
    }
    Some(match last_rule(text) {
        Some(rule) => format!("the guest's policy denies it (last rule tried: {rule})"),
        None => "the guest's policy denies it".to_owned(),
    })
}

/// The name of the rule that printed last. A print is `agent_policy:<line>: <rule>: <values>`.
fn last_rule(text: &str) -> Option<String> {
    let (_, prints) = text.split_once("is blocked by policy:")?;
    let (_, last) = prints.rsplit_once("agent_policy:")?;
    let (line, print) = last.split_once(": ")?;
    line.parse::<u32>().ok()?;
    // Values are of the request: they begin with = or are quoted.
    let name = print.split(['=', '"', '{', '[', '\\', ':']).next().unwrap_or_default().trim();
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_ -.".contains(c);
    let fits = !name.is_empty() && name.len() <= limits::text::QUOTED_ID_CHARS && name.chars().all(is_name);
    fits.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_names_the_last_rule_and_nothing_of_the_request() {
        let trace = "agent_policy:122: allow_create_container_input: input = {\"OCI\": {\"Process\": {\"Env\": \
             [\"KEY=S3CRET agent_policy:1: x\"]}}} agent_policy:150: allow_create_container_input: true \
             agent_policy:301: allow_mount 2: start";
        let blocked = |prints: &str| format!("CreateContainerRequest is blocked by policy: {prints}");
        for (permission, text, wanted) in [
            (true, blocked(trace), Some("the guest's policy denies it (last rule tried: allow_mount 2)")),
            (true, blocked(""), Some("the guest's policy denies it")),
            (true, blocked("agent_policy:9: S3CRET\u{1b}[0m"), Some("the guest's policy denies it")),
            (
                true,
                blocked("agent_policy:9: p_data =S3CRET"),
                Some("the guest's policy denies it (last rule tried: p_data)"),
            ),
            (true, blocked("agent_policy:x: S3CRET"), Some("the guest's policy denies it")),
            (
                true,
                blocked(&format!("agent_policy:9: {}", "S".repeat(200))),
                Some("the guest's policy denies it"),
            ),
            (true, "no: S3CRET".to_owned(), Some("the guest's policy denies it")),
            (
                false,
                "GetMetricsRequest: internal error policy check: unexpected eval_query result len 0"
                    .to_owned(),
                Some("the guest's policy denies it, as it has no rule of this name"),
            ),
            (false, "no space left on device".to_owned(), None),
        ] {
            let told = denial(permission, &text);
            assert_eq!(told.as_deref(), wanted, "{text}");
        }
    }
}
