//! The output of reports: text with colours on a terminal, or JSON.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::error::one_line;
use crate::plan::finding::{Finding, Severity};

/// The result of a subcommand.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) text: String,
    pub(crate) json: Value,
    /// Exit code 0 if true, 1 if false.
    pub(crate) yes: bool,
}

impl Report {
    pub(crate) fn print(&self, as_json: bool) -> ExitCode {
        ExitCode::from(self.print_to(&mut std::io::stdout().lock(), as_json))
    }

    fn print_to(&self, out: &mut impl Write, as_json: bool) -> u8 {
        let text = if as_json { format!("{:#}\n", self.json) } else { self.text.clone() };
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        exit_code(written, if self.yes { 0 } else { 1 })
    }
}

/// The exit code of what was written to stdout: `code`, unless it is not there. A reader that closed its end
/// early (`| head`) has what it wanted.
pub(crate) fn exit_code(written: std::io::Result<()>, code: u8) -> u8 {
    match written {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            writeln!(std::io::stderr(), "kata-se: write to standard output: {e}").ok();
            3
        }
        _ => code,
    }
}

/// With colours or without.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Style {
    pub(crate) colour: bool,
}

impl Style {
    /// Colours for a terminal that is not dumb, unless NO_COLOR is set (no-color.org).
    pub(crate) fn of_stdout() -> Self {
        let variable = |name: &str| std::env::var_os(name).unwrap_or_default();
        let colour =
            std::io::stdout().is_terminal() && variable("NO_COLOR").is_empty() && variable("TERM") != "dumb";
        Self { colour }
    }

    fn paint(self, code: u8, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.paint(32, text)
    }

    pub(crate) fn doubtful(self, text: &str) -> String {
        self.paint(33, text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.paint(31, text)
    }

    pub(crate) fn strong(self, text: &str) -> String {
        self.paint(1, text)
    }

    pub(crate) fn severity(self, severity: Severity) -> String {
        match severity {
            Severity::Pass => self.good("ok  "),
            Severity::Warning => self.doubtful("warn"),
            Severity::Fatal => self.bad("FAIL"),
        }
    }

    /// One line per finding: severity, check, then cause, evidence and advice.
    pub(crate) fn findings(self, findings: &[Finding]) -> String {
        let mut text = String::new();
        for finding in findings {
            let (severity, words) = (self.severity(finding.severity), one_line(&finding.text.to_string()));
            let line = writeln!(text, "{severity}  {:<12} {words}", finding.check);
            debug_assert!(line.is_ok(), "writing to a string");
        }
        text
    }
}

/// The findings as JSON.
pub(crate) fn findings_json(findings: &[Finding]) -> Value {
    let one = |finding: &Finding| {
        let result = match finding.severity {
            Severity::Pass => "pass",
            Severity::Warning => "warning",
            Severity::Fatal => "fatal",
        };
        let text = &finding.text;
        json!({"check": finding.check, "result": result, "cause": text.cause, "evidence": text.evidence,
            "advice": text.advice})
    };
    findings.iter().map(one).collect()
}

/// A size with its unit.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} bytes"),
        10_000..=10_239_999 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        _ => format!("{} MiB", bytes.div_ceil(1 << 20)),
    }
}

/// A line of progress on stderr, if that is a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    is_terminal: bool,
    shown: u64,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { is_terminal: std::io::stderr().is_terminal(), shown: u64::MAX }
    }

    pub(crate) fn show(&mut self, what: &str, done: u64, all: u64) {
        let percent = done.saturating_mul(100) / all.max(1);
        if self.is_terminal && percent != self.shown {
            self.shown = percent;
            let end = if done >= all { "\r\x1b[K" } else { "" };
            write!(std::io::stderr(), "\r{what}: {percent} %{end}").ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_cannot_be_written_is_a_failure() {
        let report = |yes| Report { text: "a\n".into(), json: json!({}), yes };
        let full = || std::fs::File::options().write(true).open("/dev/full").expect("open");
        let (reader, closed) = nix::unistd::pipe().expect("pipe");
        drop(reader);
        let mut closed = std::fs::File::from(closed);
        for (yes, code) in [(true, 0), (false, 1)] {
            assert_eq!(report(yes).print_to(&mut Vec::new(), false), code);
            assert_eq!(report(yes).print_to(&mut closed, true), code, "a reader that has enough");
            assert_eq!(report(yes).print_to(&mut full(), yes), 3);
        }
    }
}
