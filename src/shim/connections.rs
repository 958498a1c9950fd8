//! The shim's socket, with a count of its open connections: a caller closes its side after the last response,
//! and the shim exits only then.

use std::io::{IoSlice, Result};
use std::os::unix::net::UnixListener as StdListener;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::stream::unfold;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::sleep;
use ttrpc::r#async::transport::Listener;

use crate::limits;

/// A connection that is counted while it is open.
struct Counted {
    stream: UnixStream,
    open: watch::Sender<usize>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.send_modify(|open| *open -= 1);
    }
}

/// The listener for the server, and the number of open connections.
pub(crate) fn counted(listener: StdListener) -> Result<(Listener, watch::Receiver<usize>)> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let (open, count) = watch::channel(0);
    let accepted = unfold((listener, open), |(listener, open)| async move {
        let accepted = or_pause(listener.accept()).await.map(|(stream, _)| {
            open.send_modify(|open| *open += 1);
            Counted { stream, open: open.clone() }
        });
        Some((accepted, (listener, open)))
    });
    Ok((Listener::new(accepted), count))
}

/// An error comes late: the server tries again at once, and without a free descriptor it would fail at once
/// again.
async fn or_pause<T>(accept: impl Future<Output = Result<T>>) -> Result<T> {
    let accepted = accept.await;
    if accepted.is_err() {
        sleep(limits::shim::ACCEPT_PAUSE).await;
    }
    accepted
}

impl AsyncRead for Counted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, from)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn tries_to_accept_do_not_follow_each_other_at_once_while_they_fail() {
        let began = Instant::now();
        for _ in 0..10 {
            let full = std::io::Error::from_raw_os_error(nix::libc::EMFILE);
            or_pause(async { Err::<(), _>(full) }).await.expect_err("full");
        }
        assert!(began.elapsed() >= 10 * limits::shim::ACCEPT_PAUSE);
        or_pause(async { Ok(()) }).await.expect("accepted");
        assert!(began.elapsed() < 11 * limits::shim::ACCEPT_PAUSE);
    }
}
