//! Connecting to the agent: vsock and hybrid vsock.
//!
//! The agent does not listen while the guest boots, so a refused attempt is normal: we try often at first,
//! until the limit, and stop at once when the VM is gone. A hybrid socket answers `OK` when the guest's
//! port is open; before that it closes the connection or does not answer.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_vsock::{VsockAddr, VsockStream};
use ttrpc::r#async::transport::Socket;

use crate::agent::guard::Guard;
use crate::error::{Context, Error, Result};
use crate::lifecycle::vm::VmEnd;
use crate::limits;

/// The agent's ttrpc port.
pub(crate) const AGENT_PORT: u32 = 1024;

/// How the guest's vsock ports are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// AF_VSOCK on the host.
    Vsock { cid: u32 },
    /// A Unix socket that takes `CONNECT <port>`.
    Hybrid { socket: PathBuf },
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vsock { cid } => write!(f, "vsock CID {cid} port {AGENT_PORT}"),
            Self::Hybrid { socket } => write!(f, "{} port {AGENT_PORT}", socket.display()),
        }
    }
}

/// One connection to the agent's port.
async fn connect_once(transport: &Transport, guard: &Guard) -> Result<Socket> {
    match transport {
        Transport::Vsock { cid } => {
            let stream = VsockStream::connect(VsockAddr::new(*cid, AGENT_PORT)).await.context("connect")?;
            Ok(Socket::new(guard.over(stream)))
        }
        Transport::Hybrid { socket } => {
            let mut stream = UnixStream::connect(socket).await.context("connect")?;
            stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes()).await.context("CONNECT")?;
            let mut line = Vec::new();
            // Byte by byte: what follows the line belongs to the agent's protocol.
            while line.last() != Some(&b'\n') {
                match stream.read_u8().await {
                    Ok(byte) if line.len() < limits::agent::HYBRID_ANSWER_BYTES => line.push(byte),
                    Ok(_) => return Err(Error::unavailable("an endless answer to CONNECT")),
                    Err(_) => return Err(Error::unavailable("the guest's port is not open yet")),
                }
            }
            if !line.windows(2).any(|w| w == b"OK") {
                let text = String::from_utf8_lossy(&line).into_owned();
                return Err(Error::unavailable(format!("CONNECT was answered with {text:?}")));
            }
            Ok(Socket::new(guard.over(stream)))
        }
    }
}

/// Tries until `attempt` succeeds on a new connection, `limit`, which is the configuration's `key`, is over,
/// or the VM is gone.
pub(crate) async fn connect<T, F: Future<Output = Result<T>> + Send>(
    transport: &Transport,
    guard: &Guard,
    (limit, key): (Duration, &str),
    mut gone: watch::Receiver<Option<VmEnd>>,
    attempt: impl Fn(Socket) -> F + Send + Sync,
) -> Result<T> {
    let began = Instant::now();
    let (mut pause, longest) = limits::agent::DIAL_PAUSE;
    let (mut try_limit, most) = limits::agent::DIAL_TRY;
    let dialing = async {
        loop {
            let this_try =
                try_limit.min(limit.saturating_sub(began.elapsed()).max(limits::agent::DIAL_TRY.0));
            let tried =
                timeout(this_try, async { attempt(connect_once(transport, guard).await?).await }).await;
            let reason = match tried {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(e)) => e,
                Err(_) => {
                    let e = Error::deadline(format!("no answer within {} ms", this_try.as_millis()));
                    try_limit = (try_limit * 5 / 4).min(most);
                    e
                }
            };
            if began.elapsed() >= limit {
                return Err(Error::deadline(format!(
                    "the guest agent did not answer on {transport} within {} s (last try: {reason}): look at the \
                     guest console in the sandbox's log, and at agent.{key} if the guest is only slow",
                    limit.as_secs()
                )));
            }
            sleep(pause.min(limit.saturating_sub(began.elapsed()))).await;
            pause = (pause * 5 / 4).min(longest);
        }
    };
    tokio::select! {
        result = dialing => result,
        end = ended(&mut gone) => Err(end),
        e = guard.broken() => Err(e),
    }
}

/// Waits for the VM's end and returns it as an error.
pub(crate) async fn ended(gone: &mut watch::Receiver<Option<VmEnd>>) -> Error {
    let end = match gone.wait_for(Option::is_some).await {
        Ok(end) => end.as_ref().map(ToString::to_string),
        Err(_) => None,
    };
    Error::unavailable(end.unwrap_or_else(|| "the VM is no longer watched".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    fn alive() -> (watch::Sender<Option<VmEnd>>, watch::Receiver<Option<VmEnd>>) {
        watch::channel(None)
    }

    #[tokio::test]
    async fn a_socket_that_refuses_is_tried_again() {
        let dir = tempfile::tempdir().expect("dir");
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).expect("bind");
        let server = async {
            for answer in ["", "garbage\n", "OK 1024\n"] {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let mut asked = [0; 13];
                stream.read_exact(&mut asked).await.expect("read");
                assert_eq!(&asked, b"CONNECT 1024\n");
                stream.write_all(answer.as_bytes()).await.expect("write");
            }
        };
        let ((_vm, gone), guard) = (alive(), Guard::default());
        let transport = Transport::Hybrid { socket };
        let dial =
            connect(&transport, &guard, (Duration::from_secs(5), "connect_timeout_s"), gone, |_| async {
                Ok(())
            });
        let (result, ()) = tokio::join!(dial, server);
        assert_eq!(result, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_is_waited_for_longer_each_time() {
        let dir = tempfile::tempdir().expect("dir");
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).expect("bind");
        let server = async {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accept");
                stream.write_all(b"OK 1024\n").await.expect("write");
            }
        };
        let ((_vm, gone), guard) = (alive(), Guard::default());
        let transport = Transport::Hybrid { socket };
        let slow = |_| async {
            sleep(Duration::from_millis(3500)).await;
            Ok(())
        };
        let dial = connect(&transport, &guard, (Duration::from_secs(60), "connect_timeout_s"), gone, slow);
        tokio::select! {
            result = dial => assert_eq!(result, Ok(())),
            () = server => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_ends_it_with_the_last_reason() {
        let ((_vm, gone), guard) = (alive(), Guard::default());
        let transport = Transport::Hybrid { socket: "/nonexistent/s".into() };
        let e = connect(&transport, &guard, (Duration::from_secs(3), "health_timeout_s"), gone, |_| async {
            Ok(())
        })
        .await
        .expect_err("no listener");
        assert!(
            e.to_string().starts_with(
                "the guest agent did not answer on /nonexistent/s port 1024 within 3 s (last try: connect: No such"
            ),
            "{e}"
        );
        assert!(e.to_string().contains(" and at agent.health_timeout_s if the guest is only slow"), "{e}");
    }

    #[tokio::test]
    async fn a_dead_vm_ends_it_at_once() {
        let ((vm, gone), guard) = (alive(), Guard::default());
        vm.send_replace(Some(VmEnd::Exited { code: 1, text: "no kernel".into() }));
        let transport = Transport::Hybrid { socket: "/nonexistent/s".into() };
        let e =
            connect(&transport, &guard, (Duration::from_secs(60), "connect_timeout_s"), gone, |_| async {
                Ok(())
            })
            .await
            .expect_err("dead");
        assert_eq!(e.to_string(), "QEMU ended with exit code 1: no kernel");
    }
}
