//! The last bytes of a text stream (stderr, guest console): bounded, and escaped when quoted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::error::one_line;
use crate::limits;
use crate::mutex::lock;

/// The last bytes of a stream; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail {
    kept: Arc<Mutex<VecDeque<u8>>>,
    of_kernel_only: Arc<AtomicBool>,
}

/// How the kernel's lines begin about a panic, an end for want of memory, a fault of its own, or a stall
/// (Linux: kernel/panic.c, mm/oom_kill.c, arch/s390/kernel/dumpstack.c, kernel/watchdog.c,
/// kernel/hung_task.c).
const KERNEL_LINES: [&str; 12] = [
    "Kernel panic - ",
    "---[ end Kernel panic - ",
    "Out of memory: ",
    "Memory cgroup out of memory: ",
    "Kernel stack overflow",
    "Unable to handle kernel ",
    "Oops: ",
    "BUG: ",
    "kernel BUG at ",
    "watchdog: BUG: ",
    "rcu: INFO: ",
    "INFO: task ",
];

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
        let mut kept = lock(&self.kept);
        kept.extend(bytes);
        let over = kept.len().saturating_sub(limits::qemu::TAIL_BYTES);
        kept.drain(..over);
    }

    /// From now on nothing is quoted but what a kernel says about its end: programs of the guest write here,
    /// too, and the agent writes whole containers, with the secrets in their environment.
    pub(crate) fn quote_only_kernel(&self) {
        self.of_kernel_only.store(true, Ordering::Relaxed);
    }

    /// The last `count` lines that are not empty, oldest first, printable and bounded.
    pub(crate) fn last_lines(&self, count: usize) -> Vec<String> {
        let mut kept = lock(&self.kept);
        let text = String::from_utf8_lossy(kept.make_contiguous());
        let all = !self.of_kernel_only.load(Ordering::Relaxed);
        let mut lines: Vec<String> = text
            .split(['\n', '\r'])
            .rev()
            .filter(|line| all || is_of_kernel(line))
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

/// The time of printk in front (`[    1.234567]`, and `[    T1]` of some kernels) is optional; nothing else
/// may be.
fn is_of_kernel(line: &str) -> bool {
    let mut text = line.trim_start();
    while let Some((time, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        if !time.chars().all(|c| matches!(c, '0'..='9' | '.' | ' ' | 'T' | 'C')) {
            break;
        }
        text = rest.trim_start();
    }
    KERNEL_LINES.iter().any(|begin| text.starts_with(begin))
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
        assert!(tail.kept.lock().expect("lock").len() <= limits::qemu::TAIL_BYTES);
        assert_eq!(tail.last_lines(2), vec!["line 19999", "\\u{1b}[31mred\u{fffd}"]);
    }

    #[test]
    fn what_programs_of_the_guest_write_is_not_quoted_once_there_are_containers() {
        const SPEC: &str = "Process { env: [\"PASSWORD=MARKER\", \"X=[ 1.0] Kernel panic - MARKER\"] }";
        let tail = Tail::default();
        tail.add(format!("{SPEC}\n[    1.5] kata-agent[77]: {SPEC}\n").as_bytes());
        assert_eq!(tail.last_lines(9).len(), 2, "a guest that boots may say anything");
        tail.quote_only_kernel();
        assert_eq!(tail.last_lines(9), Vec::<String>::new());
        let kernel = [
            "[  123.000001] Memory cgroup out of memory: Killed process 9 (java) total-vm:1kB",
            "[  123.000002][    T1] Kernel panic - not syncing: Attempted to kill init!",
            "Out of memory: Killed process 7 (init)",
        ];
        for line in kernel {
            tail.add(format!("{{\"msg\":\"{SPEC}\"}}\r\n{line}\r\n[MARKER] Oops: MARKER\n").as_bytes());
        }
        assert_eq!(tail.last_lines(9), kernel);
    }
}
