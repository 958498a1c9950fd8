//! The script of misbehaviour: which answers are delayed, changed, cut or replaced. See README.md.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The name of a rule for connections instead of calls.
pub const CONNECT: &str = "@connect";

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    pub rules: Vec<Rule>,
    /// The policy that is in the image, in Rego; see `policy.rs`.
    #[serde(default)]
    pub policy: Option<String>,
}

/// What happens to one kind of call. The first rule that matches is used; everything in it applies, in this order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// A method's name, `*` for any, `@connect` for a new connection.
    pub call: String,
    /// Only requests with these values, by the names of the protocol.
    pub request: Map<String, Value>,
    /// Only the nth of the requests that match, from 1; 0: all.
    pub nth: u32,
    /// Only from the nth on.
    pub from: u32,

    /// Waits before the call is executed.
    pub before_ms: u64,
    /// Does not execute the call: the answer is empty.
    pub skip: bool,
    /// Waits before the answer.
    pub delay_ms: u64,
    /// Exits at once.
    pub crash: bool,
    /// Sends other frames before the answer.
    pub flood: Option<Flood>,
    /// Returns this error instead.
    pub error: Option<Failure>,
    /// Changes these fields of the answer.
    pub answer: Map<String, Value>,
    /// Changes the answer's frame header.
    pub header: Header,
    /// Sends these bytes (hex digits) instead of the answer.
    pub raw: Option<String>,
    /// Sends only so many bytes of the answer, then nothing more on this connection.
    pub cut: Option<usize>,
    /// Sends the answer byte by byte.
    pub split: bool,
    /// Sends the answer so many more times.
    pub repeat: u32,
    /// Never answers.
    pub hang: bool,
    /// Closes the connection: after `cut` or `raw` bytes, else instead of an answer.
    pub close: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Failure {
    /// A code of gRPC's list.
    pub code: i32,
    pub text: Value,
}

/// Fields of a ttrpc frame's header; what is absent stays right.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Header {
    pub length: Option<u32>,
    pub stream_id: Option<u32>,
    #[serde(rename = "type")]
    pub kind: Option<u8>,
    pub flags: Option<u8>,
}

/// Unsolicited frames.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flood {
    /// 0: until the connection ends.
    pub frames: u64,
    /// Payload of each.
    pub bytes: u32,
    /// 2: response, 3: data.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Absent: a different one for each frame.
    pub stream_id: Option<u32>,
}

/// The current script: a file is read again when it changes, and counts restart then.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    file: Option<PathBuf>,
    loaded: Mutex<Loaded>,
}

#[derive(Debug, Default)]
struct Loaded {
    script: Script,
    changed: Option<SystemTime>,
    /// How many requests matched each rule.
    counts: HashMap<usize, u32>,
}

impl Rules {
    pub(crate) fn of_file(file: &Path) -> Self {
        Self { file: Some(file.to_owned()), loaded: Mutex::default() }
    }

    pub(crate) fn of_text(text: &str) -> Result<Self, String> {
        let script = serde_json::from_str(text).map_err(|e| e.to_string())?;
        Ok(Self { file: None, loaded: Mutex::new(Loaded { script, ..Loaded::default() }) })
    }

    pub(crate) fn is_on(&self) -> bool {
        self.file.is_some()
            || !self.loaded.lock().unwrap_or_else(PoisonError::into_inner).script.rules.is_empty()
    }

    /// The policy of a script that is new, once.
    pub(crate) fn policy(&self) -> Option<String> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).script.policy.take()
    }

    /// The rule for a request, counted.
    pub(crate) fn take(&self, call: &str, request: &Value) -> Option<Rule> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &self.file {
            loaded.refresh(file);
        }
        let Loaded { script, counts, .. } = &mut *loaded;
        for (number, rule) in script.rules.iter().enumerate().filter(|(_, rule)| rule.fits(call, request)) {
            let count = counts.entry(number).or_default();
            *count += 1;
            if (rule.nth == 0 || rule.nth == *count) && rule.from <= *count {
                return Some(rule.clone());
            }
        }
        None
    }
}

impl Loaded {
    fn refresh(&mut self, file: &Path) {
        let changed = std::fs::metadata(file).and_then(|m| m.modified()).ok();
        if changed == self.changed {
            return;
        }
        let text = std::fs::read_to_string(file).unwrap_or_else(|_| r#"{"rules":[]}"#.to_owned());
        match serde_json::from_str(&text) {
            Ok(script) => *self = Self { script, changed, counts: HashMap::new() },
            Err(e) => crate::cli::say(&format!("script {}: {e}", file.display())),
        }
    }
}

impl Rule {
    fn fits(&self, call: &str, request: &Value) -> bool {
        let named = self.call == call || (self.call == "*" && call != CONNECT);
        named && self.request.iter().all(|(name, value)| request.get(name) == Some(value))
    }
}

/// Expands placeholders for long values: `{"$text": N}` is N letters, `{"$bytes": N}` is
/// N bytes as base64, `{"$list": {"of": V, "times": N}}` a list.
pub(crate) fn expand(value: &Value) -> Value {
    let size = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    match value {
        Value::Object(map) if map.len() == 1 => match map.iter().next() {
            Some((name, n)) if name == "$text" => "x".repeat(size(n)).into(),
            Some((name, n)) if name == "$bytes" => {
                use base64::Engine;
                base64::engine::general_purpose::STANDARD.encode(vec![b'x'; size(n)]).into()
            }
            Some((name, list)) if name == "$list" => vec![expand(&list["of"]); size(&list["times"])].into(),
            _ => expand_all(map),
        },
        Value::Object(map) => expand_all(map),
        other => other.clone(),
    }
}

fn expand_all(map: &Map<String, Value>) -> Value {
    let mut all = json!({});
    for (name, value) in map {
        all[name] = expand(value);
    }
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rules_count_the_requests_that_fit_them() {
        let rules = Rules::of_text(
            r#"{"rules": [
                {"call": "ReadStdout", "request": {"exec_id": "e1"}, "nth": 2, "hang": true},
                {"call": "*", "from": 3, "close": true}
            ]}"#,
        );
        let rules = rules.unwrap();
        let take = |call: &str, exec: &str| rules.take(call, &json!({ "exec_id": exec }));
        assert!(take("ReadStdout", "e1").is_none());
        assert!(take("ReadStdout", "e2").is_none());
        assert!(take("ReadStdout", "e1").unwrap().hang);
        assert!(take("Check", "").unwrap().close);
        assert!(take(CONNECT, "").is_none());
    }

    #[test]
    fn an_unknown_word_is_an_error() {
        assert!(
            Rules::of_text(r#"{"rules": [{"call": "Check", "sleep": 1}]}"#).unwrap_err().contains("sleep")
        );
    }

    #[test]
    fn long_values_are_written_short() {
        let short = json!({ "a": { "$text": 3 }, "b": { "$list": { "of": { "$text": 1 }, "times": 2 } }, "c": { "$bytes": 3 } });
        assert_eq!(expand(&short), json!({ "a": "xxx", "b": ["x", "x"], "c": "eHh4" }));
    }
}
