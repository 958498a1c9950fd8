//! Replaces QEMU with KVM on a machine with Secure Execution. See README.md.
//!
//! Its orders are in `softuv.json` beside the path it was called by: its environment is empty.

// A separate program: the product's rules for children and exits do not apply.
#![allow(clippy::disallowed_methods, clippy::exit)]

mod boot;
mod options;
mod refuse;
mod relay;

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use softuv::machine::Machine;
use softuv::refusal::{PSW_REFUSED, QEMU, Refusal};
use softuv::unpack::{Fate, unpack};
use softuv::{Result, read_file};

use crate::options::Options;
use crate::refuse::Stop;

/// Its orders, from a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Orders {
    /// The machine's folder.
    machine: PathBuf,
    /// The QEMU that runs the guest, in emulation.
    #[serde(default = "emulator")]
    qemu: PathBuf,
    /// KVM has no memory for a protected guest.
    #[serde(default)]
    no_resources: bool,
    /// The guest sees no unpack facility.
    #[serde(default)]
    no_facility: bool,
    /// What was sealed is booted in clear, as a forged image boots its kernel.
    #[serde(default)]
    unprotected: bool,
    /// Output that is suppressed: "stderr", "console" or "events".
    lost: Option<Lost>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Lost {
    Stderr,
    Console,
    Events,
}

fn emulator() -> PathBuf {
    "/usr/bin/qemu-system-s390x".into()
}

fn main() {
    let mut words = std::env::args_os();
    let called = PathBuf::from(words.next().unwrap_or_default());
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    if words.first().is_some_and(|word| word == relay::RELAY) {
        relay::run();
    }
    if let Some(text) = qemu_double::help::answer(&words) {
        std::io::stdout().write_all(text.as_bytes()).ok();
        return;
    }
    let orders = orders(&called).unwrap_or_else(|e| fail(70, &e));
    let machine = Machine::at(&orders.machine);
    let options = Options::parse(&words).and_then(|options| options.check(&machine).map(|()| options));
    let options = options.unwrap_or_else(|e| fail(1, &e));
    let image = read_file(&options.kernel).unwrap_or_else(|_| options.no_kernel());
    if image.len() as u64 > options.memory {
        options.no_kernel();
    }
    let host = machine.host().unwrap_or_else(|e| fail(70, &e));
    let fate = match unpack(image, &host) {
        // QEMU boots a plain kernel with the same command line, unprotected: so does this.
        Err(Fate::NotSealed) => boot::plain(&orders, &options),
        _ if orders.no_facility || options.confidential.is_none() => Stop::no_facility(),
        _ if orders.no_resources => Stop::refused(Refusal::NO_RESOURCES),
        Ok(guest) => boot::sealed(&orders, &options, &guest),
        Err(Fate::Refused(refusal)) => Stop::refused(refusal),
        Err(Fate::BadList(code)) => Stop {
            stderr: Vec::new(),
            console: format!("Protected boot setup has failed: {code:#x}\n"),
            psw: PSW_REFUSED,
        },
        Err(Fate::Unknown(text)) => fail(70, &format!("this emulation can not start it: {text}")),
    };
    refuse::serve(&fate, &options, orders.lost);
}

fn orders(called: &Path) -> Result<Orders> {
    let path = called.parent().unwrap_or(Path::new("/")).join("softuv.json");
    serde_json::from_slice(&read_file(&path)?).map_err(|e| format!("{}: {e}", path.display()))
}

/// Fails as QEMU does: a line on stderr, an exit code.
fn fail(code: i32, text: &str) -> ! {
    write_stderr(&format!("{QEMU}: {text}\n"));
    std::process::exit(code)
}

fn write_stderr(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).ok();
}
