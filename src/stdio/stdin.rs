//! From the client's stdin fifo to WriteStdin.
//!
//! The fifo is opened only for reading, so it ends when its last writer closes it. A fifo that no writer
//! has opened yet is not at its end: nothing is read before the kernel reports a writer.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::error::{Context, Error, Result};
use crate::host::sys;
use crate::limits;

/// An open stdin fifo.
#[derive(Debug)]
pub(crate) struct Stdin(AsyncFd<File>);

impl Stdin {
    /// None when the client named no stdin.
    pub(crate) fn open(path: &str) -> Result<Option<Self>> {
        if path.is_empty() {
            return Ok(None);
        }
        let context = || format!("open stdin fifo {path}");
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).with_context(context)?;
        if !file.metadata().with_context(context)?.file_type().is_fifo() {
            return Err(Error::invalid(format!("stdin {path}: not a fifo")));
        }
        Ok(Some(Self(sys::watch(file, Interest::READABLE).with_context(context)?)))
    }

    /// The next bytes; empty at the end.
    async fn read(&self) -> Vec<u8> {
        let mut chunk = vec![0; limits::stdio::WRITE_BYTES];
        loop {
            let Ok(mut ready) = self.0.readable().await else { return Vec::new() };
            match ready.try_io(|fd| fd.get_ref().read(&mut chunk)) {
                Ok(Ok(count)) => {
                    chunk.truncate(count);
                    return chunk;
                }
                Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                Ok(Err(_)) => return Vec::new(),
                Err(_would_block) => {}
            }
        }
    }

    /// What is available now, without waiting.
    fn read_rest(&self) -> Vec<u8> {
        let mut chunk = vec![0; limits::stdio::WRITE_BYTES];
        let count = self.0.get_ref().read(&mut chunk).unwrap_or(0);
        chunk.truncate(count);
        chunk
    }
}

/// Copies until the last writer closes the fifo, or until CloseIO (what was written before it is still
/// copied); then closes the process' stdin. Stops at an error: the process is gone.
pub(crate) async fn copy<F: Future<Output = Result<()>> + Send>(
    input: Stdin,
    mut close: watch::Receiver<bool>,
    write: impl Fn(Vec<u8>) -> F + Send,
    close_stdin: impl Future<Output = Result<()>> + Send,
) {
    loop {
        let chunk = tokio::select! {
            biased;
            chunk = input.read() => chunk,
            _ = close.wait_for(|requested| *requested) => input.read_rest(),
        };
        if chunk.is_empty() {
            break;
        }
        if write(chunk).await.is_err() {
            return;
        }
    }
    drop(close_stdin.await);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    fn fifo(dir: &tempfile::TempDir) -> String {
        let path = dir.path().join("stdin");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        path.to_str().expect("utf-8").to_owned()
    }

    #[tokio::test]
    async fn input_is_copied_to_its_end_also_if_the_writer_is_late() {
        let dir = tempfile::tempdir().expect("dir");
        let path = fifo(&dir);
        let input = Stdin::open(&path).expect("open").expect("named");
        let (_close, closing) = watch::channel(false);
        let writer = std::thread::spawn(move || {
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(Duration::from_millis(50));
            let mut file = OpenOptions::new().write(true).open(path).expect("open");
            file.write_all(&vec![7; 300_000]).expect("write");
        });
        let (got, closed) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        let write = |data: Vec<u8>| {
            got.lock().expect("lock").extend(data);
            async { Ok(()) }
        };
        let close = async {
            closed.store(true, Ordering::Relaxed);
            Ok(())
        };
        copy(input, closing, write, close).await;
        writer.join().expect("join");
        assert_eq!((got.lock().expect("lock").len(), closed.load(Ordering::Relaxed)), (300_000, true));
    }

    #[tokio::test]
    async fn close_io_ends_it_after_what_was_written_before() {
        let dir = tempfile::tempdir().expect("dir");
        let path = fifo(&dir);
        let input = Stdin::open(&path).expect("open").expect("named");
        let mut writer = OpenOptions::new().write(true).open(&path).expect("open");
        writer.write_all(b"the rest").expect("write");
        let (_close, closing) = watch::channel(true);
        let got = Mutex::new(Vec::new());
        let write = |data: Vec<u8>| {
            got.lock().expect("lock").extend(data);
            async { Ok(()) }
        };
        copy(input, closing, write, async { Ok(()) }).await;
        assert_eq!(*got.lock().expect("lock"), b"the rest");
    }
}
