//! Starting programs: descriptor table, cgroup entry before exec, pidfd.
//!
//! The child inherits exactly what is given to it: the descriptors of its table from 3 up, the
//! environment listed, nothing else. It is watched by pidfd; no SIGCHLD handler, no reaper.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{CoreSchedulingScope, create_core_scheduling_cookie};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::OnceCell;

use crate::error::{Context, Error, Result};
use crate::host::affinity::OwnChild;
use crate::host::cgroup::Entry;
use crate::host::child_setup::{self, ChildSetup};
pub(crate) use crate::host::child_setup::{check_file_limit, raise_file_limit};
use crate::host::confine::Confinement;
use crate::host::{affinity, sys};
use crate::plan::cpus::CpuList;
use crate::plan::vm::ChildFd;

/// Descriptors given to a child, numbered as they will be there.
#[derive(Debug, Default)]
pub struct FdTable(Vec<OwnedFd>);

impl FdTable {
    /// Adds a descriptor and returns the number it gets: 3 for the first, then 4, 5 …
    pub fn give(&mut self, fd: OwnedFd) -> ChildFd {
        self.0.push(fd);
        ChildFd(i32::try_from(self.0.len()).unwrap_or(i32::MAX - 2) + 2)
    }
}

/// An overlay of directories that only the child sees, in a private mount namespace; read-only.
#[derive(Clone, Debug)]
pub struct LayerMount {
    /// Topmost first; at least two, at most `limits::spec::ROOTFS_LAYERS` and one.
    pub layers: Vec<PathBuf>,
    pub target: PathBuf,
}

/// A program to be started. Streams that are not given are /dev/null.
#[derive(Debug, Default)]
pub struct Launch {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    pub fds: FdTable,
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// The cgroup the child enters before it becomes the program.
    pub cgroup: Option<Entry>,
    /// The CPUs it and its threads run on, as far as it may; empty: ours.
    pub cpus: CpuList,
    pub mount: Option<LayerMount>,
    /// The largest file that it may write, in bytes; SIGXFSZ ends it beyond. None: as we may.
    pub file_bytes: Option<u64>,
    /// None: it has our rights.
    pub confine: Option<Confinement>,
    /// The child outlives us (the shim's server); everything else dies with its parent.
    pub detached: bool,
}

/// A started program.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    ended: OnceCell<Ended>,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Code(i32),
    Signal(i32),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

impl Launch {
    /// Starts the program and forgets it; its id is returned.
    pub fn spawn_detached(mut self) -> Result<u32> {
        self.detached = true;
        Ok(self.start()?.id())
    }

    /// Starts the program; needs the runtime, for the watch on its end.
    pub fn spawn(self) -> Result<Child> {
        let program = self.program.clone();
        let context = || format!("watch {}", program.display());
        let pid = self.start()?.id();
        let pidfd = pidfd_open(checked(pid)?, PidfdFlags::empty()).map_err(io::Error::from);
        let pidfd = sys::watch(pidfd.with_context(context)?, Interest::READABLE).with_context(context)?;
        Ok(Child { pid, pidfd, ended: OnceCell::new() })
    }

    #[allow(clippy::disallowed_methods)] // the one place meant by the lint's reason
    fn start(self) -> Result<std::process::Child> {
        let stream = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env_clear()
            .envs(self.env)
            .current_dir("/")
            .stdin(stream(self.stdin))
            .stdout(stream(self.stdout))
            .stderr(stream(self.stderr));
        ChildSetup {
            fds: self.fds.0,
            cgroup: self.cgroup.map(Entry::into_files).unwrap_or_default(),
            cpus: affinity::set_of(&self.cpus),
            die_with_parent: !self.detached,
            mount: self.mount.map(LayerMount::prepare).transpose()?,
            file_bytes: self.file_bytes,
            confine: self.confine,
        }
        .attach(&mut command);
        let spawned = command.spawn();
        if spawned.as_ref().is_err_and(|e| e.raw_os_error() == Some(child_setup::NOT_AS_ASKED)) {
            return Err(Error::internal(
                "image layers: the kernel mounted others than it was asked for; nothing was packed (a bug of the \
                 kernel or of overlayfs: see dmesg)",
            ));
        }
        let full = spawned.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EMFILE));
        let limit = match getrlimit(Resource::RLIMIT_NOFILE) {
            Ok((limit, _)) if full => format!(
                " with a limit of {limit} descriptors (RLIMIT_NOFILE: raise LimitNOFILE= of the unit that \
                 starts this program)"
            ),
            _ => String::new(),
        };
        let denied = spawned.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied);
        let user = self.confine.filter(|_| denied).map(|c| format!(" as uid {} (qemu.user)", c.user.uid));
        let user = user.unwrap_or_default();
        spawned.with_context(|| format!("start {}{user}{limit}", self.program.display()))
    }
}

