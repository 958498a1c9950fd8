//! QEMU's end (exit status, stderr, console, events) to what it means: pure.

use crate::host::spawn::Ended;
use crate::lifecycle::vm::VmEnd;

/// What is known when QEMU has ended.
#[derive(Debug)]
pub struct Evidence {
    pub ended: Ended,
    /// We asked for the end (quit, kill, DestroySandbox).
    pub asked: bool,
    /// The guest asked for it: `SHUTDOWN` with this reason.
    pub guest_shutdown: Option<String>,
    pub panic: Option<String>,
    /// Last lines of QEMU's stderr and of the guest console.
    pub stderr: Vec<String>,
    pub console: Vec<String>,
}

/// The end, with its last words in one line.
pub fn diagnose(evidence: &Evidence) -> VmEnd {
    if evidence.asked {
        return VmEnd::AskedToStop;
    }
    let mut words = Vec::new();
    if !evidence.stderr.is_empty() {
        words.push(format!("stderr: {}", evidence.stderr.join(" | ")));
    }
    if let Some(reason) = &evidence.guest_shutdown {
        words.push(format!("the guest ended itself ({reason})"));
    }
    if !evidence.console.is_empty() {
        words.push(format!("console: {}", evidence.console.join(" | ")));
    }
    let text = if words.is_empty() { "it left no message".to_owned() } else { words.join("; ") };
    if let Some(panic) = &evidence.panic {
        return VmEnd::Panicked { text: format!("{panic}; {text}") };
    }
    match evidence.ended {
        Ended::Code(code) => VmEnd::Exited { code, text },
        Ended::Signal(signal) => VmEnd::Killed { signal, text },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(ended: Ended) -> Evidence {
        Evidence { ended, asked: false, guest_shutdown: None, panic: None, stderr: vec![], console: vec![] }
    }

    #[test]
    fn the_last_words_are_in_the_text() {
        let e = Evidence {
            stderr: vec!["qemu: could not load kernel '/x'".into()],
            console: vec!["Booting".into(), "oops".into()],
            ..evidence(Ended::Code(1))
        };
        assert_eq!(
            diagnose(&e).to_string(),
            "QEMU ended with exit code 1: stderr: qemu: could not load kernel '/x'; console: Booting | oops"
        );
        assert_eq!(
            diagnose(&evidence(Ended::Signal(11))).to_string(),
            "QEMU was killed by signal 11: it left no message"
        );
        let asked = Evidence { asked: true, ..evidence(Ended::Signal(9)) };
        assert_eq!(diagnose(&asked), VmEnd::AskedToStop);
    }
}
