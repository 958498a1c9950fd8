//! The agent's policy, as far as tests need one: which requests it denies, and how the real agent answers then.
//!
//! Of Rego it reads `default <Request> := true` and `false` alone; what a rule would allow beyond its default is not
//! evaluated. A request without a line has no rule.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};

use crate::script::{Failure, Rule};

/// The policy in force; none: everything is allowed.
#[derive(Debug, Default)]
pub(crate) struct Policy(Mutex<Option<HashMap<String, bool>>>);

impl Policy {
    pub(crate) fn set(&self, rego: &str) {
        let rule = |line: &str| {
            let (name, value) = line.trim().strip_prefix("default ")?.split_once(" := ")?;
            Some((name.to_owned(), value.trim() == "true"))
        };
        let rules = rego.lines().filter_map(rule).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(rules);
    }

    /// What happens to a call that is denied, by the name of its request's message.
    pub(crate) fn denial(&self, request: &str) -> Option<Rule> {
        let policy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = match policy.as_ref()?.get(request) {
            Some(true) => return None,
            // The stream is read all the same, and what was read is thrown away.
            _ if request == "ReadStreamRequest" => {
                let answer = Map::from_iter([("data".to_owned(), json!(""))]);
                return Some(Rule { answer, ..Rule::default() });
            }
            // What the rules have printed: the request, and the rules' names.
            Some(false) => {
                let prints = "agent_policy:7: allow_it: input = {\"Env\": [\"KEY=of the request\"]} agent_policy:9: allow_it: false";
                (7, format!("{request} is blocked by policy: {prints}"))
            }
            None => {
                let why = "unexpected eval_query result len 0";
                (13, format!("{request}: internal error policy check: {why}"))
            }
        };
        let (code, text) = (text.0, Value::String(text.1));
        Some(Rule { skip: true, error: Some(Failure { code, text }), ..Rule::default() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_request_is_denied_by_its_default_and_without_a_rule() {
        let policy = Policy::default();
        assert!(policy.denial("CloseStdinRequest").is_none(), "no policy");
        policy.set("package agent_policy\ndefault A := true\n default B := false\ndefault ReadStreamRequest := false");
        assert!(policy.denial("A").is_none());
        let error = |name| policy.denial(name).unwrap().error.unwrap();
        assert_eq!((error("B").code, error("C").code), (7, 13));
        assert!(error("B").text.as_str().unwrap().starts_with("B is blocked by policy: agent_policy:7: "));
        assert!(policy.denial("ReadStreamRequest").unwrap().error.is_none());
    }
}
