//! One output stream, from ReadStdout/ReadStderr to its sink.
//!
//! The next read is under way while the last one is being written, never two reads at once. What the
//! sink does not take yet is held, up to a bound; then nothing more is read and the process is held
//! back. A sink that takes nothing for long makes the pump say so (`Stuck`): the process' end must
//! become known all the same.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::{sleep, timeout};

use crate::error::Result;
use crate::limits;
use crate::stdio::sink::Sink;

/// The working half: runs until its stream has ended and everything is written.
#[derive(Debug)]
pub(crate) struct Pump {
    sink: Sink,
    /// True when WaitProcess has answered: nothing can come any more.
    exited: watch::Receiver<bool>,
    progress: watch::Sender<Progress>,
    reading: Arc<Mutex<()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The guest is asked for the next bytes.
    Reading,
    /// The sink is given what was read.
    Writing,
    /// What was read last has not been taken for the longest time a process' end may wait.
    Stuck,
    /// The stream answered empty, or cannot be read any more.
    FirstEnd,
    Finished,
}

/// What a pump tells.
#[derive(Debug)]
pub(crate) struct Signals {
    progress: watch::Receiver<Progress>,
    /// Held during each read.
    reading: Arc<Mutex<()>>,
}

/// Makes a pump and what it tells.
pub(crate) fn new(sink: Sink, exited: watch::Receiver<bool>) -> (Pump, Signals) {
    let (progress, signals) = watch::channel(Progress::Reading);
    let reading = Arc::default();
    (Pump { sink, exited, progress, reading: Arc::clone(&reading) }, Signals { progress: signals, reading })
}

impl Signals {
    /// Returns when the stream has answered empty once or cannot be read any more (true), or when
    /// its sink is stuck (false). Of a process that was `killed` a stream that says nothing is at its end.
    pub(crate) async fn first_end(&mut self, killed: &mut watch::Receiver<bool>) -> bool {
        loop {
            let progress = *self.progress.borrow_and_update();
            match progress {
                Progress::Stuck => return false,
                Progress::FirstEnd | Progress::Finished => return true,
                Progress::Reading | Progress::Writing => {}
            }
            let dead = *killed.borrow();
            tokio::select! {
                changed = self.progress.changed() => if changed.is_err() { return true },
                asked = killed.wait_for(|yes| *yes), if !dead => if asked.is_err() { return true },
                () = sleep(limits::KILLED_SILENCE), if dead && progress == Progress::Reading => return true,
            }
        }
    }

    /// Keeps a stuck stream from being read until what this returns is dropped, so that a reader who comes
    /// meanwhile does not let the process end; `None`: it is being read again already.
    pub(crate) fn hold_back(&self) -> Option<MutexGuard<'_, ()>> {
        self.reading.try_lock().ok()
    }

    /// Returns when everything is written, or when the sink is stuck.
    pub(crate) async fn finished(&mut self) {
        drop(self.progress.wait_for(|p| matches!(p, Progress::Finished | Progress::Stuck)).await);
    }
}

impl Pump {
    /// Copies with `read`, which answers empty at the end of the stream.
    pub(crate) async fn run<F: Future<Output = Result<Vec<u8>>> + Send>(
        mut self,
        read: impl Fn(u32) -> F + Send + Sync,
    ) {
        let (held, waiting) = tokio::io::duplex(limits::STREAM_BUFFER);
        let (read, reading) = (&read, &self.reading);
        let read = |len| async move {
            let _reading = reading.lock().await;
            read(len).await
        };
        let reading = read_all(read, held, &mut self.exited, &self.progress);
        tokio::join!(reading, write_all(waiting, &mut self.sink));
        self.progress.send_replace(Progress::Finished);
    }
}

async fn write_all(mut waiting: DuplexStream, sink: &mut Sink) {
    let mut chunk = vec![0; limits::SINK_BYTES];
    let mut broken = false;
    while let Ok(count @ 1..) = waiting.read(&mut chunk).await {
        // A sink that failed takes nothing more; the process must not block on it.
        broken = broken || sink.write_all(chunk.get(..count).unwrap_or_default()).await.is_err();
    }
}

