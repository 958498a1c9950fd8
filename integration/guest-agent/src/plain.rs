//! Containers as plain processes of the host: no mounts, no cgroups, the host's programs.
//!
//! Each container has a separate pid namespace where the machine allows it, so that its processes end
//! with their init process, and all of them with the agent.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exec_gate::{self, PAUSE};
use crate::failure::{Result, Trying};
use crate::messages::{agent as pb, oci};
use crate::process::{Container, Launched, not_found};
use crate::stdio::Stdio;

/// The pid namespace of a process.
pub(crate) enum Pids {
    /// In a new namespace.
    Own,
    /// In that of a running process.
    With(i32),
}

#[derive(Debug)]
pub(crate) struct Plain {
    /// The folder that is the guest's `/`.
    root: PathBuf,
}

impl Plain {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where a path of the guest is on this host.
    pub(crate) fn path(&self, guest: &str) -> PathBuf {
        self.root.join(guest.trim_start_matches('/'))
    }

    /// Creates a process; `held`: it waits for its gate.
    pub(crate) fn launch(
        &self,
        process: &oci::Process,
        cwd: &Path,
        pids: &Pids,
        held: bool,
    ) -> Result<Launched> {
        let name = process.Args.first().map(String::as_str).unwrap_or_default();
        let program = find(name, &process.Env)?;
        let (stdio, child) = if process.Terminal { Stdio::terminal()? } else { Stdio::pipes()? };
        let gate = held.then(gate).transpose()?;
        let number = gate.as_ref().map_or(0, |(inside, _)| inside.as_raw_fd());
        fs::create_dir_all(cwd).trying(format!("work directory {}", cwd.display()))?;
        let mut command = Command::new("/proc/self/exe");
        command
            .args([exec_gate::COMMAND, &number.to_string(), if process.Terminal { "1" } else { "0" }])
            .arg(program)
            .args(&process.Args)
            .env_clear()
            .envs(process.Env.iter().filter_map(|pair| pair.split_once('=')))
            .env("GUEST_ROOT", &self.root)
            .current_dir(cwd)
            .stdin(child.stdin)
            .stdout(child.stdout)
            .stderr(child.stderr);
        let pid = in_namespace(pids, || command.spawn().map(|child| child.id()))?;
        let pid = i32::try_from(pid).trying("pid")?;
        Ok(Launched { pid, stdio, gate: gate.map(|(_, outside)| outside) })
    }

    /// Signals every process of the container; without a pid namespace, at least their process groups.
    pub(crate) fn signal_all(container: &Container, signal: Signal) {
        for process in container.processes.values().chain([&container.init]) {
            if process.exit.now().is_none() {
                // It may be gone already.
                kill(Pid::from_raw(-process.pid), signal).ok();
                kill(Pid::from_raw(process.pid), signal).ok();
            }
        }
    }

    /// Statistics of the init process only.
    pub(crate) fn stats(pid: i32) -> pb::CgroupStats {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name, which may hold anything: field 3 of the manual page is the first here.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field = |n: usize| fields.get(n - 3).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        let (user, kernel) = (field(14) * 10_000_000, field(15) * 10_000_000);
        let cpu = pb::CpuUsage {
            total_usage: user + kernel,
            usage_in_kernelmode: kernel,
            usage_in_usermode: user,
            ..Default::default()
        };
        let memory = pb::MemoryData { usage: field(24) * 4096, limit: u64::MAX, ..Default::default() };
        pb::CgroupStats {
            cpu_stats: Some(pb::CpuStats { cpu_usage: Some(cpu).into(), ..Default::default() }).into(),
            memory_stats: Some(pb::MemoryStats { usage: Some(memory).into(), ..Default::default() }).into(),
            pids_stats: Some(pb::PidsStats { current: 1, ..Default::default() }).into(),
            ..Default::default()
        }
    }
}

/// A pipe whose reading end the next child inherits.
fn gate() -> Result<(OwnedFd, OwnedFd)> {
    let (inside, outside) = nix::unistd::pipe().trying("pipe")?;
    fcntl(&outside, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).trying("pipe")?;
    Ok((inside, outside))
}

/// Runs `make`, whose child is put into this pid namespace. The agent has one thread, so nothing else forks meanwhile.
fn in_namespace<T>(pids: &Pids, make: impl FnOnce() -> io::Result<T>) -> Result<T> {
    let own = File::open("/proc/self/ns/pid").trying("own pid namespace")?;
    let entered = match pids {
        Pids::Own => unshare(CloneFlags::CLONE_NEWPID),
        Pids::With(pid) => {
            let ns = File::open(format!("/proc/{pid}/ns/pid"));
            let ns = ns.trying("cannot exec in a container that is not running")?;
            setns(ns, CloneFlags::CLONE_NEWPID)
        }
    };
    match entered {
        // Not root: then without namespaces.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(e) => return Err(e).trying("pid namespace"),
    }
    let made = make();
    if entered.is_ok() {
        setns(own, CloneFlags::CLONE_NEWPID).trying("own pid namespace")?;
    }
    made.trying("start a process")
}

/// The file that `name` means, as the program itself would find it.
fn find(name: &str, env: &[String]) -> Result<PathBuf> {
    let is_file =
        |path: &Path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if name == PAUSE {
        return Ok(name.into());
    }
    if name.contains('/') {
        return if is_file(Path::new(name)) { Ok(name.into()) } else { not_found(name) };
    }
    let path = env.iter().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or("/usr/bin:/bin");
    let found = path.split(':').map(|dir| Path::new(dir).join(name)).find(|file| is_file(file));
    found.map_or_else(|| not_found(name), Ok)
}
