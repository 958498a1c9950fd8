//! A QEMU process from its launch to its end: spawn, QMP, `cont`, stop, and why it ended.
//!
//! It has one end, which the task that runs [`Vm::watch`] publishes to all who wait for it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::libc;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::{Context, Error, Result};
use crate::host::confine::{Confinement, User};
use crate::host::process::{Child, Ended, FdTable, Launch};
use crate::host::tail::Tail;
use crate::host::{cgroup, cgroup_stats};
use crate::lifecycle::vm::VmEnd;
use crate::limits;
use crate::mutex::lock;
use crate::plan::cpus::CpuList;
use crate::plan::vm::{ChildFd, VmPlan};
use crate::qemu::args::args;
use crate::qemu::event::{GuestPanic, QmpEvent};
use crate::qemu::failure::{Evidence, STOPPED, UNPROTECTED, diagnose};
use crate::qemu::hotplug::{self, Disk, DiskAddress};
use crate::qemu::qmp::{Qmp, QueryMigrate, cont, quit};

/// Our ends of the connections to a QEMU that is not started yet.
#[derive(Debug)]
pub(crate) struct ControlSockets {
    qmp: UnixStream,
    console: UnixStream,
    /// The descriptor numbers of QEMU's ends, for the plan.
    pub qmp_fd: ChildFd,
    pub console_fd: ChildFd,
}

impl ControlSockets {
    /// Creates both connections; QEMU's ends go into its descriptor table.
    pub(crate) fn new(fds: &mut FdTable) -> Result<Self> {
        let pair = || UnixStream::pair().and_then(|(ours, theirs)| Ok((ours, blocking(theirs)?)));
        let (qmp, theirs) = pair().context("make the QMP socketpair")?;
        let qmp_fd = fds.give(theirs);
        let (console, theirs) = pair().context("make the console socketpair")?;
        let console_fd = fds.give(theirs);
        Ok(Self { qmp, console, qmp_fd, console_fd })
    }
}

fn blocking(stream: UnixStream) -> std::io::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

/// A started QEMU.
#[derive(Debug)]
pub(crate) struct Vm {
    process: Child,
    /// The cgroup it runs in, relative to the hierarchies' roots.
    leaf: PathBuf,
    qmp: Qmp,
    confidential: bool,
    /// The serials of the disks that the guest boots with.
    boot_disks: Vec<String>,
    /// The guest's agent has answered.
    booted: AtomicBool,
    /// The end of QEMU is not a failure any more.
    stop_expected: AtomicBool,
    gone: watch::Sender<Option<VmEnd>>,
    stderr: Tail,
    console: Tail,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    guest_shutdown: Option<String>,
    panic: Option<GuestPanic>,
}

/// What [`Vm::watch`] reads.
#[derive(Debug)]
pub(crate) struct Streams {
    stderr: pipe::Receiver,
    console: UnixStream,
}

/// A QEMU to be started.
#[derive(Debug)]
pub(crate) struct VmLaunch<'a> {
    pub program: PathBuf,
    pub plan: &'a VmPlan,
    /// Has QEMU's ends of `sockets` and what else `plan` refers to.
    pub fds: FdTable,
    pub sockets: ControlSockets,
    /// The cgroup that QEMU runs in, relative to the hierarchies' roots.
    pub leaf: &'a Path,
    pub cpus: CpuList,
    /// Whom it runs as. None: it has our rights.
    pub user: Option<User>,
}

