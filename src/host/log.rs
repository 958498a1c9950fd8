//! JSON log lines to containerd's fifo and to a bounded file of the pod.
//!
//! Neither ever blocks or ends the shim: a fifo that is not read loses lines, and the file keeps the newest.
//! Each place of the source may write so many lines in a second: a guest that provokes one again and again
//! cannot push the others out.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use nix::libc;
use serde_json::{Map, Value};
use slog::{Drain, KV, Level, Logger, OwnedKVList, Record, o};

use crate::config::LogLevel;
use crate::error::one_line;
use crate::ids::SandboxId;
use crate::limits;
use crate::mutex::lock;

/// Changes the level of an open log.
#[derive(Clone, Debug)]
pub(crate) struct LevelSwitch(Arc<AtomicUsize>);

impl LevelSwitch {
    fn new(level: Level) -> Self {
        Self(Arc::new(AtomicUsize::new(level.as_usize())))
    }

    /// The configured level; containerd's `-debug` takes precedence.
    pub(crate) fn set(&self, level: LogLevel) {
        let level = match level {
            LogLevel::Error => Level::Error,
            LogLevel::Warning => Level::Warning,
            LogLevel::Info => Level::Info,
            LogLevel::Debug => Level::Debug,
        };
        if self.0.load(Ordering::Relaxed) != Level::Debug.as_usize() {
            self.0.store(level.as_usize(), Ordering::Relaxed);
        }
    }
}

/// A duration as it is logged.
pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Opens the pod's log: `file` in its directory and `fifo`, containerd's, in the bundle.
pub(crate) fn open(file: &Path, fifo: &Path, sandbox: &SandboxId, debug: bool) -> (Logger, LevelSwitch) {
    let level = LevelSwitch::new(if debug { Level::Debug } else { Level::Info });
    let lines = Lines {
        level: level.clone(),
        sandbox: sandbox.to_string(),
        outputs: Mutex::new(Outputs {
            fifo: open_fifo(fifo),
            file: open_file(file),
            path: file.to_path_buf(),
        }),
        paces: Mutex::default(),
    };
    (Logger::root(lines.ignore_res(), o!()), level)
}

/// For reading too: otherwise opening it would fail while containerd, its reader, restarts.
fn open_fifo(path: &Path) -> Option<File> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).ok()
}

fn open_file(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path).ok()
}

struct Lines {
    level: LevelSwitch,
    sandbox: String,
    outputs: Mutex<Outputs>,
    /// By file and line of the source.
    paces: Mutex<BTreeMap<(&'static str, u32), Pace>>,
}

/// The lines of one place in the source, in the second that is running.
#[derive(Debug)]
struct Pace {
    since: Instant,
    written: u32,
    left_out: u64,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { since: now, written: 0, left_out: 0 }
    }

    /// Whether a line may be written now; if so, how many were left out before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let over = now.saturating_duration_since(self.since) >= Duration::from_secs(1);
        let left_out = if over { std::mem::replace(self, Self::new(now)).left_out } else { 0 };
        if self.written >= limits::host::LOG_LINES_A_SECOND {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.written += 1;
        Some(left_out)
    }
}

struct Outputs {
    fifo: Option<File>,
    file: Option<File>,
    path: PathBuf,
}

impl Outputs {
    fn write(&mut self, line: &[u8]) {
        if let Some(fifo) = &mut self.fifo {
            let _written = fifo.write(line); // it is full when containerd does not read
        }
        let Some(file) = &mut self.file else { return };
        let over = file.metadata().is_ok_and(|m| m.len() > limits::host::LOG_FILE_BYTES);
        if over {
            keep_end(&self.path, file);
        }
        file.write_all(line).ok();
    }
}

/// Removes the older half.
fn keep_end(path: &Path, file: &mut File) {
    let Ok(text) = std::fs::read(path) else { return };
    let half = text.get(text.len() / 2..).unwrap_or_default();
    let whole = half.iter().position(|b| *b == b'\n').and_then(|at| half.get(at + 1..)).unwrap_or_default();
    if file.set_len(0).is_ok() {
        file.write_all(whole).ok();
    }
}

