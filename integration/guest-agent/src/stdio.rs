//! The streams of a process with the real agent's semantics: one read(2) per call, no offset, and WaitProcess
//! discards unread output.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{OpenptyResult, openpty};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::failure::{Result, Trying, internal, no_terminal};
use crate::reaper::Exit;
use crate::sys;

/// How long a read that was waiting when the process exited continues to wait.
const DRAIN: Duration = Duration::from_millis(500);

/// The capacity of a pipe.
const MOST_READ: usize = 256 << 10;

/// Our ends of a process' streams.
#[derive(Debug)]
pub(crate) struct Stdio {
    stdin: Input,
    stdout: Arc<Output>,
    /// The same as `stdout` if there is a terminal.
    stderr: Arc<Output>,
    terminal: Option<File>,
}

/// The process' ends.
#[derive(Debug)]
pub(crate) struct ChildStdio {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stdio {
    /// Three pipes.
    pub(crate) fn pipes() -> Result<(Self, ChildStdio)> {
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).trying("pipe");
        let ((stdin, stdin_w), (stdout_r, stdout), (stderr_r, stderr)) = (pipe()?, pipe()?, pipe()?);
        let own = Self {
            stdin: Input::new(stdin_w)?,
            stdout: Output::new(stdout_r)?,
            stderr: Output::new(stderr_r)?,
            terminal: None,
        };
        Ok((own, ChildStdio { stdin, stdout, stderr }))
    }

    /// A new terminal.
    pub(crate) fn terminal() -> Result<(Self, ChildStdio)> {
        let OpenptyResult { master, slave } = openpty(None, None).trying("openpty")?;
        for fd in [&master, &slave] {
            fcntl(fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).trying("openpty")?;
        }
        let copy = || slave.try_clone().trying("openpty");
        let child = ChildStdio { stdin: copy()?, stdout: copy()?, stderr: slave };
        Ok((Self::of_terminal(master)?, child))
    }

    /// A terminal created by another program.
    pub(crate) fn of_terminal(master: OwnedFd) -> Result<Self> {
        let copy = || master.try_clone().trying("terminal");
        let output = Output::new(copy()?)?;
        let stdin = Input::new(copy()?)?;
        Ok(Self { stdin, stdout: output.clone(), stderr: output, terminal: Some(File::from(master)) })
    }

    pub(crate) fn output(&self, stream: Stream) -> &Output {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    pub(crate) fn stdin(&self) -> &Input {
        &self.stdin
    }

    pub(crate) fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        let terminal = self.terminal.as_ref().ok_or_else(no_terminal)?;
        let side = |n: u32| u16::try_from(n).trying(format!("a terminal of {rows} x {columns}"));
        sys::set_terminal_size(terminal, side(rows)?, side(columns)?).trying("TIOCSWINSZ")
    }

    /// Ends waiting reads; unread output is lost.
    pub(crate) fn close(&self) {
        self.stdin.close();
        self.stdout.closed.notify_waiters();
        self.stderr.closed.notify_waiters();
    }

    /// What is in the error stream now: the reason why a program could not be run.
    pub(crate) fn complaint(&self) -> String {
        let mut text = Vec::new();
        let mut file: &File = self.stderr.fd.get_ref();
        // The stream does not block: what is there is read, and an error means the end.
        file.read_to_end(&mut text).ok();
        String::from_utf8_lossy(&text).trim().to_owned()
    }
}

fn nonblocking(fd: OwnedFd) -> Result<AsyncFd<File>> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).trying("F_GETFL")?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).trying("F_SETFL")?;
    sys::awaitable(fd).trying("watch a stream")
}

/// stdout, stderr, or a terminal.
#[derive(Debug)]
pub(crate) struct Output {
    fd: AsyncFd<File>,
    reading: AtomicBool,
    closed: Notify,
}

/// Clears the mark when a read ends, however it ends.
struct Reading<'a>(&'a AtomicBool);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Output {
    fn new(fd: OwnedFd) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { fd: nonblocking(fd)?, reading: AtomicBool::new(false), closed: Notify::new() }))
    }

    /// One read(2) as soon as there is data; empty at end of file.
    ///
    /// A read that waits when the process ends waits [`DRAIN`] longer; one that begins after the end
    /// waits as long as any process holds the stream open.
    pub(crate) async fn read(&self, len: u32, exit: &Exit) -> Result<Vec<u8>> {
        if len == 0 {
            return Err(internal("a read of 0 bytes looks like the end of the stream"));
        }
        if self.reading.swap(true, Ordering::Relaxed) {
            return Err(internal(
                "two reads outstanding on one stream: without offsets their order is not known",
            ));
        }
        let _reading = Reading(&self.reading);
        let ended_before = exit.now().is_some();
        let drained = async {
            if ended_before {
                std::future::pending::<()>().await;
            }
            exit.wait().await;
            sleep(DRAIN).await;
        };
        tokio::select! {
            biased;
            read = self.read_once(len) => read.map_err(|e| internal(read_error(&e))),
            () = self.closed.notified() => Ok(Vec::new()),
            () = drained => Ok(Vec::new()),
        }
    }

    async fn read_once(&self, len: u32) -> io::Result<Vec<u8>> {
        let most = usize::try_from(len).map_or(MOST_READ, |len| len.min(MOST_READ));
        let mut data = vec![0; most];
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(read) = ready.try_io(|fd| fd.get_ref().read(&mut data)) {
                data.truncate(read?);
                return Ok(data);
            }
        }
    }
}

/// The text that hosts look for at a terminal's end.
fn read_error(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(nix::libc::EIO) => "Input/output error (os error 5)".to_owned(),
        _ => e.to_string(),
    }
}

/// stdin.
#[derive(Debug)]
pub(crate) struct Input {
    fd: Mutex<Option<Arc<AsyncFd<File>>>>,
    writing: AtomicBool,
}

impl Input {
    fn new(fd: OwnedFd) -> Result<Self> {
        Ok(Self { fd: Mutex::new(Some(Arc::new(nonblocking(fd)?))), writing: AtomicBool::new(false) })
    }

    /// Writes all of `data`; waits while the process does not read.
    pub(crate) async fn write(&self, data: &[u8]) -> Result<()> {
        if self.writing.swap(true, Ordering::Relaxed) {
            return Err(internal("two writes outstanding on one stdin: their order is not known"));
        }
        let _writing = Reading(&self.writing);
        let fd = self.fd.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let fd = fd.ok_or_else(|| internal("stdin is closed"))?;
        let mut rest = data;
        while !rest.is_empty() {
            let mut ready = fd.writable().await.trying("write stdin")?;
            if let Ok(written) = ready.try_io(|fd| fd.get_ref().write(rest)) {
                rest = rest.get(written.trying("write stdin")?..).unwrap_or_default();
            }
        }
        Ok(())
    }

    pub(crate) fn close(&self) {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
