//! Between the agent's socket and ttrpc's client: passes on only what an honest agent sends.
//!
//! The client is made for peers that are trusted: it keeps what belongs to no call, and reads answers of any
//! size. Here only an answer passes, one for each call, of a bounded size. Anything else ends the connection with
//! a reason, and with it the VM (`pod::supervise`).
//!
//! A frame (containerd/ttrpc, PROTOCOL.md): u32 length of the payload, u32 stream id, u8 type (1 request,
//! 2 response, 3 data), u8 flags, all big endian; then the payload.

use std::collections::HashSet;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::error::Error;
use crate::limits;

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// What all connections to one agent share: how it broke the protocol, once it has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guard(watch::Sender<Option<String>>);

impl Guard {
    /// Guards one connection.
    pub(crate) fn over<S>(&self, stream: S) -> Guarded<S> {
        let (sent, received) = (Frames::default(), Frames::default());
        Guarded { stream, sent, received, open: HashSet::new(), guard: self.clone() }
    }

    /// Returns when the agent has broken the protocol, with how.
    pub(crate) async fn broken(&self) -> Error {
        let mut broken = self.0.subscribe();
        let how = broken.wait_for(Option::is_some).await.ok().and_then(|how| how.clone());
        Error::unavailable(format!("the guest's agent broke the protocol: {}", how.unwrap_or_default()))
    }
}

/// A guarded connection.
#[derive(Debug)]
pub(crate) struct Guarded<S> {
    stream: S,
    sent: Frames,
    received: Frames,
    /// Streams of calls that have no answer yet.
    open: HashSet<u32>,
    guard: Guard,
}

/// Where a direction is in its frames.
#[derive(Debug, Default)]
struct Frames {
    header: Vec<u8>,
    /// Bytes of the payload that are still to come.
    left: u32,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    length: u32,
    stream: u32,
    kind: u8,
}

impl Frames {
    /// Takes the next bytes; each header that is complete with them.
    fn headers(
        &mut self,
        mut bytes: &[u8],
        mut header: impl FnMut(Header) -> Result<(), String>,
    ) -> Result<(), String> {
        while !bytes.is_empty() {
            let payload = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= u32::try_from(payload).unwrap_or(self.left);
            bytes = bytes.get(payload..).unwrap_or_default();
            let part = bytes.len().min(HEADER_BYTES - self.header.len());
            let (part, rest) = bytes.split_at(part);
            self.header.extend(part);
            bytes = rest;
            if let [l0, l1, l2, l3, s0, s1, s2, s3, kind, _flags] = *self.header.as_slice() {
                let length = u32::from_be_bytes([l0, l1, l2, l3]);
                header(Header { length, stream: u32::from_be_bytes([s0, s1, s2, s3]), kind })?;
                self.header.clear();
                self.left = length;
            }
        }
        Ok(())
    }
}

const HEADER_BYTES: usize = 10;

