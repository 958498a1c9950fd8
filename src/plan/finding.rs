//! The result of one check, and of several: may a secure pod start?

use crate::diagnosis::Diagnosis;

/// What a finding means for a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Pass,
    /// It may go wrong, or could not be checked.
    Warning,
    /// It cannot work.
    Fatal,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// The check's name, one word.
    pub check: &'static str,
    pub text: Diagnosis,
}

/// The check passed.
pub(crate) fn pass(check: &'static str, text: impl Into<String>) -> Finding {
    let text = Diagnosis { cause: text.into(), evidence: String::new(), advice: String::new() };
    Finding { severity: Severity::Pass, check, text }
}

/// The start may go wrong.
pub(crate) fn warning(check: &'static str, cause: &str, evidence: &str, advice: &str) -> Finding {
    Finding { severity: Severity::Warning, ..fatal(check, cause, evidence, advice) }
}

/// The start would fail.
pub(crate) fn fatal(check: &'static str, cause: &str, evidence: &str, advice: &str) -> Finding {
    let text =
        Diagnosis { cause: cause.to_owned(), evidence: evidence.to_owned(), advice: advice.to_owned() };
    Finding { severity: Severity::Fatal, check, text }
}

/// The check could not be made: no reason to refuse a start.
pub(crate) fn unknown(check: &'static str, evidence: &str) -> Finding {
    warning(check, "this could not be checked", evidence, "the start is attempted anyway")
}

/// Why a pod cannot start, in one line; None when nothing is fatal.
pub(crate) fn refusal(findings: &[Finding]) -> Option<String> {
    let mut fatal = findings.iter().filter(|finding| finding.severity == Severity::Fatal);
    let mut text = fatal.next()?.text.to_string();
    for also in fatal {
        text.push_str("; also: ");
        text.push_str(&also.text.cause);
    }
    Some(text)
}
