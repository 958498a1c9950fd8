//! One output stream, from ReadStdout/ReadStderr to its sink.
//!
//! The next read is in flight while the last chunk is being written, never two reads at once. What the
//! sink does not accept yet is buffered, up to a bound; then nothing more is read, and the process
//! blocks. A sink that accepts nothing for long makes the pump report it (`Stuck`): the exit of the process
//! must become known nevertheless.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::{sleep, timeout};

use crate::error::Result;
use crate::limits;
use crate::stdio::sink::Sink;

/// Copies one stream until it has ended and everything is written.
#[derive(Debug)]
pub(crate) struct Pump {
    sink: Sink,
    /// True when WaitProcess has answered: there will be no more output.
    exited: watch::Receiver<bool>,
    state: watch::Sender<StreamState>,
    reading: Arc<Mutex<()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamState {
    /// A read is in flight.
    Reading,
    /// The sink is being given what was read.
    Writing,
    /// The sink has not accepted the last chunk within the longest time that a process' exit may wait.
    Stuck,
    /// A read returned nothing, or the stream cannot be read any more.
    FirstEnd,
    Finished,
}

/// Observes a pump and can hold it back.
#[derive(Debug)]
pub(crate) struct PumpHandle {
    state: watch::Receiver<StreamState>,
    /// Locked during each read.
    reading: Arc<Mutex<()>>,
}

/// Makes a pump and its handle.
pub(crate) fn new(sink: Sink, exited: watch::Receiver<bool>) -> (Pump, PumpHandle) {
    let (state, receiver) = watch::channel(StreamState::Reading);
    let reading = Arc::default();
    (Pump { sink, exited, state, reading: Arc::clone(&reading) }, PumpHandle { state: receiver, reading })
}

impl PumpHandle {
    /// Returns true when a read has returned nothing or the stream cannot be read any more, false when its
    /// sink is stuck. The stream of a `killed` process that is silent for a while counts as ended.
    pub(crate) async fn first_end(&mut self, killed: &mut watch::Receiver<bool>) -> bool {
        loop {
            let state = *self.state.borrow_and_update();
            match state {
                StreamState::Stuck => return false,
                StreamState::FirstEnd | StreamState::Finished => return true,
                StreamState::Reading | StreamState::Writing => {}
            }
            let dead = *killed.borrow();
            tokio::select! {
                changed = self.state.changed() => if changed.is_err() { return true },
                asked = killed.wait_for(|yes| *yes), if !dead => if asked.is_err() { return true },
                () = sleep(limits::stdio::KILLED_SILENCE), if dead && state == StreamState::Reading => return true,
            }
        }
    }

    /// Keeps a stuck stream from being read until the guard is dropped, so that a reader that appears
    /// meanwhile does not let the process exit; `None`: it is being read again already.
    pub(crate) fn hold_back(&self) -> Option<MutexGuard<'_, ()>> {
        self.reading.try_lock().ok()
    }

    /// Returns when everything is written, or when the sink is stuck.
    pub(crate) async fn finished(&mut self) {
        drop(self.state.wait_for(|p| matches!(p, StreamState::Finished | StreamState::Stuck)).await);
    }
}

impl Pump {
    /// Copies with `read`, which returns nothing at the end of the stream; returns the sink.
    pub(crate) async fn run<F: Future<Output = Result<Vec<u8>>> + Send>(
        mut self,
        read: impl Fn(u32) -> F + Send + Sync,
    ) -> Sink {
        let (held, waiting) = tokio::io::duplex(limits::stdio::STREAM_BUFFER);
        let (read, reading) = (&read, &self.reading);
        let read = |len| async move {
            let _reading = reading.lock().await;
            read(len).await
        };
        let reading = read_all(read, held, &mut self.exited, &self.state);
        tokio::join!(reading, write_all(waiting, &mut self.sink));
        self.state.send_replace(StreamState::Finished);
        self.sink
    }
}

async fn write_all(mut waiting: DuplexStream, sink: &mut Sink) {
    let mut chunk = vec![0; limits::stdio::SINK_BYTES];
    while let Ok(count @ 1..) = waiting.read(&mut chunk).await {
        sink.write_all(chunk.get(..count).unwrap_or_default()).await;
    }
}

async fn read_all<F: Future<Output = Result<Vec<u8>>> + Send>(
    read: impl Fn(u32) -> F + Send + Sync,
    mut held: DuplexStream,
    exited: &mut watch::Receiver<bool>,
    state: &watch::Sender<StreamState>,
) {
    let (first_pause, longest) = limits::stdio::EMPTY_READ_PAUSE;
    let mut pause = first_pause;
    while let Ok(chunk) = read(limits::stdio::READ_BYTES).await {
        if !chunk.is_empty() {
            pause = first_pause;
            set_state(state, StreamState::Writing);
            if !hold(&mut held, &chunk, state).await {
                break;
            }
            set_state(state, StreamState::Reading);
            continue;
        }
        state.send_replace(StreamState::FirstEnd);
        if !pause_unless_exited(pause, exited).await {
            break;
        }
        pause = (pause * 2).min(longest);
    }
    state.send_replace(StreamState::FirstEnd);
}

