//! The destination of output: none, the client's fifo, a file, or a logging program.
//!
//! A fifo is opened for reading, too, so that a reader that goes away and comes back causes neither
//! EPIPE nor an end of file, and opening never waits for a reader. A slow reader blocks only its own
//! stream.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::libc;
use percent_encoding::percent_decode_str;
use rustix::io::ioctl_fionread;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use crate::error::{Context, Error, Result};
use crate::host::process::{FdTable, Launch};
use crate::host::sys;
use crate::limits;

/// One stream's destination.
#[derive(Debug)]
pub(crate) enum Sink {
    Null,
    Pipe(AsyncFd<File>),
    File(File),
}

impl Sink {
    /// Opens the destinations that the client named for stdout and stderr.
    pub(crate) fn open_pair(stdout: &str, stderr: &str, id: &str, namespace: &str) -> Result<(Self, Self)> {
        if let Some(uri) = stdout.strip_prefix("binary://") {
            return logging_program(uri, id, namespace);
        }
        Ok((Self::open(stdout)?, Self::open(stderr)?))
    }

    fn open(path: &str) -> Result<Self> {
        if path.is_empty() {
            return Ok(Self::Null);
        }
        if let Some(path) = path.strip_prefix("file://") {
            let mut options = OpenOptions::new();
            let file = options.append(true).create(true).mode(0o600).open(path);
            return Ok(Self::File(file.with_context(|| format!("open output file {path}"))?));
        }
        if path.contains("://") {
            return Err(Error::invalid(format!(
                "output {path:?}: supported are the path of a fifo, file:// and binary://"
            )));
        }
        let context = || format!("open output fifo {path}");
        Ok(Self::Pipe(sys::watch(open_fifo(path)?, Interest::WRITABLE).with_context(context)?))
    }

    /// Writes all data, however long the reader takes.
    pub(crate) async fn write_all(&mut self, mut data: &[u8]) -> Result<()> {
        match self {
            Self::Null => Ok(()),
            Self::File(file) => file.write_all(data).context("write output file"),
            Self::Pipe(fd) => {
                while !data.is_empty() {
                    let mut ready = fd.writable().await.context("write output")?;
                    match ready.try_io(|fd| write_some(fd.get_ref(), data)) {
                        Ok(Ok(count)) => data = data.get(count..).unwrap_or_default(),
                        Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                        Ok(Err(e)) => return Err(e).context("write output"),
                        Err(_would_block) => {}
                    }
                }
                Ok(())
            }
        }
    }
}

impl Sink {
    /// Keeps a pipe open until everything is read, or `forgotten` ends: what no one has read yet is lost with the
    /// last descriptor.
    pub(crate) async fn linger(self, forgotten: impl Future<Output = ()>) {
        let Self::Pipe(fd) = &self else { return };
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

/// A non-blocking write to a pipe may be partial; up to one page is written whole or not at all.
fn write_some(mut file: &File, data: &[u8]) -> std::io::Result<usize> {
    file.write(data)
}

/// Opens an existing fifo in both directions, without waiting for its other end.
fn open_fifo(path: &str) -> Result<File> {
    let context = || format!("open fifo {path}");
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).with_context(context)?;
    if !file.metadata().with_context(context)?.file_type().is_fifo() {
        return Err(Error::invalid(format!("{path}: not a fifo")));
    }
    Ok(file)
}

/// Starts the program of a `binary://` URI with stdout on its descriptor 3 and stderr on 4. It may close 5
/// to report that it is ready, which is not waited for.
fn logging_program(uri: &str, id: &str, namespace: &str) -> Result<(Sink, Sink)> {
    let (program, args) = split_uri(uri);
    if !program.is_absolute() {
        return Err(Error::invalid(format!("output binary://{uri}: the program must be an absolute path")));
    }
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("create a pipe");
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
        set_nonblocking(&file)?;
        Ok(Sink::Pipe(sys::watch(file, Interest::WRITABLE).context("watch a pipe")?))
    };
    Ok((sink(out)?, sink(err)?))
}

fn set_nonblocking(file: &File) -> Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("set a pipe non-blocking")?;
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
    use std::path::Path;

    #[test]
    fn a_logging_uri_is_a_program_and_its_arguments() {
        let (program, args) = split_uri("/usr/bin/log%20ger?id=a%2Fb&verbose&x=");
        assert_eq!(program, Path::new("/usr/bin/log ger"));
        assert_eq!(args, ["id", "a/b", "verbose", "x"]);
        let (_, args) = split_uri("/log?100%&%zz=%4");
        assert_eq!(args, ["100%", "%zz", "%4"], "no escapes");
    }

    #[tokio::test]
    async fn only_fifos_files_and_programs_are_accepted() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("plain");
        std::fs::write(&path, b"").expect("write");
        let refused = |text: &str| Sink::open(text).expect_err(text).to_string();
        assert!(refused(path.to_str().expect("utf-8")).ends_with("not a fifo"));
        assert!(refused("http://x").contains("supported are"));
        let mut sink = Sink::open(&format!("file://{}", path.display())).expect("file");
        sink.write_all(b"one ").await.expect("write");
        sink.write_all(b"two").await.expect("write");
        assert_eq!(std::fs::read(&path).expect("read"), b"one two");
    }
}