async fn read_all<F: Future<Output = Result<Vec<u8>>> + Send>(
    read: impl Fn(u32) -> F + Send + Sync,
    mut held: DuplexStream,
    exited: &mut watch::Receiver<bool>,
    progress: &watch::Sender<Progress>,
) {
    let (first_pause, longest) = limits::EMPTY_READ_PAUSE;
    let mut pause = first_pause;
    while let Ok(chunk) = read(limits::READ_BYTES).await {
        if !chunk.is_empty() {
            pause = first_pause;
            note(progress, Progress::Writing);
            if !hold(&mut held, &chunk, progress).await {
                break;
            }
            note(progress, Progress::Reading);
            continue;
        }
        progress.send_replace(Progress::FirstEnd);
        if !pause_unless_exited(pause, exited).await {
            break;
        }
        pause = (pause * 2).min(longest);
    }
    progress.send_replace(Progress::FirstEnd);
}

/// What has ended once stays so.
fn note(progress: &watch::Sender<Progress>, now: Progress) {
    progress.send_if_modified(|known| {
        let goes_on = matches!(known, Progress::Reading | Progress::Writing);
        if goes_on {
            *known = now;
        }
        goes_on
    });
}

/// Puts a chunk where the sink takes it from; false: nobody takes it any more.
async fn hold(held: &mut DuplexStream, chunk: &[u8], progress: &watch::Sender<Progress>) -> bool {
    let taking = held.write_all(chunk);
    tokio::pin!(taking);
    if let Ok(taken) = timeout(limits::OUTPUT_DRAIN, &mut taking).await {
        return taken.is_ok();
    }
    let before = progress.send_replace(Progress::Stuck);
    let taken = taking.await.is_ok();
    progress.send_replace(before);
    taken
}

/// False: the process was waited for, nothing can come any more.
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

    fn fifo(dir: &Path) -> (String, Sink) {
        let path = dir.join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let text = path.to_str().expect("utf-8").to_owned();
        let (sink, _) = Sink::open_pair(&text, "", "c1", "ns").expect("sink");
        (text, sink)
    }

    async fn pump(sink: Sink, data: Vec<Vec<u8>>, exited: watch::Receiver<bool>) -> Signals {
        let data = Mutex::new(VecDeque::from(data));
        let (pump, signals) = new(sink, exited);
        let read = |_| {
            let next = data.lock().expect("lock").pop_front().unwrap_or_default();
            async { Ok(next) }
        };
        pump.run(read).await;
        signals
    }

    #[tokio::test]
    async fn every_byte_arrives_in_order_also_when_the_reader_comes_late() {
        let dir = tempfile::tempdir().expect("dir");
        let (path, sink) = fifo(dir.path());
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
    async fn a_stuck_stream_can_be_held_back_from_a_reader_who_comes() {
        let dir = tempfile::tempdir().expect("dir");
        let (path, sink) = fifo(dir.path());
        let (exit, exited) = watch::channel(false);
        let (pump, mut signals) = new(sink, exited);
        let chunk = vec![7; 1 << 16];
        let chunks = std::sync::atomic::AtomicUsize::new(0);
        let read = |_| {
            let count = chunks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let next = if count < 100 { chunk.clone() } else { Vec::new() };
            async { Ok(next) }
        };
        let watcher = async {
            let (_kill, mut killed) = watch::channel(false);
            tokio::time::pause(); // nothing moves until a reader comes
            assert!(!signals.first_end(&mut killed).await, "stuck");
            tokio::time::resume();
            let held = signals.hold_back().expect("not being read");
            let before = chunks.load(std::sync::atomic::Ordering::Relaxed);
            let mut reader = pipe::OpenOptions::new().open_receiver(&path).expect("open");
            let mut got = vec![0; chunk.len() * before];
            reader.read_exact(&mut got).await.expect("read");
            assert_eq!(chunks.load(std::sync::atomic::Ordering::Relaxed), before, "read while held back");
            drop(held);
            let end = async {
                assert!(signals.first_end(&mut killed).await, "goes on");
                exit.send_replace(true);
            };
            let (_, rest) = tokio::join!(end, reader.read_to_end(&mut got));
            rest.expect("read");
            assert_eq!(got.len(), chunk.len() * 100);
        };
        tokio::join!(pump.run(read), watcher);
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_answer_before_the_exit_does_not_end_the_stream() {
        let (exit, exited) = watch::channel(false);
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("out");
        let (sink, _) = Sink::open_pair(&format!("file://{}", path.display()), "", "c", "n").expect("sink");
        let data = vec![b"a".to_vec(), vec![], b"b".to_vec(), vec![], vec![], b"c".to_vec()];
        let ending = async {
            sleep(Duration::from_secs(5)).await;
            exit.send_replace(true);
        };
        tokio::join!(pump(sink, data, exited), ending);
        assert_eq!(std::fs::read(&path).expect("read"), b"abc");
    }
}
