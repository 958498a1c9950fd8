//! QMP as QEMU speaks it, for the few commands the shim uses.

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{Signal, raise};
use qemu_double::wire::{greeting, not_migratable, receive, say, take};
use serde_json::{Value, json};

use crate::disks::Disks;
use crate::options::Options;
use crate::{Double, Flood, fail};

struct Serving<'a> {
    double: &'a Double,
    options: &'a Options,
    out: Arc<Mutex<UnixStream>>,
    /// Received, and taken by no command yet.
    passed: VecDeque<OwnedFd>,
    disks: Disks,
    agent: Option<u32>,
}

/// Serves until `quit`, the agent's end, or the other side's.
pub(crate) fn serve(double: &Double, options: &Options) -> ! {
    let stream = take(options.qmp);
    let out = Arc::new(Mutex::new(stream.try_clone().unwrap_or_else(|e| fail(70, &e.to_string()))));
    let disks = Disks::new(&options.cold);
    let mut serving = Serving { double, options, out, passed: VecDeque::new(), disks, agent: None };
    if double.greet {
        serving.say(&greeting());
    }
    let mut buffer = Vec::new();
    loop {
        let (bytes, fds) = receive(&stream);
        if bytes.is_empty() {
            // QEMU keeps running when its QMP peer closes the connection.
            loop {
                std::thread::park();
            }
        }
        serving.passed.extend(fds);
        buffer.extend(bytes);
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let asked: Value = serde_json::from_slice(&line).unwrap_or_default();
            serving.answer(&asked);
        }
    }
}

impl Serving<'_> {
    fn say(&self, value: &Value) {
        say(&self.out, value);
    }

    fn refuse(&self, class: &str, desc: &str, id: &Value) {
        self.say(&json!({"error": {"class": class, "desc": desc}, "id": id}));
    }

    fn answer(&mut self, asked: &Value) {
        let command = asked["execute"].as_str().unwrap_or_default();
        if self.double.hang_on.as_deref() == Some(command) {
            return;
        }
        let id = &asked["id"];
        if self.double.refuse.as_deref() == Some(command) {
            return self.refuse("GenericError", &format!("{command} refused"), id);
        }
        let passed = (command == "add-fd").then(|| self.passed.pop_front()).flatten();
        let mut is_scsi = false;
        let value = match command {
            "qmp_capabilities" | "cont" | "quit" => json!({}),
            "query-migrate" if self.options.confidential && !self.double.unprotected => not_migratable(),
            "query-migrate" => json!({}),
            "query-status" => json!({"status": "running", "running": true}),
            _ => match self.disks.command(command, &asked["arguments"], passed) {
                Some(Ok(done)) if command == "device_del" => {
                    is_scsi = done["is_scsi"] == true;
                    json!({})
                }
                Some(Ok(done)) => done,
                Some(Err(desc)) => return self.refuse("GenericError", &desc, id),
                None => {
                    let desc = format!("The command {command} has not been found");
                    return self.refuse("CommandNotFound", &desc, id);
                }
            },
        };
        self.say(&json!({"return": value, "id": id}));
        match command {
            "cont" => self.run_guest(),
            "device_add" => {
                self.double.after_plug.iter().for_each(|event| self.say(event));
                if let Some(kind) = self.double.flood {
                    self.flood(kind);
                }
            }
            "device_del" => {
                let device = &asked["arguments"]["id"];
                let stamp = json!({"seconds": 1, "microseconds": 2});
                if !is_scsi {
                    self.say(&json!({"event": "DEVICE_DELETED", "data": {"path": "/x/virtio-backend"}, "timestamp": stamp}));
                }
                self.say(&json!({"event": "DEVICE_DELETED", "data": {"device": device, "path": "/x"}, "timestamp": stamp}));
            }
            "quit" if !self.double.ignore_quit => self.end(false, "host-qmp-quit"),
            _ => {}
        }
    }

    fn run_guest(&mut self) {
        self.write_console();
        if let Some(signal) = self.double.die_at_cont.and_then(|n| Signal::try_from(n).ok()) {
            raise(signal).ok();
        }
        if self.double.powers_off {
            self.end(true, "guest-shutdown");
        }
        if self.double.no_agent {
            return;
        }
        let mut agent = self.start_agent();
        self.agent = Some(agent.id());
        let out = Arc::clone(&self.out);
        std::thread::spawn(move || {
            // An agent that is process 1 powers its guest off.
            agent.wait().ok();
            say(&out, &json!({"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}));
            std::process::exit(0);
        });
    }

    fn write_console(&self) {
        let mut console = take(self.options.console);
        console.write_all(self.double.console.as_deref().unwrap_or_default().as_bytes()).ok();
        let lines = "[    1.000000] a line of the guest's kernel\r\n".repeat(1000);
        let mut rest = self.double.console_bytes;
        while rest > 0 {
            let piece = lines.as_bytes().get(..rest).unwrap_or(lines.as_bytes());
            rest -= piece.len();
            if console.write_all(piece).is_err() {
                break;
            }
        }
    }

    /// Writes until the other side has closed the connection.
    fn flood(&self, kind: Flood) {
        let (begin, piece) = match kind {
            Flood::Line => ("{\"event\": \"", "x".repeat(65536)),
            Flood::Events => ("", "{\"event\": \"STOP_AND_GO\", \"data\": {}}\r\n".repeat(1000)),
            Flood::Brackets => ("", "[".repeat(100_000) + "\r\n"),
            Flood::Answers => ("", "{\"return\": {}, \"id\": 4000001}\r\n".repeat(1000)),
        };
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let mut written = out.write_all(begin.as_bytes());
        while written.is_ok() {
            written = out.write_all(piece.as_bytes());
        }
    }

    fn start_agent(&self) -> Child {
        let socket = self.options.vsock.with_file_name("agent");
        let mut root = self.double.root.clone();
        if self.double.apart {
            root.push(std::process::id().to_string());
        }
        let mut command = Command::new(&self.double.agent);
        command.arg("--listen").arg(format!("unix:{}", socket.display()));
        command.arg("--root").arg(&root).arg("--die-with-parent");
        for (option, path) in [("--record", &self.double.record), ("--script", &self.double.script)] {
            if let Some(path) = path {
                command.arg(option).arg(path);
            }
        }
        command.args(&self.double.agent_options);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.spawn().unwrap_or_else(|e| fail(70, &format!("{}: {e}", self.double.agent.display())))
    }

    fn end(&self, guest: bool, reason: &str) -> ! {
        self.say(&json!({"event": "SHUTDOWN", "data": {"guest": guest, "reason": reason}}));
        if let Some(agent) = self.agent.and_then(|pid| i32::try_from(pid).ok()) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent), Signal::SIGKILL).ok();
        }
        std::process::exit(0)
    }
}
