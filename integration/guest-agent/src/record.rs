//! Records every request as one JSON line, so that tests can assert on what was really sent.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Longer data is recorded by its size only.
const MOST_DATA: usize = 8192;

/// Bytes kept in memory for queries; the oldest lines are dropped.
const MOST_KEPT: usize = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct Record {
    file: Option<Mutex<File>>,
    /// Lines also go to the console, with this prefix.
    console: bool,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Record {
    pub(crate) fn new(file: Option<&Path>, console: bool) -> std::io::Result<Self> {
        let file = file.map(File::create).transpose()?;
        Ok(Self { file: file.map(Mutex::new), console, kept: Mutex::default() })
    }

    pub(crate) fn is_on(&self) -> bool {
        self.file.is_some() || self.console
    }

    pub(crate) fn request(&self, connection: u64, call: &str, timeout_ms: i64, request: &Value) {
        let mut request = request.clone();
        shorten(&mut request);
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let line = json!({
            "at": at, "connection": connection, "call": call, "timeout_ms": timeout_ms, "request": request,
        });
        self.line(line.to_string());
    }

    fn line(&self, line: String) {
        if let Some(file) = &self.file {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            // A record that cannot be written fails the test that reads it.
            file.write_all(format!("{line}\n").as_bytes()).ok();
        }
        if self.console {
            crate::cli::say(&format!("RECORD {line}"));
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += line.len() + 1;
        kept.lines.push_back(line);
        while kept.bytes > MOST_KEPT {
            let oldest = kept.lines.pop_front().unwrap_or_default();
            kept.bytes -= oldest.len() + 1;
        }
    }

    /// The newest lines.
    pub(crate) fn tail(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}

/// `data` of a stream or file as its number of base64 digits when it is long.
fn shorten(request: &mut Value) {
    let Some(data) = request.get_mut("data") else { return };
    if let Some(length) = data.as_str().map(str::len).filter(|length| *length > MOST_DATA) {
        *data = format!("<{length} base64 digits>").into();
    }
}
