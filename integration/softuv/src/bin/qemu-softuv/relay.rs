//! QMP between the host program and the emulator, which knows nothing of protection: what the machine of a
//! protected guest answers otherwise is answered here.
//!
//! A process of its own, so that QEMU's is the one that was started. It ends when one side closes.

use std::io::{BufRead, BufReader, IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use qemu_double::wire::{not_migratable, receive, say, take};
use serde_json::{Value, json};
use softuv::Result;

/// The only argument of a process that relays, between its stdin and its stdout.
pub(crate) const RELAY: &str = "--relay-qmp";

/// Starts the relay between the descriptor `qmp`, which the emulator will use, and its present other side.
pub(crate) fn start(qmp: RawFd) -> Result<()> {
    let start = || -> std::io::Result<()> {
        let mut theirs = OwnedFd::from(take(qmp));
        let (ours, emulators) = UnixStream::pair()?;
        let mut relay = Command::new("/proc/self/exe");
        relay.arg(RELAY).stdin(theirs.try_clone()?).stdout(OwnedFd::from(ours)).stderr(Stdio::null());
        relay.spawn()?;
        nix::unistd::dup2(&emulators, &mut theirs)?; // stays open across exec
        std::mem::forget(theirs);
        Ok(())
    };
    start().map_err(|e| format!("QMP relay: {e}"))
}

/// The relaying process.
pub(crate) fn run() -> ! {
    let (host, emulator) = (take(0), take(1));
    let relay = || -> std::io::Result<()> {
        let (out, from) = (Arc::new(Mutex::new(host.try_clone()?)), BufReader::new(emulator.try_clone()?));
        let answers = Arc::clone(&out);
        std::thread::spawn(move || {
            // Whole lines, so that an answer of ours is never inside one.
            for line in from.lines().map_while(std::io::Result::ok) {
                answers.lock().map(|mut out| writeln!(out, "{line}")).ok();
            }
            std::process::exit(0);
        });
        asked(&host, &emulator, &out)
    };
    relay().ok();
    std::process::exit(0)
}

/// Passes commands on, with the descriptors beside them, until the host program closes.
fn asked(host: &UnixStream, emulator: &UnixStream, out: &Mutex<UnixStream>) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    let mut fds = Vec::new();
    loop {
        let (bytes, more) = receive(host);
        if bytes.is_empty() {
            return Ok(());
        }
        buffer.extend(bytes);
        fds.extend(more);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let command: Value = serde_json::from_slice(&line).unwrap_or_default();
            if command["execute"] == "query-migrate" {
                say(out, &json!({"return": not_migratable(), "id": command["id"]}));
            } else {
                pass(emulator, &line, &std::mem::take(&mut fds))?;
            }
        }
    }
}

fn pass(emulator: &UnixStream, line: &[u8], fds: &[OwnedFd]) -> std::io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage] = if raw.is_empty() { &[] } else { &rights };
    let sent = sendmsg::<()>(emulator.as_raw_fd(), &[IoSlice::new(line)], control, MsgFlags::empty(), None)?;
    let mut emulator = emulator;
    emulator.write_all(line.get(sent..).unwrap_or_default())
}