impl Drain for Lines {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        if record.level().as_usize() > self.level.0.load(Ordering::Relaxed) {
            return Ok(());
        }
        let now = Instant::now();
        let taken = lock(&self.paces)
            .entry((record.file(), record.line()))
            .or_insert_with(|| Pace::new(now))
            .take(now);
        let Some(left_out) = taken else { return Ok(()) };
        let mut fields = Fields(Map::new());
        let mut put = |key: &str, value: String| fields.0.insert(key.to_owned(), value.into());
        put("time", humantime::format_rfc3339_millis(SystemTime::now()).to_string());
        put("level", record.level().as_str().to_lowercase());
        put("msg", one_line(&record.msg().to_string()));
        put("sandbox", self.sandbox.clone());
        record.kv().serialize(record, &mut fields).ok();
        values.serialize(record, &mut fields).ok();
        if left_out > 0 {
            fields.0.insert("left_out".to_owned(), left_out.into());
        }
        let mut line = Value::Object(fields.0).to_string();
        if line.len() > limits::host::LOG_LINE_BYTES {
            line = format!("{{\"msg\":\"a log line of {} bytes was dropped\"}}", line.len());
        }
        line.push('\n');
        lock(&self.outputs).write(line.as_bytes());
        Ok(())
    }
}

struct Fields(Map<String, Value>);

impl slog::Serializer for Fields {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        self.0.insert(key.to_owned(), one_line(&value.to_string()).into());
        Ok(())
    }

    fn emit_u64(&mut self, key: slog::Key, value: u64) -> slog::Result {
        self.0.insert(key.to_owned(), value.into());
        Ok(())
    }

    fn emit_usize(&mut self, key: slog::Key, value: usize) -> slog::Result {
        self.emit_u64(key, value as u64)
    }

    fn emit_u32(&mut self, key: slog::Key, value: u32) -> slog::Result {
        self.emit_u64(key, value.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slog::{debug, info};

    #[test]
    fn lines_are_json_one_each_and_the_file_is_bounded() {
        let dir = tempfile::tempdir().expect("dir");
        let sandbox = SandboxId::parse("s1").expect("id");
        let (log, level) = open(&dir.path().join("log"), Path::new("/nonexistent/log"), &sandbox, false);
        debug!(log, "not seen");
        info!(log, "two\nlines"; "n" => 7_u32);
        level.set(LogLevel::Debug);
        debug!(log, "seen");
        let text = std::fs::read_to_string(dir.path().join("log")).expect("read");
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).expect("json")).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(
            (&lines[0]["msg"], &lines[0]["n"], &lines[0]["sandbox"]),
            (&"two\\nlines".into(), &7.into(), &"s1".into())
        );
        let path = dir.path().join("log");
        let mut outputs = Outputs { fifo: None, file: open_file(&path), path: path.clone() };
        for _ in 0..9000 {
            outputs.write(&[b'x'; 300]);
        }
        let size = std::fs::metadata(&path).expect("stat").len();
        assert!(size <= limits::host::LOG_FILE_BYTES + 1024, "{size}");
    }

    #[test]
    fn a_flood_from_one_place_is_cut_and_counted_and_others_go_on() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let most = limits::host::LOG_LINES_A_SECOND;
        for _ in 0..most {
            assert_eq!(pace.take(now), Some(0));
        }
        assert_eq!([pace.take(now), pace.take(now)], [None, None]);
        let later = now + Duration::from_secs(1);
        assert_eq!([pace.take(later), pace.take(later)], [Some(2), Some(0)]);

        let dir = tempfile::tempdir().expect("dir");
        let sandbox = SandboxId::parse("s1").expect("id");
        let (log, _) = open(&dir.path().join("log"), Path::new("/nonexistent/log"), &sandbox, false);
        for n in 0..100_000 {
            info!(log, "flood {}", n);
        }
        info!(log, "another place");
        let text = std::fs::read_to_string(dir.path().join("log")).expect("read");
        let seconds = usize::try_from(now.elapsed().as_secs()).expect("seconds") + 2;
        let lines = text.lines().count();
        assert!((most as usize..=most as usize * seconds + 1).contains(&lines), "{lines}");
        assert!(text.ends_with("\n") && text.contains("another place"), "{lines}");
    }
}
