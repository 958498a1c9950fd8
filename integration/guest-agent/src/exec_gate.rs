//! A container's process on the host: created by CreateContainer, it waits here for StartContainer, then execs
//! the program.
//!
//! Runs before any thread exists. Dies with the agent.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::setsid;

use crate::sys;

/// The first argument that makes this program the gate of a container.
pub(crate) const COMMAND: &str = "exec-gate";

/// The program that every pod's first container runs; the host has none, so it is emulated here.
pub(crate) const PAUSE: &str = "/pause";

/// `GATE TERMINAL PROGRAM NAME ARG…`: descriptor to wait for (0: none), 1 with a terminal, file and its argv.
pub(crate) fn run(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut number = || args.next().and_then(|a| a.to_str()?.parse::<i32>().ok()).unwrap_or(0);
    let (gate, terminal) = (number(), number() == 1);
    let (Some(program), Some(name)) = (args.next(), args.next()) else {
        return ExitCode::from(126);
    };
    let ready = set_pdeathsig(Signal::SIGKILL).and_then(|()| setsid());
    if ready.is_err() || (terminal && sys::take_terminal().is_err()) {
        return ExitCode::from(126);
    }
    if let Some(gate) = sys::inherited(gate) {
        // No byte means that the agent is gone.
        if !matches!(File::from(gate).read(&mut [0]), Ok(1)) {
            return ExitCode::from(126);
        }
    }
    if program == PAUSE && !matches!(std::fs::exists(PAUSE), Ok(true)) {
        return pause();
    }
    drop(Command::new(program).arg0(name).args(args).exec());
    ExitCode::from(127)
}

/// Waits for SIGTERM or SIGINT.
fn pause() -> ExitCode {
    let asked: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    if asked.thread_block().is_err() || asked.wait().is_err() {
        return ExitCode::from(126);
    }
    ExitCode::SUCCESS
}