impl VmLaunch<'_> {
    /// Starts QEMU stopped (`-S`). [`Vm::watch`] must be running for anything else to work.
    pub(crate) fn spawn(self) -> Result<(Arc<Vm>, Streams)> {
        let (stderr, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make a pipe")?;
        let stderr = pipe::Receiver::from_owned_fd(stderr).context("watch QEMU's stderr")?;
        let process = Launch {
            program: self.program,
            args: args(self.plan)?,
            fds: self.fds,
            stderr: Some(theirs),
            cgroup: Some(cgroup::enter(self.leaf)?),
            cpus: self.cpus,
            confine: self.user.map(Confinement::of),
            ..Launch::default()
        }
        .spawn()?;
        let vm = Vm {
            process,
            leaf: self.leaf.to_path_buf(),
            qmp: Qmp::new(self.sockets.qmp),
            confidential: self.plan.confidential(),
            boot_disks: self.plan.disks.iter().map(|disk| disk.serial.clone()).collect(),
            booted: AtomicBool::new(false),
            stop_expected: AtomicBool::new(false),
            gone: watch::Sender::new(None),
            stderr: Tail::default(),
            console: Tail::default(),
            seen: Mutex::default(),
        };
        Ok((Arc::new(vm), Streams { stderr, console: self.sockets.console }))
    }
}

impl Vm {
    /// Watches QEMU until its end and publishes it. Runs as a separate task.
    pub(crate) async fn watch(self: Arc<Self>, streams: Streams) {
        let reading = async {
            tokio::join!(
                self.stderr.read_from(streams.stderr),
                self.console.read_from(streams.console),
                self.watch_qmp(),
            )
        };
        tokio::pin!(reading);
        let ended = tokio::select! {
            ended = self.process.wait() => {
                // Also if another process has its end of the connection.
                self.qmp.close();
                // Its descriptors are closed: all output is in the pipes already.
                timeout(limits::qemu::QEMU_OUTPUT_DRAIN, &mut reading).await.ok();
                ended
            }
            _ = &mut reading => self.process.wait().await,
        };
        self.gone.send_replace(Some(self.diagnose(ended.unwrap_or(Ended::Code(-1)))));
    }

    async fn watch_qmp(&self) {
        let end = self.qmp.read(|event| self.note(event)).await;
        // A QEMU that cannot be managed must not go on; normally it is about to end.
        if timeout(limits::qemu::QMP_LOST, self.process.wait()).await.is_err() {
            self.stderr.add(format!("\n{end}\n").as_bytes());
            self.kill();
        }
    }

    fn note(&self, event: QmpEvent) {
        let mut seen = lock(&self.seen);
        match event {
            QmpEvent::Shutdown { guest: true, reason } => seen.guest_shutdown = Some(reason),
            // The first one counts: others follow from it.
            QmpEvent::GuestPanicked(panic) if seen.panic.is_none() => seen.panic = Some(panic),
            QmpEvent::DiskFailed { text } => self.stderr.add(format!("\n{text}\n").as_bytes()),
            // A guest that panicked is stopped on its way to the end.
            QmpEvent::Stopped if seen.panic.is_none() => self.kill_because(STOPPED),
            QmpEvent::GuestPanicked(_)
            | QmpEvent::Shutdown { guest: false, .. }
            | QmpEvent::DeviceDeleted { .. }
            | QmpEvent::Stopped
            | QmpEvent::Other => {}
        }
    }

    fn diagnose(&self, ended: Ended) -> VmEnd {
        let seen = lock(&self.seen);
        diagnose(&Evidence {
            ended,
            oom_kill: cgroup_stats::oom_kill(&self.leaf),
            asked: self.stop_expected.load(Ordering::Relaxed),
            guest_shutdown: seen.guest_shutdown.clone(),
            panic: seen.panic.clone(),
            boot_disks: (!self.booted.load(Ordering::Relaxed)).then(|| self.boot_disks.clone()),
            stderr: self.stderr.last_lines(limits::text::SEARCHED_LINES),
            console: self.console.last_lines(limits::text::SEARCHED_LINES),
        })
    }

    /// Waits until QMP works. If QEMU ends instead, the error has its last output.
    pub(crate) async fn ready(&self) -> Result<()> {
        self.or_its_end(self.qmp.negotiate()).await.context("start QEMU")
    }

    /// Lets the guest run.
    pub(crate) async fn run(&self) -> Result<()> {
        self.or_its_end(async { self.qmp.execute(cont {}).await.map(|_| ()) })
            .await
            .context("start the guest")
    }

