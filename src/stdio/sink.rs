//! The destination of output: none, the client's fifo, a file, or a logging program.
//!
//! A fifo is opened for reading, too, so that a reader that goes away and comes back causes neither
//! EPIPE nor an end of file, and opening never waits for a reader. A file is opened and written on a thread
//! of its own: a hung file system must not stop the shim. A slow reader blocks only its own stream. What
//! cannot be written is lost, and told.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use percent_encoding::percent_decode_str;
use rustix::io::ioctl_fionread;
use slog::{Logger, warn};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc as asynchronous, oneshot};
use tokio::time::{sleep, timeout};

use crate::error::{Context, Error, Result};
use crate::host::process::{FdTable, Launch};
use crate::host::sys;
use crate::limits;

/// One stream's destination, and what of the stream it has not taken.
#[derive(Debug)]
pub(crate) struct Sink {
    to: Destination,
    /// The container and its destination, for the log.
    name: String,
    log: Logger,
    /// Bytes that could not be written since the last that could.
    lost: usize,
}

#[derive(Debug)]
enum Destination {
    Null,
    Pipe(AsyncFd<File>),
    File(FileThread),
}

impl Sink {
    /// Opens the destinations that the client named for stdout and stderr of container `id`.
    pub(crate) async fn open_pair(
        stdout: &str,
        stderr: &str,
        id: &str,
        namespace: &str,
        log: &Logger,
    ) -> Result<(Self, Self)> {
        let sink = |to, uri: &str| {
            let (uri, _arguments) = uri.split_once('?').unwrap_or((uri, ""));
            Self { to, name: format!("{id}: output to {uri}"), log: log.clone(), lost: 0 }
        };
        if let Some(uri) = stdout.strip_prefix("binary://") {
            let (out, err) = logging_program(uri, id, namespace)?;
            return Ok((sink(out, stdout), sink(err, stdout)));
        }
        let (out, err) = (Destination::open(stdout).await?, Destination::open(stderr).await?);
        Ok((sink(out, stdout), sink(err, stderr)))
    }

    /// Writes all data, however long the reader takes. A destination that fails is tried again with the next
    /// data: a disk may have room again.
    pub(crate) async fn write_all(&mut self, data: &[u8]) {
        match self.to.write(data).await {
            Ok(()) => self.tell_lost(),
            Err((left, e)) => {
                if self.lost == 0 {
                    warn!(self.log, "{}: {}: what cannot be written is lost", self.name, e);
                }
                self.lost = self.lost.saturating_add(left);
            }
        }
    }

    fn tell_lost(&mut self) {
        if self.lost > 0 {
            warn!(self.log, "{}: {} bytes were lost", self.name, self.lost);
            self.lost = 0;
        }
    }

