//! One output stream, from ReadStdout/ReadStderr to its sink.
//!
//! The next read is under way while the last one is being written, never two reads at once. Three
//! chunks at most are held: one read, one waiting, one being written.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    Reading,
    /// The stream answered empty for the first time.
    FirstEnd,
    Finished,
}

/// What a pump tells.
#[derive(Debug)]
pub(crate) struct Signals(watch::Receiver<Progress>);

/// Makes a pump and hands it to `launch`, which runs it.
pub(crate) fn start(sink: Sink, exited: watch::Receiver<bool>, launch: impl FnOnce(Pump)) -> Signals {
    let (progress, signals) = watch::channel(Progress::Reading);
    launch(Pump { sink, exited, progress });
    Signals(signals)
}

impl Signals {
    /// Returns when the stream has answered empty once, or cannot be read any more.
    pub(crate) async fn first_end(&mut self) {
        drop(self.0.wait_for(|p| *p >= Progress::FirstEnd).await);
    }

    /// Returns when everything is written.
    pub(crate) async fn finished(mut self) {
        drop(self.0.wait_for(|p| *p >= Progress::Finished).await);
    }
}

impl Pump {
    /// Copies with `read`, which answers empty at the end of the stream.
    pub(crate) async fn run<F: Future<Output = Result<Vec<u8>>> + Send>(
        mut self,
        read: impl Fn(u32) -> F + Send,
    ) {
        let (chunks, mut waiting) = mpsc::channel::<Vec<u8>>(1);
        let progress = &self.progress;
        let reading = read_all(read, chunks, &mut self.exited, progress);
        let sink = &mut self.sink;
        let writing = async {
            let mut broken = false;
            while let Some(chunk) = waiting.recv().await {
                // A sink that failed takes nothing more; the process must not block on it.
                broken = broken || sink.write_all(&chunk).await.is_err();
            }
        };
        tokio::join!(reading, writing);
        self.progress.send_replace(Progress::Finished);
    }
}

async fn read_all<F: Future<Output = Result<Vec<u8>>> + Send>(
    read: impl Fn(u32) -> F + Send,
    chunks: mpsc::Sender<Vec<u8>>,
    exited: &mut watch::Receiver<bool>,
    progress: &watch::Sender<Progress>,
) {
    let (first_pause, longest) = limits::EMPTY_READ_PAUSE;
    let mut pause = first_pause;
    while let Ok(chunk) = read(limits::READ_BYTES).await {
        if !chunk.is_empty() {
            pause = first_pause;
            if chunks.send(chunk).await.is_err() {
                break;
            }
            continue;
        }
        progress.send_if_modified(|p| std::mem::replace(p, Progress::FirstEnd) == Progress::Reading);
        if !pause_unless_exited(pause, exited).await {
            break;
        }
        pause = (pause * 2).min(longest);
    }
    progress.send_if_modified(|p| std::mem::replace(p, Progress::FirstEnd) == Progress::Reading);
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
        let mut made = None;
        let signals = start(sink, exited, |p| made = Some(p));
        let read = |_| {
            let next = data.lock().expect("lock").pop_front().unwrap_or_default();
            async { Ok(next) }
        };
        made.expect("pump").run(read).await;
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
