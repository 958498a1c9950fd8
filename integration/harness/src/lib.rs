//! Shared by the integration tests: a census of everything a pod may leave, a node that calls
//! the shim as its callers do, a private containerd, and one on a machine with Secure Execution.

// Test code: a failed assumption ends the test, programs are started plainly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]
#![allow(clippy::print_stderr, clippy::cast_possible_truncation)]

mod agent;
mod bundle;
mod census;
mod cgroup;
mod containerd;
mod cri_node;
mod doubles;
mod events;
pub mod generated_policy;
mod kubelet;
mod mounted;
mod netns;
mod registry;
mod sandbox_client;
mod sealed_node;
mod task_client;
mod test_node;
mod wait;

pub use agent::agent;
pub use bundle::Bundle;
pub use census::Census;
pub use cgroup::{cgroup_of, cgroup_top, limit_memory};
pub use containerd::{Containerd, IMAGE, MEMBER, SANDBOX};
pub use cri_node::STREAMS;
pub use doubles::Doubles;
pub use events::{Event, Events, Relay};
pub use kubelet::KubeletVolume;
pub use mounted::{LoopDevice, Mounted};
pub use netns::{PodNetns, PodNetwork};
pub use registry::{Detour, Fault, Layer, Packing, Registry};
pub use sandbox_client::{PodConfig, Sandbox};
pub use sealed_node::{SealedNode, production, softuv};
pub use task_client::{Code, NO_STREAMS, Shim, code, reader};
pub use test_node::TestNode;
pub use wait::{eventually, until, within};

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How often a test tries something: `usual`, or `KATA_SE_ROUNDS` for a longer run.
pub fn rounds(usual: u32) -> u32 {
    std::env::var("KATA_SE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// The nth of so many moments, spread over a time in an order without pattern: a prime step visits each.
pub fn moment(whole: Duration, nth: u32, of: u32) -> Duration {
    whole * (nth * 7919 % of) / of
}

/// The most memory that a process has had, in KiB.
pub fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Whether the programs under test are those of the release profile.
pub fn is_release() -> bool {
    folder("KATA_SE_BIN_DIR").ends_with("release")
}

/// A folder named by the environment that the test scripts set.
pub fn folder(variable: &str) -> PathBuf {
    let named = std::env::var_os(variable);
    named.unwrap_or_else(|| panic!("{variable} is not set: run the tests by hack/test")).into()
}

/// The directories of pods in the folder `run`, where files are notes about images.
pub fn pods(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// A built program of ours.
pub fn program(name: &str) -> PathBuf {
    let path = folder("KATA_SE_BIN_DIR").join(name);
    assert!(path.is_file(), "{} is not built: run the tests by hack/test", path.display());
    path
}

/// A test build of a program, beside the release that `program` finds.
pub fn test_program(name: &str) -> PathBuf {
    let path = folder("KATA_SE_TEST_BIN_DIR").join(name);
    assert!(path.is_file(), "{} is not built: run the tests by hack/test", path.display());
    path
}

/// Whom QEMU and the other helpers run as, where no double plays them: nobody's numbers.
pub const USER: &str = "64055:64056";

/// The vsock program, copied into a folder that [`USER`] can enter.
pub(crate) fn vsock_program(folder: &Path) -> PathBuf {
    copied(&cached("tools/bin/vhost-device-vsock"), folder.join("vsock-program"))
}

/// A program, copied to where [`USER`] can run it.
pub(crate) fn copied(program: &Path, to: PathBuf) -> PathBuf {
    std::fs::copy(program, &to).unwrap_or_else(|e| panic!("copy {}: {e}", program.display()));
    to
}

/// A built program of ours as a command; for another architecture, under the runner that is set.
pub fn command(name: &str) -> Command {
    let program = program(name);
    match std::env::var_os("KATA_SE_RUNNER") {
        None => Command::new(program),
        Some(runner) => {
            let mut command = Command::new(runner);
            command.arg(program);
            command
        }
    }
}

/// A file of the tool cache.
pub fn cached(name: &str) -> PathBuf {
    let path = folder("KATA_SE_CACHE").join(name);
    assert!(path.exists(), "{} is missing: run hack/setup", path.display());
    path
}
