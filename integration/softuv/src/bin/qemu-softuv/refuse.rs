//! A guest that does not enter protected mode: QEMU waits for `cont`, then the loader asks for it, is
//! refused, prints that on the console, and stops; QEMU reports a panic.

use std::io::Write;
use std::sync::Mutex;

use qemu_double::wire::{greeting, receive, say, take};
use serde_json::{Value, json};
use softuv::refusal::{NO_FACILITY, PSW_NO_FACILITY, PSW_REFUSED, Refusal};

use crate::options::Options;
use crate::{Lost, fail, write_stderr};

/// How the guest stops.
pub(crate) struct Stop {
    /// QEMU's lines.
    pub(crate) stderr: Vec<String>,
    /// The loader's lines.
    pub(crate) console: String,
    /// Address of the disabled wait.
    pub(crate) psw: u64,
}

/// The mask of the loader's disabled wait.
const PSW_MASK: u64 = 0x0002_0001_8000_0000;

impl Stop {
    pub(crate) fn no_facility() -> Self {
        Self { stderr: Vec::new(), console: NO_FACILITY.to_owned(), psw: PSW_NO_FACILITY }
    }

    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self { stderr: refusal.stderr(), console: refusal.console(), psw: PSW_REFUSED }
    }
}

/// Serves QMP until the end.
pub(crate) fn serve(stop: &Stop, options: &Options, lost: Option<Lost>) -> ! {
    let Some(qmp) = options.qmp else { happen(stop, options, lost, None) };
    let stream = take(qmp);
    let out = Mutex::new(stream.try_clone().unwrap_or_else(|e| fail(70, &e.to_string())));
    say(&out, &greeting());
    let mut buffer = Vec::new();
    loop {
        let (bytes, _) = receive(&stream);
        if bytes.is_empty() {
            // QEMU keeps running when its QMP peer closes the connection.
            loop {
                std::thread::park();
            }
        }
        buffer.extend(bytes);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let asked: Value = serde_json::from_slice(&line).unwrap_or_default();
            let command = asked["execute"].as_str().unwrap_or_default();
            say(&out, &answer(command, &asked["id"]));
            match command {
                "cont" => happen(stop, options, lost, Some(&out)),
                "quit" => {
                    event(&out, "SHUTDOWN", &json!({"guest": false, "reason": "host-qmp-quit"}));
                    std::process::exit(0)
                }
                _ => {}
            }
        }
    }
}

fn answer(command: &str, id: &Value) -> Value {
    let value = match command {
        "query-status" => json!({"status": "prelaunch", "running": false}),
        "add-fd" => json!({"fdset-id": 1, "fd": 100}),
        "qmp_capabilities" | "cont" | "quit" | "getfd" | "remove-fd" | "netdev_add" | "blockdev-add"
        | "device_add" => json!({}),
        _ => {
            let text = format!("The command {command} has not been found");
            return json!({"error": {"class": "CommandNotFound", "desc": text}, "id": id});
        }
    };
    json!({"return": value, "id": id})
}

/// All its outputs, in QEMU's order.
fn happen(
    stop: &Stop,
    options: &Options,
    lost: Option<Lost>,
    out: Option<&Mutex<std::os::unix::net::UnixStream>>,
) -> ! {
    if lost != Some(Lost::Stderr) {
        stop.stderr.iter().for_each(|line| write_stderr(&format!("{line}\n")));
    }
    if let Some(console) = options.console.filter(|_| lost != Some(Lost::Console)) {
        take(console).write_all(stop.console.as_bytes()).ok();
    }
    if let Some(out) = out.filter(|_| lost != Some(Lost::Events)) {
        let info = json!({"type": "s390", "core": 0, "psw-mask": PSW_MASK, "psw-addr": stop.psw,
                          "reason": "disabled-wait"});
        event(out, "RESUME", &json!({}));
        event(out, "GUEST_PANICKED", &json!({"action": "poweroff", "info": info}));
        event(out, "STOP", &json!({}));
        event(out, "SHUTDOWN", &json!({"guest": true, "reason": "guest-panic"}));
    }
    std::process::exit(i32::from(options.panic_fails))
}

fn event(out: &Mutex<std::os::unix::net::UnixStream>, name: &str, data: &Value) {
    say(out, &json!({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}}));
}
