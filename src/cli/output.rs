//! How answers look: one line per check, colours only for a person, JSON for programs.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::plan::checks::{Finding, Severity};

/// What a subcommand found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) text: String,
    pub(crate) json: Value,
    /// Yes is exit code 0, no is 1.
    pub(crate) yes: bool,
}

impl Report {
    /// A reader that went away early (`| head`) is no failure.
    pub(crate) fn print(&self, as_json: bool) -> ExitCode {
        let text = if as_json { format!("{:#}\n", self.json) } else { self.text.clone() };
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
        if self.yes { ExitCode::SUCCESS } else { ExitCode::from(1) }
    }
}

/// With colours or without.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Style {
    pub(crate) colour: bool,
}

impl Style {
    /// Colours for a terminal, unless NO_COLOR is set (no-color.org) or it is a dumb one.
    pub(crate) fn of_stdout() -> Self {
        let says = |name: &str| std::env::var_os(name).unwrap_or_default();
        let colour = std::io::stdout().is_terminal() && says("NO_COLOR").is_empty() && says("TERM") != "dumb";
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

    /// One line per finding: mark, check, and cause, evidence, advice.
    pub(crate) fn findings(self, findings: &[Finding]) -> String {
        let mut text = String::new();
        for finding in findings {
            let line =
                writeln!(text, "{}  {:<12} {}", self.severity(finding.severity), finding.check, finding.text);
            debug_assert!(line.is_ok(), "writing to a string");
        }
        text
    }
}

/// The same for programs.
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

/// Bytes for a person.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} bytes"),
        10_000..=10_239_999 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        _ => format!("{} MiB", bytes.div_ceil(1 << 20)),
    }
}

/// A line on stderr that is rewritten while something long runs; nothing when nobody watches.
#[derive(Debug)]
pub(crate) struct Progress {
    watched: bool,
    shown: u64,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { watched: std::io::stderr().is_terminal(), shown: u64::MAX }
    }

    pub(crate) fn show(&mut self, what: &str, done: u64, all: u64) {
        let percent = done.saturating_mul(100) / all.max(1);
        if self.watched && percent != self.shown {
            self.shown = percent;
            let end = if done >= all { "\r\x1b[K" } else { "" };
            write!(std::io::stderr(), "\r{what}: {percent} %{end}").ok();
        }
    }
}
