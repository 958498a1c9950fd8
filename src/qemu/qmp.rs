//! QMP over a socketpair: bounded lines, and descriptors passed with commands, which qapi's own codec
//! does not have.
//!
//! Answers without a command and unknown events are ignored; anything that is not QMP ends the
//! connection. QEMU goes on running when its QMP peer closes, so our side must kill it then.

use std::collections::HashMap;
use std::io::{ErrorKind, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use qapi::{Command, Execute};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::error::{Context, Error, Result};
use crate::limits;
use crate::mutex::lock;
use crate::qemu::event::{QmpEvent, event};

pub(crate) use qapi::qmp::{
    add_fd, blockdev_del, cont, device_add, device_del, qmp_capabilities, quit, remove_fd,
};

/// One QMP connection. Commands may be sent from many tasks; one task runs [`Qmp::read`].
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    next: AtomicU64,
    state: Mutex<State>,
    /// Held while a command is written, so that two never interleave.
    writing: tokio::sync::Mutex<()>,
    greeted: tokio::sync::watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    /// None when the connection has ended.
    pending: Option<HashMap<u64, oneshot::Sender<Result<Value>>>>,
    deleted: HashMap<String, oneshot::Sender<()>>,
}

/// `blockdev-add` with the arguments as JSON: we need only one fixed form of its large schema.
#[derive(Debug, serde::Serialize)]
pub(crate) struct BlockdevAdd(pub(crate) Value);

impl Command for BlockdevAdd {
    type Ok = qapi::Empty;
    const NAME: &'static str = "blockdev-add";
    const ALLOW_OOB: bool = false;
}

/// `query-migrate`; of its large answer, which differs between versions, we need only the blockers.
#[derive(Debug, serde::Serialize)]
pub(crate) struct QueryMigrate {}

impl Command for QueryMigrate {
    type Ok = Migration;
    const NAME: &'static str = "query-migrate";
    const ALLOW_OOB: bool = false;
}

/// What keeps a guest from being migrated (QEMU, qapi/migration.json; since 6.0).
#[derive(Debug, Deserialize)]
pub(crate) struct Migration {
    /// Left out where there is none.
    #[serde(default, rename = "blocked-reasons")]
    blocked_reasons: Vec<String>,
}

impl Migration {
    /// Whether it is the protection of the guest. The machine adds this reason before it has the ultravisor
    /// unpack and verify the guest, and removes it if that fails and when the guest leaves protected mode,
    /// all under the lock that QMP takes too (QEMU, hw/s390x/s390-virtio-ccw.c, `s390_machine_protect`).
    /// Versions spell its end "migrateable" or "migratable".
    pub(crate) fn is_blocked_by_protection(&self) -> bool {
        self.blocked_reasons.iter().any(|why| why.starts_with("protected VMs are currently not migrat"))
    }
}