    /// Asks the machine whether a confidential guest runs protected, and ends one that does not: QEMU
    /// boots a plain kernel with the same options, without a word. Called once the guest runs, before it gets
    /// anything.
    pub(crate) async fn check_protection(&self) -> Result<()> {
        if !self.confidential {
            return Ok(());
        }
        let asking = async {
            let migration = self.qmp.execute(QueryMigrate {}).await?;
            if migration.is_blocked_by_protection() {
                return Ok(());
            }
            self.kill_because(UNPROTECTED);
            Err(Error::precondition(UNPROTECTED))
        };
        self.or_its_end(asking).await.context("check the guest's protection")
    }

    /// A QMP failure is often a consequence of QEMU's end: then the end is the error.
    async fn or_its_end<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let failed = match work.await {
            Ok(done) => return Ok(done),
            Err(failed) => failed,
        };
        let mut gone = self.gone();
        match timeout(limits::qemu::QEMU_END_KNOWN, gone.wait_for(Option::is_some)).await {
            Ok(Ok(end)) => match &*end {
                Some(end) => Err(Error::unavailable(end.to_string())),
                None => Err(failed),
            },
            _ => Err(failed),
        }
    }

    /// QEMU's process.
    pub(crate) fn process(&self) -> &Child {
        &self.process
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Becomes Some when the VM has ended, once.
    pub(crate) fn gone(&self) -> watch::Receiver<Option<VmEnd>> {
        self.gone.subscribe()
    }

    /// The guest's agent has answered.
    pub(crate) fn has_booted(&self) {
        self.booted.store(true, Ordering::Relaxed);
    }

    /// From now on the guest has containers, and its console may have their secrets.
    pub(crate) fn expect_secrets(&self) {
        self.console.quote_only_kernel();
    }

    /// The last lines of the console, for errors while the guest boots.
    pub(crate) fn console_tail(&self) -> Vec<String> {
        self.console.last_lines(limits::text::QUOTED_LINES)
    }

    /// Plugs a disk into the running guest.
    pub(crate) async fn plug(&self, disk: &Disk) -> Result<()> {
        self.or_its_end(hotplug::plug(&self.qmp, disk, self.confidential)).await
    }

    /// Unplugs a disk that the guest no longer uses.
    pub(crate) async fn unplug(&self, address: DiskAddress) -> Result<()> {
        hotplug::unplug(&self.qmp, address).await
    }

    /// From now on the VM's end is expected.
    pub(crate) fn expect_end(&self) {
        self.stop_expected.store(true, Ordering::Relaxed);
    }

    /// Ends the VM: waits `grace` for it to end by itself, then sends `quit`, then SIGKILL. Returns when QEMU is
    /// reaped.
    pub(crate) async fn stop(&self, grace: Duration) -> Result<()> {
        self.expect_end();
        let mut gone = self.gone();
        if timeout(grace, gone.wait_for(Option::is_some)).await.is_ok() {
            return Ok(());
        }
        self.qmp.execute(quit {}).await.ok();
        if timeout(limits::qemu::QEMU_QUIT, gone.wait_for(Option::is_some)).await.is_ok() {
            return Ok(());
        }
        self.process.kill(libc::SIGKILL)?;
        match timeout(limits::qemu::QEMU_EXIT, gone.wait_for(Option::is_some)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::deadline(format!(
                "QEMU (process {}) did not end within {} s of SIGKILL",
                self.process.pid(),
                limits::qemu::QEMU_EXIT.as_secs()
            ))),
        }
    }

    /// SIGKILL, without waiting; `why` is added to QEMU's last output.
    pub(crate) fn kill_because(&self, why: &str) {
        self.stderr.add(format!("\n{why}\n").as_bytes());
        self.kill();
    }

    /// SIGKILL, without waiting.
    pub(crate) fn kill(&self) {
        self.process.kill(libc::SIGKILL).ok(); // a signal to our own child is not refused
    }
}
