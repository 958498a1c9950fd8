//! The program of the guest's pause bundle: holds a pod's namespaces until it is told to end, and reaps the orphans
//! of a shared process id namespace.

use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

const ENDS: [i32; 2] = [Signal::SIGTERM as i32, Signal::SIGINT as i32];

fn main() -> ExitCode {
    wait().map_or(ExitCode::from(126), |()| ExitCode::SUCCESS)
}

/// Until a signal ends it. Signals stay blocked: the agent sees that an init process takes them.
fn wait() -> nix::Result<()> {
    let awaited: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect();
    awaited.thread_block()?;
    let signals = SignalFd::new(&awaited)?;
    while let Some(signal) = signals.read_signal()? {
        if ENDS.iter().any(|end| u32::try_from(*end) == Ok(signal.ssi_signo)) {
            break;
        }
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {
        }
    }
    Ok(())
}