impl Qmp {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            next: AtomicU64::new(1),
            state: Mutex::new(State { pending: Some(HashMap::new()), deleted: HashMap::new() }),
            writing: tokio::sync::Mutex::new(()),
            greeted: tokio::sync::watch::Sender::new(false),
        }
    }

    /// Waits for QEMU's greeting and leaves the negotiation mode.
    pub(crate) async fn negotiate(&self) -> Result<()> {
        let mut greeted = self.greeted.subscribe();
        let hello =
            timeout(limits::qemu::QMP_ANSWER, greeted.wait_for(|yes| *yes)).await.map(|seen| seen.is_ok());
        match hello {
            Ok(true) if self.is_open() => {}
            Ok(_) => return Err(ended()),
            Err(_) => return Err(late("greeting", limits::qemu::QMP_ANSWER)),
        }
        self.execute(qmp_capabilities { enable: None }).await?;
        Ok(())
    }

    /// Sends a command and waits for its answer.
    pub(crate) async fn execute<C: Command>(&self, command: C) -> Result<C::Ok> {
        self.execute_with(command, None).await
    }

    /// As [`Self::execute`], with a descriptor passed along.
    pub(crate) async fn execute_with<C: Command>(&self, command: C, fd: Option<&OwnedFd>) -> Result<C::Ok> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.lock().pending.as_mut().ok_or_else(ended)?.insert(id, answer);
        let result = timeout(limits::qemu::QMP_ANSWER, async {
            let mut line = serde_json::to_vec(&Execute::with_id(command, id)).context("QMP")?;
            line.push(b'\n');
            self.send(&line, fd).await?;
            answered.await.unwrap_or_else(|_| Err(ended()))
        })
        .await;
        if let Some(pending) = &mut self.lock().pending {
            pending.remove(&id);
        }
        let value = result
            .unwrap_or_else(|_| Err(late(C::NAME, limits::qemu::QMP_ANSWER)))
            .context(format!("QMP {}", C::NAME))?;
        C::Ok::deserialize(value).with_context(|| format!("QMP {}: answer", C::NAME))
    }

    /// Unplugs a device and waits for its DEVICE_DELETED event.
    pub(crate) async fn delete_device(&self, id: &str) -> Result<()> {
        let (gone, deleted) = oneshot::channel();
        self.lock().deleted.insert(id.to_owned(), gone);
        let result = async {
            self.execute(device_del { id: id.to_owned() }).await?;
            match timeout(limits::qemu::DEVICE_DELETED, deleted).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(ended()),
                Err(_) => Err(late("DEVICE_DELETED", limits::qemu::DEVICE_DELETED)),
            }
        }
        .await;
        self.lock().deleted.remove(id);
        result
    }

    async fn send(&self, line: &[u8], fd: Option<&OwnedFd>) -> Result<()> {
        let _turn = self.writing.lock().await;
        let fds: Vec<RawFd> = fd.map(AsRawFd::as_raw_fd).into_iter().collect();
        let mut rest = line;
        while !rest.is_empty() {
            self.stream.writable().await.context("QMP write")?;
            let first = rest.len() == line.len();
            let control = [ControlMessage::ScmRights(&fds)];
            let control: &[ControlMessage] = if first && !fds.is_empty() { &control } else { &[] };
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
                let data = [IoSlice::new(rest)];
                sendmsg::<()>(self.stream.as_raw_fd(), &data, control, flags, None).map_err(Into::into)
            });
            match sent {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e).context("QMP write"),
            }
        }
        Ok(())
    }

    /// Reads until the connection ends and returns why; every waiting command fails. `on_event` gets all
    /// events but those that [`Self::delete_device`] waits for.
    pub(crate) async fn read(&self, on_event: impl FnMut(QmpEvent)) -> Error {
        let end = self.read_lines(on_event).await;
        self.close();
        end
    }

    /// Ends every wait for an answer: none will come.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.pending = None;
        state.deleted.clear();
        drop(state);
        self.greeted.send_replace(true);
    }

    async fn read_lines(&self, mut on_event: impl FnMut(QmpEvent)) -> Error {
        let mut buffer: Vec<u8> = Vec::new();
        let mut chunk = [0_u8; 4096];
        let (mut second, mut received) = (Instant::now(), 0);
        loop {
            while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                if let Err(e) = self.take_line(&line, &mut on_event) {
                    return e;
                }
            }
            if buffer.len() > limits::qemu::QMP_LINE_BYTES {
                return Error::internal(format!(
                    "QMP: a line longer than {} bytes",
                    limits::qemu::QMP_LINE_BYTES
                ));
            }
            // While bytes are there the wait does not wait: without this, QEMU could keep us from all else.
            tokio::task::yield_now().await;
            if let Err(e) = self.stream.readable().await {
                return Error::internal(format!("QMP: {e}"));
            }
            if second.elapsed() >= Duration::from_secs(1) {
                (second, received) = (Instant::now(), 0);
            }
            match self.stream.try_read(&mut chunk) {
                Ok(0) => return ended(),
                Ok(count) => {
                    received += count;
                    if received > limits::qemu::QMP_BYTES_PER_SECOND {
                        return Error::internal(format!(
                            "QMP: more than {} bytes in a second",
                            limits::qemu::QMP_BYTES_PER_SECOND
                        ));
                    }
                    buffer.extend_from_slice(chunk.get(..count).unwrap_or_default());
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Error::internal(format!("QMP: {e}")),
            }
        }
    }

    fn take_line(&self, line: &[u8], on_event: &mut impl FnMut(QmpEvent)) -> Result<()> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let mut object: Value = serde_json::from_slice(line).context("QMP: not JSON")?;
        if object.get("QMP").is_some() {
            self.greeted.send_replace(true);
        } else if object.get("event").is_some() {
            match event(&object) {
                QmpEvent::DeviceDeleted { device } => {
                    if let Some(waiter) = self.lock().deleted.remove(&device) {
                        waiter.send(()).ok();
                    }
                }
                other => on_event(other),
            }
        } else if let Some(id) = object.get("id").and_then(Value::as_u64) {
            let answer = match object.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => Err(Error::internal(error_text(&object))),
            };
            let waiter = self.lock().pending.as_mut().and_then(|pending| pending.remove(&id));
            if let Some(waiter) = waiter {
                waiter.send(answer).ok(); // the command may have timed out
            }
        }
        Ok(())
    }

    fn is_open(&self) -> bool {
        self.lock().pending.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn error_text(object: &Value) -> String {
    let text =
        object.pointer("/error/desc").and_then(Value::as_str).unwrap_or("an error without a description");
    text.chars().take(limits::text::FOREIGN_TEXT_BYTES / 4).collect()
}

fn ended() -> Error {
    Error::unavailable("QEMU closed its QMP connection")
}

fn late(what: &str, limit: Duration) -> Error {
    Error::deadline(format!("no {what} from QEMU within {} s", limit.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    /// A QMP connection whose other side is `peer`.
    fn connect() -> (Arc<Qmp>, UnixStream) {
        let (ours, peer) = UnixStream::pair().expect("pair");
        (Arc::new(Qmp::new(ours)), peer)
    }

    #[tokio::test]
    async fn a_wait_for_an_answer_ends_with_qemu_also_if_another_process_has_its_connection() {
        let (qmp, peer) = connect();
        let end = async {
            BufReader::new(peer).read_line(&mut String::new()).await.expect("read");
            qmp.close();
        };
        let (answer, ()) = tokio::join!(qmp.execute(cont {}), end);
        assert_eq!(
            answer.map(|_| ()).expect_err("none").to_string(),
            "QMP cont: QEMU closed its QMP connection"
        );
    }

    #[tokio::test]
    async fn answers_find_their_commands_past_unknown_events_and_wrong_ids() {
        let (qmp, peer) = connect();
        let server = async {
            let mut peer = BufReader::new(peer);
            peer.write_all(b"{\"QMP\": {}}\n").await.expect("greet");
            for _ in 0..2 {
                let mut line = String::new();
                peer.read_line(&mut line).await.expect("read");
                let asked: Value = serde_json::from_str(&line).expect("json");
                let noise =
                    "{\"event\": \"FROM_THE_FUTURE\"}\n{\"return\": {}, \"id\": 999}\n{\"return\": {}}\n\n";
                peer.write_all(noise.as_bytes()).await.expect("noise");
                let answer = format!("{{\"return\": {{}}, \"id\": {}}}\n", asked["id"]);
                peer.write_all(answer.as_bytes()).await.expect("answer");
            }
            peer // stays open
        };
        let client = async {
            qmp.negotiate().await.expect("negotiate");
            qmp.execute(cont {}).await.expect("cont");
        };
        let mut events = 0;
        tokio::select! {
            () = async { tokio::join!(server, client); } => {}
            e = qmp.read(|_| events += 1) => panic!("{e}"),
        }
        assert_eq!(events, 2);
    }

    #[test]
    fn only_the_machines_own_reason_says_that_a_guest_is_protected() {
        for (answer, protected) in [
            ("{}", false),
            (r#"{"status": "none"}"#, false),
            (r#"{"blocked-reasons": []}"#, false),
            (r#"{"blocked-reasons": ["protected VMs are currently not migratable."]}"#, true),
            (r#"{"blocked-reasons": ["protected VMs are currently not migrateable."]}"#, true),
            (
                r#"{"blocked-reasons": ["x", "protected VMs are currently not migratable."], "new": [1]}"#,
                true,
            ),
            (r#"{"blocked-reasons": ["mounted as: protected VMs are currently not migratable."]}"#, false),
            (r#"{"blocked": true}"#, false),
        ] {
            let answer: Migration = serde_json::from_str(answer).expect("answer");
            assert_eq!(answer.is_blocked_by_protection(), protected, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn an_error_has_qemus_description() {
        let (qmp, mut peer) = connect();
        let server = async move {
            peer.write_all(b"{\"error\": {\"desc\": \"Device fe.0.0007 already exists\"}, \"id\": 1}\n")
                .await
                .expect("answer");
            std::future::pending::<()>().await;
        };
        let e = tokio::select! {
            answer = qmp.execute(cont {}) => answer.expect_err("refused"),
            e = qmp.read(|_| ()) => e,
            () = server => unreachable!(),
        };
        assert_eq!(e.to_string(), "QMP cont: Device fe.0.0007 already exists");
    }

    #[tokio::test]
    async fn a_line_without_end_ends_the_connection_and_every_command() {
        let (qmp, mut peer) = connect();
        // It does not close the connection: that would be the end that is seen.
        let flood = async {
            let block = vec![b'['; 64 << 10];
            while peer.write_all(&block).await.is_ok() {}
            std::future::pending::<()>().await;
        };
        let ended = async { tokio::join!(qmp.read(|_| ()), qmp.execute(cont {})) };
        let (end, answer) = tokio::select! {
            both = tokio::time::timeout(std::time::Duration::from_secs(60), ended) => both.expect("an end"),
            () = flood => unreachable!(),
        };
        assert_eq!(
            end.to_string(),
            format!("QMP: a line longer than {} bytes", limits::qemu::QMP_LINE_BYTES)
        );
        assert!(answer.is_err());
    }

    #[tokio::test(start_paused = true)] // however slow the machine is, it is one second
    async fn events_without_end_end_the_connection_and_others_run_meanwhile() {
        let (qmp, mut peer) = connect();
        let flood = async {
            let block = b"{\"event\": \"RESUME\"}\n".repeat(4096);
            while peer.write_all(&block).await.is_ok() {}
            std::future::pending::<()>().await;
        };
        let others = async {
            for turn in 0.. {
                tokio::task::yield_now().await;
                if turn > 100 {
                    break;
                }
            }
        };
        let read = async {
            let end = qmp.read(|_| ()).await;
            assert_eq!(
                end.to_string(),
                format!("QMP: more than {} bytes in a second", limits::qemu::QMP_BYTES_PER_SECOND)
            );
        };
        let both = async { tokio::join!(read, others) };
        tokio::select! {
            both = tokio::time::timeout(Duration::from_secs(60), both) => drop(both.expect("an end")),
            () = flood => unreachable!(),
        }
    }

    #[tokio::test]
    async fn a_peer_that_closes_in_mid_line_or_sends_nonsense_ends_the_connection() {
        for text in ["{\"QMP\": {", "nonsense\n", &format!("{}\n", "[".repeat(100_000))] {
            let (qmp, mut peer) = connect();
            peer.write_all(text.as_bytes()).await.expect("write");
            drop(peer);
            let (_, hello) = tokio::join!(qmp.read(|_| ()), qmp.negotiate());
            assert!(hello.is_err(), "{text:.20}");
        }
    }
}