/// Sets the state, unless the stream has ended.
fn set_state(state: &watch::Sender<StreamState>, now: StreamState) {
    state.send_if_modified(|known| {
        let running = matches!(known, StreamState::Reading | StreamState::Writing);
        if running {
            *known = now;
        }
        running
    });
}

/// Buffers a chunk for the sink; false: the sink is gone.
async fn hold(held: &mut DuplexStream, chunk: &[u8], state: &watch::Sender<StreamState>) -> bool {
    let taking = held.write_all(chunk);
    tokio::pin!(taking);
    if let Ok(taken) = timeout(limits::stdio::OUTPUT_DRAIN, &mut taking).await {
        return taken.is_ok();
    }
    let before = state.send_replace(StreamState::Stuck);
    let taken = taking.await.is_ok();
    state.send_replace(before);
    taken
}

/// False: WaitProcess has answered, there will be no more output.
async fn pause_unless_exited(pause: Duration, exited: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        _ = exited.wait_for(|yes| *yes) => false,
        () = sleep(pause) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::path::Path;
    use std::sync::Mutex;
    use tokio::io::AsyncReadExt;
    use tokio::net::unix::pipe;

    async fn sink(uri: &str) -> Sink {
        let log = slog::Logger::root(slog::Discard, slog::o!());
        Sink::open_pair(uri, "", "c1", "ns", &log).await.expect("sink").0
    }

    async fn fifo(dir: &Path) -> (String, Sink) {
        let path = dir.join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let text = path.to_str().expect("utf-8").to_owned();
        let sink = sink(&text).await;
        (text, sink)
    }

    async fn pump(sink: Sink, data: Vec<Vec<u8>>, exited: watch::Receiver<bool>) -> PumpHandle {
        let data = Mutex::new(VecDeque::from(data));
        let (pump, handle) = new(sink, exited);
        let read = |_| {
            let next = data.lock().expect("lock").pop_front().unwrap_or_default();
            async { Ok(next) }
        };
        pump.run(read).await;
        handle
    }

    #[tokio::test]
    async fn every_byte_arrives_in_order_also_when_the_reader_comes_late() {
        let dir = tempfile::tempdir().expect("dir");
        let (path, sink) = fifo(dir.path()).await;
        let data: Vec<Vec<u8>> = (0..200_u8).map(|n| vec![n; 10_000]).collect();
        let whole: Vec<u8> = data.concat();
        let (exit, exited) = watch::channel(false);
        let reader = async {
            sleep(Duration::from_millis(50)).await; // late, and then with a pause in the middle
            let mut reader = pipe::OpenOptions::new().open_receiver(&path).expect("open");
            let mut got = vec![0; 700_000];
            reader.read_exact(&mut got).await.expect("read");
            drop(reader);
            sleep(Duration::from_millis(20)).await;
            let mut reader = pipe::OpenOptions::new().open_receiver(&path).expect("open again");
            exit.send_replace(true);
            reader.read_to_end(&mut got).await.expect("read");
            got
        };
        let (_, got) = tokio::join!(pump(sink, data, exited), reader);
        assert!(got == whole, "{} of {} bytes", got.len(), whole.len());
    }

    #[tokio::test]
    async fn a_stuck_stream_can_be_held_back_from_a_reader_that_appears() {
        let dir = tempfile::tempdir().expect("dir");
        let (path, sink) = fifo(dir.path()).await;
        let (exit, exited) = watch::channel(false);
        let (pump, mut handle) = new(sink, exited);
        let chunk = vec![7; 1 << 16];
        let chunks = std::sync::atomic::AtomicUsize::new(0);
        let read = |_| {
            let count = chunks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let next = if count < 100 { chunk.clone() } else { Vec::new() };
            async { Ok(next) }
        };
        let watcher = async {
            let (_kill, mut killed) = watch::channel(false);
            tokio::time::pause(); // nothing moves until there is a reader
            assert!(!handle.first_end(&mut killed).await, "stuck");
            tokio::time::resume();
            let held = handle.hold_back().expect("not being read");
            let before = chunks.load(std::sync::atomic::Ordering::Relaxed);
            let mut reader = pipe::OpenOptions::new().open_receiver(&path).expect("open");
            let mut got = vec![0; chunk.len() * before];
            reader.read_exact(&mut got).await.expect("read");
            assert_eq!(chunks.load(std::sync::atomic::Ordering::Relaxed), before, "read while held back");
            drop(held);
            let end = async {
                assert!(handle.first_end(&mut killed).await, "goes on");
                exit.send_replace(true);
            };
            let (_, rest) = tokio::join!(end, reader.read_to_end(&mut got));
            rest.expect("read");
            assert_eq!(got.len(), chunk.len() * 100);
        };
        let whole = async { drop(pump.run(read).await) };
        tokio::join!(whole, watcher);
    }

    #[tokio::test]
    async fn an_empty_answer_before_the_exit_does_not_end_the_stream() {
        let (exit, exited) = watch::channel(false);
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("out");
        let sink = sink(&format!("file://{}", path.display())).await;
        tokio::time::pause();
        let data = vec![b"a".to_vec(), vec![], b"b".to_vec(), vec![], vec![], b"c".to_vec()];
        let ending = async {
            sleep(Duration::from_secs(5)).await;
            exit.send_replace(true);
        };
        tokio::join!(pump(sink, data, exited), ending);
        assert_eq!(std::fs::read(&path).expect("read"), b"abc");
    }
}
