//! Replaces QEMU and its vsock device in tests. See README.md.

// A separate program: the product's rules for children and exits do not apply.
#![allow(clippy::disallowed_methods, clippy::exit)]

mod cold;
mod disks;
mod options;
mod qmp;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Its orders, from a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Double {
    agent: PathBuf,
    root: PathBuf,
    #[serde(default)]
    apart: bool,
    /// More of the agent's options.
    #[serde(default)]
    agent_options: Vec<String>,
    record: Option<PathBuf>,
    script: Option<PathBuf>,
    exit: Option<Exit>,
    /// Where the disks of the command line are kept.
    disks: Option<PathBuf>,
    #[serde(default = "yes")]
    greet: bool,
    hang_on: Option<String>,
    refuse: Option<String>,
    die_at_cont: Option<i32>,
    console: Option<String>,
    /// Bytes of lines that follow on the console.
    #[serde(default)]
    console_bytes: usize,
    /// Events that follow a plugged disk.
    #[serde(default)]
    after_plug: Vec<serde_json::Value>,
    /// What follows a plugged disk without an end.
    flood: Option<Flood>,
    #[serde(default)]
    ignore_quit: bool,
    #[serde(default)]
    no_agent: bool,
    #[serde(default)]
    powers_off: bool,
    #[serde(default)]
    unprotected: bool,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Flood {
    /// One event whose line never ends.
    Line,
    Events,
    /// Lines of nested brackets.
    Brackets,
    /// Answers that no command waits for.
    Answers,
}

#[derive(Debug, Deserialize)]
struct Exit {
    code: i32,
    stderr: String,
}

fn yes() -> bool {
    true
}

fn main() {
    let mut args = std::env::args_os();
    let called = PathBuf::from(args.next().unwrap_or_default());
    let args: Vec<String> = args.map(|a| a.to_string_lossy().into_owned()).collect();
    if args.first().is_some_and(|a| a == "--vm") {
        vsock_device(args.get(1).map(String::as_str).unwrap_or_default());
    }
    let is_device = called.file_name().is_some_and(|name| name == "vsock");
    if is_device && args == ["--version"] {
        return say("vhost-device-vsock 0.3.0\n");
    }
    if let Some(text) = qemu_double::help::answer(&args) {
        return say(text);
    }
    let options = options::parse(&args).unwrap_or_else(|e| fail(1, &e));
    let told = called.parent().unwrap_or(Path::new("/")).join("double.json");
    let text =
        std::fs::read_to_string(&told).unwrap_or_else(|e| fail(70, &format!("{}: {e}", told.display())));
    let double: Double =
        serde_json::from_str(&text).unwrap_or_else(|e| fail(70, &format!("{}: {e}", told.display())));
    if let Some(exit) = &double.exit {
        fail(exit.code, &exit.stderr);
    }
    if let Some(folder) = &double.disks {
        options.disks.keep(folder).unwrap_or_else(|e| fail(70, &format!("{}: {e}", folder.display())));
    }
    qmp::serve(&double, &options);
}

fn say(text: &str) {
    use std::io::Write;
    std::io::stdout().write_all(text.as_bytes()).ok();
}

/// Fails as QEMU does: a line on stderr, an exit code.
fn fail(code: i32, text: &str) -> ! {
    use std::io::Write;
    std::io::stderr().write_all(format!("qemu-system-s390x: {text}\n").as_bytes()).ok();
    std::process::exit(code)
}

/// Makes the socket QEMU would connect to and waits for the end.
fn vsock_device(text: &str) -> ! {
    let socket = text.split(',').find_map(|pair| pair.strip_prefix("socket="));
    let socket = socket.unwrap_or_else(|| fail(2, "--vm: no socket"));
    let listener = UnixListener::bind(std::ffi::OsStr::from_bytes(socket.as_bytes()));
    let _listener = listener.unwrap_or_else(|e| fail(1, &format!("{socket}: {e}")));
    loop {
        std::thread::park();
    }
}