impl LayerMount {
    fn prepare(self) -> Result<child_setup::LayerMount> {
        let path = |path: PathBuf| {
            let metadata =
                std::fs::metadata(&path).with_context(|| format!("image layer {}", path.display()))?;
            if !metadata.is_dir() {
                return Err(Error::invalid(format!("image layer {}: is not a directory", path.display())));
            }
            CString::new(path.into_os_string().into_vec()).context("image layer")
        };
        let layers = self.layers.into_iter().map(path).collect::<Result<_>>()?;
        Ok(child_setup::LayerMount::new(layers, path(self.target)?))
    }
}

impl Child {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the end; any number of callers, also after it.
    pub async fn wait(&self) -> Result<Ended> {
        self.ended.get_or_try_init(|| self.reap()).await.copied()
    }

    async fn reap(&self) -> Result<Ended> {
        let context = || format!("wait for process {}", self.pid);
        drop(self.pidfd.readable().await.with_context(context)?);
        let pid = i32::try_from(self.pid).with_context(context)?;
        let status = nix::sys::wait::waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED);
        match status.with_context(context)? {
            WaitStatus::Exited(_, code) => Ok(Ended::Code(code)),
            WaitStatus::Signaled(_, signal, _) => Ok(Ended::Signal(signal as i32)),
            other => Err(Error::internal(format!("process {}: unexpected state {other:?}", self.pid))),
        }
    }

    /// Its rank for the OOM killer: -1000 (never) to 1000 (first).
    pub fn set_oom_score(&self, score: i32) -> Result<()> {
        let path = format!("/proc/{}/oom_score_adj", self.pid);
        std::fs::write(&path, score.to_string()).with_context(|| format!("write {score} to {path}"))
    }

    /// Lets all its threads run on these CPUs only, and returns those it does run on: the kernel leaves out
    /// what does not exist or is not allowed.
    pub fn set_cpus(&self, cpus: &CpuList) -> Result<CpuList> {
        self.as_own().set(cpus)?;
        self.cpus()
    }

    /// The CPUs that its first thread may run on.
    pub fn cpus(&self) -> Result<CpuList> {
        self.as_own().get()
    }

    fn as_own(&self) -> OwnChild<'_> {
        OwnChild { pid: self.pid, pidfd: self.pidfd.get_ref().as_fd() }
    }

    /// No other program runs on a CPU core at the same time as its threads.
    pub fn set_core_scheduling(&self) -> Result<()> {
        create_core_scheduling_cookie(checked(self.pid)?, CoreSchedulingScope::ThreadGroup)
            .map_err(io::Error::from)
            .with_context(|| format!("core scheduling of process {} (prctl PR_SCHED_CORE)", self.pid))
    }

    /// Sends a signal; a process that has ended is success.
    pub fn kill(&self, signal: i32) -> Result<()> {
        let sent = Signal::from_named_raw(signal)
            .ok_or(Errno::INVAL)
            .and_then(|signal| pidfd_send_signal(self.pidfd.get_ref(), signal));
        match sent {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => {
                Err(io::Error::from(e)).with_context(|| format!("signal {signal} to process {}", self.pid))
            }
        }
    }
}

