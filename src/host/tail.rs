//! The last bytes of a text stream (stderr, guest console): bounded, and escaped when quoted.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::error::one_line;
use crate::limits;
use crate::mutex::lock;

/// The last bytes of a stream; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    /// Reads a stream to its end. It never stops reading, so that the writer never stalls.
    pub(crate) async fn read_from(&self, mut stream: impl AsyncRead + Unpin) {
        let mut chunk = [0_u8; 4096];
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            self.add(chunk.get(..count).unwrap_or_default());
        }
    }

    /// Adds what was read; the oldest bytes are dropped above the bound.
    pub(crate) fn add(&self, bytes: &[u8]) {
        let mut kept = lock(&self.0);
        kept.extend_from_slice(bytes);
        let over = kept.len().saturating_sub(limits::qemu::TAIL_BYTES);
        kept.drain(..over);
    }

    /// The last `count` lines that are not empty, oldest first, printable and bounded.
    pub(crate) fn last_lines(&self, count: usize) -> Vec<String> {
        let kept = lock(&self.0);
        let text = String::from_utf8_lossy(&kept);
        let mut lines: Vec<String> = text
            .split(['\n', '\r'])
            .rev()
            .map(|line| {
                one_line(&line.chars().take(limits::text::FOREIGN_TEXT_BYTES / 8).collect::<String>())
            })
            .filter(|line| !line.is_empty())
            .take(count)
            .collect();
        lines.reverse();
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_is_kept_and_quoted_without_control_characters() {
        let tail = Tail::default();
        for n in 0..20_000 {
            tail.add(format!("line {n}\r\n").as_bytes());
        }
        tail.add(b"\x1b[31mred\xff\n\n");
        assert!(tail.0.lock().expect("lock").len() <= limits::qemu::TAIL_BYTES);
        assert_eq!(tail.last_lines(2), vec!["line 19999", "\\u{1b}[31mred\u{fffd}"]);
    }
}