/// Checks the header of a frame from the agent.
fn check(open: &mut HashSet<u32>, header: Header) -> Result<(), String> {
    let Header { length, stream, kind } = header;
    if kind != RESPONSE {
        return Err(format!("a frame of type {kind}: only answers (type {RESPONSE}) are taken"));
    }
    let most = limits::agent::ANSWER_BYTES;
    if length > most {
        return Err(format!("an answer of {length} bytes: at most {most} are taken"));
    }
    if open.remove(&stream) { Ok(()) } else { Err(format!("an answer to no call (stream {stream})")) }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let new = buf.filled().get(before..).unwrap_or_default();
        if let Err(how) = this.received.headers(new, |header| check(&mut this.open, header)) {
            buf.set_filled(before);
            this.guard.0.send_if_modified(|known| {
                let first = known.is_none();
                known.get_or_insert(how);
                first
            });
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = std::task::ready!(Pin::new(&mut this.stream).poll_write(cx, buf))?;
        let (sent, open) = (&mut this.sent, &mut this.open);
        let noted = sent.headers(buf.get(..count).unwrap_or_default(), |header| {
            if header.kind == REQUEST {
                open.insert(header.stream);
            }
            Ok(())
        });
        noted.map_err(io::Error::other)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    fn frame(length: u32, stream: u32, kind: u8) -> Vec<u8> {
        let mut frame = [length.to_be_bytes(), stream.to_be_bytes()].concat();
        frame.extend([kind, 0]);
        frame
    }

    fn answer(payload: &[u8], stream: u32) -> Vec<u8> {
        [frame(u32::try_from(payload.len()).expect("short"), stream, RESPONSE).as_slice(), payload].concat()
    }

    /// A connection on which the calls 1 and 3 are open, and the agent's end.
    async fn connection() -> (Guard, Guarded<DuplexStream>, DuplexStream) {
        let (ours, mut agents) = duplex(1 << 20);
        let guard = Guard::default();
        let mut guarded = guard.over(ours);
        let calls = [frame(2, 1, REQUEST).as_slice(), b"ab", &frame(0, 3, REQUEST)].concat();
        for byte in &calls {
            guarded.write_all(&[*byte]).await.expect("write"); // in any pieces
        }
        let mut seen = vec![0; calls.len()];
        agents.read_exact(&mut seen).await.expect("read");
        assert_eq!(seen, calls);
        (guard, guarded, agents)
    }

    #[tokio::test]
    async fn answers_pass_once_each_in_any_order_and_pieces() {
        let (guard, mut guarded, mut agents) = connection().await;
        let sent = [answer(b"three", 3), answer(b"", 1)].concat();
        let write = async {
            for byte in &sent {
                agents.write_all(&[*byte]).await.expect("write");
                tokio::task::yield_now().await;
            }
        };
        let mut got = vec![0; sent.len()];
        let (read, ()) = tokio::join!(guarded.read_exact(&mut got), write);
        read.expect("read");
        assert_eq!(got, sent);
        assert!(guard.0.borrow().is_none());
    }

    #[tokio::test]
    async fn anything_else_ends_the_connection_with_the_reason() {
        let most = limits::agent::ANSWER_BYTES;
        for (sent, how) in [
            (frame(0, 1, 3), "a frame of type 3".to_owned()),
            (frame(0, 1, REQUEST), "a frame of type 1".to_owned()),
            (frame(0, 1, 0), "a frame of type 0".to_owned()),
            (frame(u32::MAX, 1, RESPONSE), format!("an answer of {} bytes: at most {most}", u32::MAX)),
            (frame(most + 1, 1, RESPONSE), format!("an answer of {} bytes", most + 1)),
            (frame(0, 2, RESPONSE), "an answer to no call (stream 2)".to_owned()),
            ([answer(b"x", 1), answer(b"x", 1)].concat(), "an answer to no call (stream 1)".to_owned()),
        ] {
            let (guard, mut guarded, mut agents) = connection().await;
            agents.write_all(&sent).await.expect("write");
            let e = guarded.read_to_end(&mut Vec::new()).await.expect_err(&how);
            assert_eq!(e.kind(), io::ErrorKind::InvalidData, "{how}");
            let text = guard.broken().await.to_string();
            assert!(text.starts_with(&format!("the guest's agent broke the protocol: {how}")), "{text}");
        }
    }

    proptest::proptest! {
        /// Whatever an agent sends: nothing panics, and every complete header that passed was an open call's.
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), cut in 1..20_usize) {
            let (mut frames, mut open) = (Frames::default(), HashSet::from([1, 3]));
            let mut passed = 0;
            for piece in bytes.chunks(cut) {
                let result = frames.headers(piece, |header| {
                    check(&mut open, header)?;
                    passed += 1;
                    Ok(())
                });
                if result.is_err() {
                    break;
                }
            }
            proptest::prop_assert!(passed + open.len() == 2);
        }
    }
}