fn checked(pid: u32) -> Result<rustix::process::Pid> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.ok_or_else(|| Error::internal("a process has no id"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::resource::setrlimit;

    fn run(program: &str, args: &[&str]) -> Launch {
        Launch { program: program.into(), args: args.iter().map(Into::into).collect(), ..Launch::default() }
    }

    #[tokio::test]
    async fn the_end_is_told_to_everyone_who_asks() {
        let child = run("/bin/sh", &["-c", "exit 7"]).spawn().expect("spawn");
        assert_eq!(child.wait().await, Ok(Ended::Code(7)));
        assert_eq!(child.wait().await, Ok(Ended::Code(7)));
        assert_eq!(child.kill(9), Ok(()));
    }

    #[tokio::test]
    async fn a_killed_program_names_its_signal() {
        let child = run("/bin/sleep", &["100"]).spawn().expect("spawn");
        child.kill(9).expect("kill");
        assert_eq!(child.wait().await, Ok(Ended::Signal(9)));
    }

    #[tokio::test]
    async fn a_missing_program_is_checked() {
        let e = run("/no/such/program", &[]).spawn().expect_err("missing");
        assert_eq!(e.to_string(), "start /no/such/program: No such file or directory (os error 2)");
    }

    #[tokio::test]
    async fn the_set_up_is_what_the_child_finds() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("file");
        std::fs::write(&file, "given").expect("write");
        let (read, core) = ("[ \"$(cat <&3)\" = given ]", "[ \"$(ulimit -c)\" = 0 ]");
        let session = "[ \"$(cut -d ' ' -f 6 /proc/$$/stat)\" = $$ ]";
        let mut launch = run("/bin/sh", &["-c", &format!("{read} && {core} && {session}")]);
        launch.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
        launch.fds.give(std::fs::File::open(&file).expect("open").into());
        assert_eq!(launch.spawn().expect("spawn").wait().await, Ok(Ended::Code(0)));
    }

    /// A limit is one of the whole process: the test runs again in a process of its own.
    #[tokio::test]
    async fn a_low_limit_of_descriptors_is_enough_or_named() {
        const AGAIN: &str = "KATA_SE_TEST_LOW_LIMIT";
        if std::env::var_os(AGAIN).is_none() {
            let own = std::env::current_exe().expect("own path").display().to_string();
            // An emulator's programs start no other of their kind.
            let listed = run(&own, &["--list"]).spawn().expect("spawn").wait().await;
            if listed != Ok(Ended::Code(0)) {
                return;
            }
            let mut again = run("/bin/sh", &["-c", "ulimit -n 40; exec \"$@\"", "sh"]);
            let test = "host::process::tests::a_low_limit_of_descriptors_is_enough_or_named";
            again.args.extend([own.into(), "--exact".into(), test.into()]);
            again.env = vec![(AGAIN.into(), "1".into())];
            let ended = again.spawn().expect("spawn").wait().await;
            assert_eq!(ended, Ok(Ended::Code(0)));
            return;
        }
        raise_file_limit().expect("raise");
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((40, 40)));
        let open = || std::fs::File::open("/dev/null");
        let mut launch = run("/bin/sh", &["-c", "exit 7"]);
        launch.fds.give(open().expect("open").into());
        assert_eq!(launch.spawn().expect("40 are enough").wait().await, Ok(Ended::Code(7)));
        // In this process there is no room, or none among those that the child needs.
        for free in 0..12 {
            let mut launch = run("/bin/sh", &["-c", "exit 7"]);
            for _ in 0..6 {
                launch.fds.give(open().expect("open").into());
            }
            let mut others: Vec<_> = std::iter::from_fn(|| open().ok()).collect();
            others.truncate(others.len() - free);
            match launch.start() {
                Ok(mut child) => assert_eq!(child.wait().expect("wait").code(), Some(7)),
                Err(e) => assert!(
                    e.to_string().contains("with a limit of 40 descriptors (RLIMIT_NOFILE"),
                    "{free}: {e}"
                ),
            }
        }
    }

    #[tokio::test]
    async fn our_own_limit_of_descriptors_is_raised_and_a_childs_is_as_before() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
        setrlimit(Resource::RLIMIT_NOFILE, hard / 2, hard).expect("lower");
        raise_file_limit().expect("raise");
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((hard, hard)));
        let test = format!("[ $(ulimit -Sn) = {} ] && [ $(ulimit -Hn) = {hard} ]", hard / 2);
        let child = run("/bin/sh", &["-c", &test]).spawn().expect("spawn");
        assert_eq!(child.wait().await, Ok(Ended::Code(0)));
    }

    #[tokio::test]
    async fn a_private_mount_is_there_for_the_child_alone() {
        let dir = tempfile::tempdir().expect("dir");
        let [upper, lower, target] = ["upper", "lower", "target"].map(|name| dir.path().join(name));
        for folder in [&upper, &lower, &target] {
            std::fs::create_dir(folder).expect("mkdir");
        }
        std::fs::write(upper.join("file"), "upper").expect("write");
        std::fs::write(lower.join("file"), "lower").expect("write");
        let seen = format!(
            "grep -q ' {0} ro,nosuid,nodev,noexec' /proc/self/mountinfo && [ $(cat {0}/file) = upper ]",
            target.display()
        );
        let mut launch = run("/bin/sh", &["-c", &seen]);
        launch.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
        launch.mount = Some(LayerMount { layers: vec![upper, lower], target });
        let child = match launch.spawn() {
            Ok(child) => child,
            // This user may not mount.
            Err(e) if e.to_string().contains("Operation not permitted") => return,
            Err(e) => panic!("{e}"),
        };
        assert_eq!(child.wait().await, Ok(Ended::Code(0)));
        let ours = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert!(!ours.contains(&*dir.path().to_string_lossy()), "{ours}");
    }
}