    /// Keeps a pipe open until everything is read, or `forgotten` ends: what no one has read yet is lost with the
    /// last descriptor.
    pub(crate) async fn linger(self, forgotten: impl Future<Output = ()>) {
        let Destination::Pipe(fd) = &self.to else { return };
        let emptied = async {
            let (mut pause, longest) = limits::stdio::LINGER_PAUSE;
            while ioctl_fionread(fd.get_ref()).is_ok_and(|unread| unread > 0) {
                sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
        };
        tokio::select! {
            () = emptied => {}
            () = forgotten => {}
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.tell_lost();
    }
}

/// How many bytes were not written, and why.
type Unwritten = (usize, io::Error);

impl Destination {
    async fn open(path: &str) -> Result<Self> {
        if path.is_empty() {
            return Ok(Self::Null);
        }
        if let Some(path) = path.strip_prefix("file://") {
            return open_on_thread(path).await.with_context(|| format!("open output file {path}"));
        }
        if path.contains("://") {
            return Err(Error::invalid(format!(
                "output {path:?}: supported are the path of a fifo, file:// and binary://"
            )));
        }
        Self::pipe(open_fifo(Path::new(path))?).with_context(|| format!("open output fifo {path}"))
    }

    fn pipe(file: File) -> io::Result<Self> {
        sys::watch(file, Interest::WRITABLE).map(Self::Pipe)
    }

    async fn write(&mut self, data: &[u8]) -> std::result::Result<(), Unwritten> {
        match self {
            Self::Null => Ok(()),
            Self::File(thread) => thread.write(data).await,
            Self::Pipe(fd) => write_pipe(fd, data).await,
        }
    }
}

async fn write_pipe(fd: &AsyncFd<File>, mut data: &[u8]) -> std::result::Result<(), Unwritten> {
    while !data.is_empty() {
        let mut ready = fd.writable().await.map_err(|e| (data.len(), e))?;
        match ready.try_io(|fd| write_some(fd.get_ref(), data)) {
            Ok(Ok(count)) => data = data.get(count..).unwrap_or_default(),
            Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
            Ok(Err(e)) => return Err((data.len(), e)),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

/// A thread that writes one file, a chunk at a time; it ends when this is dropped.
#[derive(Debug)]
struct FileThread {
    chunks: mpsc::Sender<Vec<u8>>,
    written: asynchronous::UnboundedReceiver<std::result::Result<(), Unwritten>>,
}

impl FileThread {
    async fn write(&mut self, data: &[u8]) -> std::result::Result<(), Unwritten> {
        let ended = || (data.len(), io::Error::other("its thread has ended"));
        let sent = self.chunks.send(data.to_vec()).is_ok();
        let written = if sent { self.written.recv().await } else { None };
        written.unwrap_or_else(|| Err(ended()))
    }
}

/// Opens a `file://`, which may as well be a fifo.
async fn open_on_thread(path: &str) -> Result<Destination> {
    let ((chunks, to_write), (told, written)) =
        (mpsc::channel::<Vec<u8>>(), asynchronous::unbounded_channel());
    let (done, opened) = oneshot::channel();
    let own = PathBuf::from(path);
    let work = move || {
        let file = match open_append(&own) {
            Ok(file) => file,
            Err(e) => return drop(done.send(Err(e))),
        };
        if file.metadata().is_ok_and(|m| m.file_type().is_fifo()) {
            return drop(done.send(Ok(Some(file))));
        }
        if done.send(Ok(None)).is_err() {
            return;
        }
        while let Ok(chunk) = to_write.recv() {
            if told.send(append(&file, &chunk)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("output file".into()).spawn(work).context("start a thread")?;
    match timeout(limits::stdio::OPEN_FILE, opened).await {
        Ok(Ok(Ok(Some(fifo)))) => Destination::pipe(fifo).context("watch a fifo"),
        Ok(Ok(Ok(None))) => Ok(Destination::File(FileThread { chunks, written })),
        Ok(Ok(Err(e))) => Err(e),
        Ok(Err(_)) => Err(Error::internal("its thread has ended")),
        Err(_) => Err(Error::deadline(format!(
            "not open within {} s: its file system does not answer",
            limits::stdio::OPEN_FILE.as_secs()
        ))),
    }
}

/// Opens without waiting for a fifo's other end.
fn open_append(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let file = match options.open(path) {
        Ok(file) if !file.metadata().is_ok_and(|m| m.file_type().is_fifo()) => file,
        Err(e) if e.raw_os_error() != Some(libc::ENXIO) => return Err(e).context("open"),
        Ok(_) | Err(_) => return open_fifo(path),
    };
    set_flags(&file, OFlag::O_APPEND)?;
    Ok(file)
}

fn append(mut file: &File, mut data: &[u8]) -> std::result::Result<(), Unwritten> {
    while !data.is_empty() {
        match file.write(data) {
            Ok(count) => data = data.get(count..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err((data.len(), e)),
        }
    }
    Ok(())
}

/// A non-blocking write to a pipe may be partial; up to one page is written whole or not at all.
fn write_some(mut file: &File, data: &[u8]) -> std::io::Result<usize> {
    file.write(data)
}

/// Opens an existing fifo in both directions, without waiting for its other end.
fn open_fifo(path: &Path) -> Result<File> {
    let context = || format!("open fifo {}", path.display());
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).with_context(context)?;
    if !file.metadata().with_context(context)?.file_type().is_fifo() {
        return Err(Error::invalid(format!("{}: not a fifo", path.display())));
    }
    Ok(file)
}

/// Starts the program of a `binary://` URI with stdout on its descriptor 3 and stderr on 4. It may close 5
/// to report that it is ready, which is not waited for.
fn logging_program(uri: &str, id: &str, namespace: &str) -> Result<(Destination, Destination)> {
    let (program, args) = split_uri(uri);
    if !program.is_absolute() {
        return Err(Error::invalid(format!("output binary://{uri}: the program must be an absolute path")));
    }
    let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).context("create a pipe");
    let ((out_read, out), (err_read, err), (_ready, ready_write)) = (pipe()?, pipe()?, pipe()?);
    let mut fds = FdTable::default();
    for fd in [out_read, err_read, ready_write] {
        fds.give(fd);
    }
    let env = [("CONTAINER_ID", id), ("CONTAINER_NAMESPACE", namespace)];
    let child = Launch {
        program,
        args,
        env: env.map(|(k, v)| (k.into(), v.into())).to_vec(),
        fds,
        detached: true, // it exits at the end of its input
        ..Launch::default()
    }
    .spawn()?;
    drop(crate::host::tasks::spawn(async move { drop(child.wait().await) }));
    let sink = |fd| {
        let file = File::from(fd);
        set_flags(&file, OFlag::O_NONBLOCK)?;
        Destination::pipe(file).context("watch a pipe")
    };
    Ok((sink(out)?, sink(err)?))
}

fn set_flags(file: &File, flags: OFlag) -> Result<()> {
    fcntl(file, FcntlArg::F_SETFL(flags)).context("set how writing waits")?;
    Ok(())
}

/// `/path?key=value&flag` to the program and its arguments `key value flag`.
fn split_uri(uri: &str) -> (PathBuf, Vec<OsString>) {
    let decoded = |text| OsString::from(percent_decode_str(text).decode_utf8_lossy().into_owned());
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let mut args = Vec::new();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        args.push(decoded(key));
        if !value.is_empty() {
            args.push(decoded(value));
        }
    }
    (PathBuf::from(decoded(path)), args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn a_logging_uri_is_a_program_and_its_arguments() {
        let (program, args) = split_uri("/usr/bin/log%20ger?id=a%2Fb&verbose&x=");
        assert_eq!(program, Path::new("/usr/bin/log ger"));
        assert_eq!(args, ["id", "a/b", "verbose", "x"]);
        let (_, args) = split_uri("/log?100%&%zz=%4");
        assert_eq!(args, ["100%", "%zz", "%4"], "no escapes");
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl slog::Drain for Lines {
        type Ok = ();
        type Err = slog::Never;

        fn log(
            &self,
            record: &slog::Record<'_>,
            _: &slog::OwnedKVList,
        ) -> std::result::Result<(), slog::Never> {
            self.0.lock().expect("lock").push(record.msg().to_string());
            Ok(())
        }
    }

    fn log() -> Logger {
        Logger::root(slog::Discard, slog::o!())
    }

    async fn open(uri: &str) -> Result<Sink> {
        Ok(Sink::open_pair(uri, "", "c1", "ns", &log()).await?.0)
    }

    #[tokio::test]
    async fn only_fifos_files_and_programs_are_accepted() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("plain");
        std::fs::write(&path, b"").expect("write");
        let refused = async |text: &str| open(text).await.expect_err(text).to_string();
        assert!(refused(path.to_str().expect("utf-8")).await.ends_with("not a fifo"));
        assert!(refused("http://x").await.contains("supported are"));
        let missing = refused("file:///nonexistent/log").await;
        assert!(
            missing.starts_with("open output file /nonexistent/log: ") && missing.contains("No such"),
            "{missing}"
        );
        let mut sink = open(&format!("file://{}", path.display())).await.expect("file");
        sink.write_all(b"one ").await;
        sink.write_all(b"two").await;
        assert_eq!(std::fs::read(&path).expect("read"), b"one two");
    }

    #[tokio::test]
    async fn a_file_that_is_a_fifo_holds_up_nothing_but_its_stream() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let mut sink = open(&format!("file://{}", path.display())).await.expect("without a reader");
        let full = timeout(std::time::Duration::from_millis(100), sink.write_all(&[7; 1 << 20])).await;
        assert!(full.is_err(), "it waits for a reader, and the executor goes on");
    }

    #[tokio::test]
    async fn a_full_disk_loses_what_has_no_room_and_says_how_much() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("log");
        let lines = Lines::default();
        let log = Logger::root(lines.clone(), slog::o!());
        let (mut sink, _) = Sink::open_pair("file:///dev/full", "", "c1", "ns", &log).await.expect("open");
        sink.write_all(b"12345").await;
        sink.write_all(b"678").await;
        sink.to = Destination::open(&format!("file://{}", path.display())).await.expect("room");
        sink.write_all(b"9").await;
        sink.write_all(b"0").await;
        assert_eq!(std::fs::read(&path).expect("read"), b"90");
        sink.to = Destination::open("file:///dev/full").await.expect("full again");
        sink.write_all(b"lost").await;
        drop(sink);
        let full = "c1: output to file:///dev/full: No space left on device (os error 28): what \
                    cannot be written is lost";
        let lost = |count: u32| format!("c1: output to file:///dev/full: {count} bytes were lost");
        assert_eq!(*lines.0.lock().expect("lock"), [full, &lost(8), full, &lost(4)]);
    }

    #[tokio::test]
    async fn the_output_of_a_logging_program_that_died_is_told_as_lost() {
        let lines = Lines::default();
        let log = Logger::root(lines.clone(), slog::o!());
        let (mut out, _) =
            Sink::open_pair("binary:///bin/true?token=x", "", "c1", "ns", &log).await.expect("start");
        while lines.0.lock().expect("lock").is_empty() {
            out.write_all(b"12345").await;
        }
        out.write_all(b"678").await;
        drop(out);
        let lines = lines.0.lock().expect("lock");
        let [broken, lost] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(broken.starts_with("c1: output to binary:///bin/true: Broken pipe"), "{broken}");
        assert_eq!(lost, "c1: output to binary:///bin/true: 8 bytes were lost");
    }
}
