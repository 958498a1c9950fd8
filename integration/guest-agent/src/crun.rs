//! Containers in the guest, by the program crun: with namespaces and cgroups.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::Value;

use crate::failure::{Result, Trying, internal};
use crate::process::{Launched, not_found};
use crate::reaper::Reaper;
use crate::stdio::Stdio;

const PROGRAM: &str = "/usr/bin/crun";
const STATE: &str = "/run/crun";

#[derive(Debug)]
pub(crate) struct Crun {
    reaper: Arc<Reaper>,
    runs: AtomicU32,
}

impl std::fmt::Debug for Reaper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reaper")
    }
}

impl Crun {
    pub(crate) fn new(reaper: Arc<Reaper>) -> Self {
        Self { reaper, runs: AtomicU32::new(0) }
    }

    /// Who waits for children.
    pub(crate) fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    /// Creates a container; its init process waits for [`Crun::start`].
    pub(crate) async fn create(&self, id: &str, bundle: &Path, config: &Value) -> Result<Launched> {
        fs::create_dir_all(bundle).trying(format!("bundle {}", bundle.display()))?;
        fs::write(bundle.join("config.json"), config.to_string()).trying("config.json")?;
        let mut command = Self::command("create");
        command.arg("--no-pivot").arg("--bundle").arg(bundle);
        self.launch(command, &config["process"], id).await
    }

    pub(crate) async fn start(&self, id: &str) -> Result<()> {
        self.run(Self::command("start").arg(id)).await
    }

    pub(crate) async fn exec(&self, id: &str, process: &Value) -> Result<Launched> {
        let file = self.scratch("process");
        fs::write(&file, process.to_string()).trying("process.json")?;
        let mut command = Self::command("exec");
        command.args(["--detach", "--process"]).arg(&file);
        let launched = self.launch(command, process, id).await;
        fs::remove_file(file).ok();
        launched
    }

    /// Kills and removes a container and its cgroup.
    pub(crate) async fn delete(&self, id: &str) -> Result<()> {
        self.run(Self::command("delete").args(["--force", id])).await
    }

    fn command(verb: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["--root", STATE, "--cgroup-manager=cgroupfs", verb]);
        command
    }

    fn scratch(&self, what: &str) -> PathBuf {
        format!("/run/crun-{what}.{}", self.runs.fetch_add(1, Ordering::Relaxed)).into()
    }

    /// Runs `command`, which passes its streams to the process, or sends the terminal's other end.
    async fn launch(&self, mut command: Command, process: &Value, id: &str) -> Result<Launched> {
        let since = Instant::now();
        let (pid_file, console) = (self.scratch("pid"), self.scratch("console"));
        let listener = match process["terminal"].as_bool() {
            Some(true) => Some(UnixListener::bind(&console).trying("console socket")?),
            _ => None,
        };
        if listener.is_some() {
            command.arg("--console-socket").arg(&console);
        }
        let (stdio, child) = Stdio::pipes()?;
        command.arg("--pid-file").arg(&pid_file).arg(id);
        command.stdin(child.stdin).stdout(child.stdout).stderr(child.stderr);
        let crun = command.spawn().trying(PROGRAM)?.id();
        drop(command);
        let status = self.reaper.watch(i32::try_from(crun).unwrap_or_default(), since).wait().await;
        let launched = if status == 0 {
            let pid = fs::read_to_string(&pid_file).trying("pid of the process")?;
            let pid = pid.trim().parse().trying(format!("pid {pid:?}"))?;
            let stdio = listener.map_or(Ok(stdio), |l| Stdio::of_terminal(receive(&l)?))?;
            Ok(Launched { pid, stdio, gate: None })
        } else {
            complain(process, status, &stdio.complaint())
        };
        for file in [pid_file, console] {
            fs::remove_file(file).ok();
        }
        launched
    }

    async fn run(&self, command: &mut Command) -> Result<()> {
        let since = Instant::now();
        let (stdio, child) = Stdio::pipes()?;
        let crun =
            command.stdin(child.stdin).stdout(child.stdout).stderr(child.stderr).spawn().trying(PROGRAM)?;
        let status = self.reaper.watch(i32::try_from(crun.id()).unwrap_or_default(), since).wait().await;
        if status == 0 {
            Ok(())
        } else {
            Err(internal(format!("crun: status {status}: {}", stdio.complaint())))
        }
    }
}

/// crun's error, in the real agent's form where hosts look for the text.
fn complain<T>(process: &Value, status: i32, said: &str) -> Result<T> {
    let program = process["args"][0].as_str().unwrap_or_default();
    if said.contains("executable file") || said.contains("not found in $PATH") {
        return not_found(program);
    }
    Err(internal(format!("crun: status {status}: {said}")))
}

/// The terminal that was sent through the socket.
fn receive(listener: &UnixListener) -> Result<OwnedFd> {
    let (socket, _) = listener.accept().trying("console socket")?;
    let mut byte = [0; 64];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let got = recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
    let got = got.trying("terminal")?;
    let mut messages = got.cmsgs().trying("terminal")?;
    let fd = messages.find_map(|message| match message {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let fd = fd.ok_or_else(|| internal("no terminal came through the console socket"))?;
    crate::sys::inherited(fd).ok_or_else(|| internal("the terminal is closed"))
}
