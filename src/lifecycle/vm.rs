//! The life of a pod's VM, as a table.
//!
//! ```text
//!   ┌──────────────────────── BootUndone ─────────────────────────┐
//!   ▼                                                             │
//! Absent ── BootAsked ──▶ Booting ── BootDone ──▶ Up ─ VmEnded ─▶ Gone
//!   │                        │                    │               │ ▲
//!   │ StopAsked              │ StopAsked          │ StopAsked     │ │
//!   └───────────┬────────────┴────────────────────┘   StopAsked ──┤ │
//!               ▼                                                 │ │
//!            Stopping ◀───────────────────────────────────────────┘ │
//!               └──────────────────── Stopped ──────────────────────┘
//! ```
//!
//! Gone → Booting (BootAsked) as well: containerd's Task API may create a pod's first container again.
//!
//! | who | moves it by |
//! | --- | --- |
//! | `task::create`, `task::sandbox` | BootAsked |
//! | `pod::launch` | BootDone |
//! | `pod::stop` | StopAsked, Stopped, and BootUndone after a start that failed |
//! | `pod::supervise` | VmEnded |
//!
//! The phase is watched: a second Stop waits until the VM is no longer Stopping, a Stop that cancels a start
//! until it is no longer Booting. Why the VM ended is a [`VmEnd`].

use std::fmt;

use crate::diagnosis::Diagnosis;

/// Where a pod's VM is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum VmPhase {
    /// There was none, or its start failed and was undone.
    #[default]
    Absent,
    /// From the first check of its image until its agent has made the sandbox.
    Booting,
    Up,
    /// It is being ended, and what was made for it removed.
    Stopping,
    /// It has ended: stopped, or by itself. In the latter case a Stop has still to remove what is left.
    Gone,
}

/// What happens to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VmInput {
    BootAsked,
    BootDone,
    /// A start failed, and everything made for it is removed.
    BootUndone,
    StopAsked,
    Stopped,
    /// QEMU has ended, whether asked or not.
    VmEnded,
}

/// One step of the table; None: the input has no place in this phase.
pub(crate) fn next(phase: VmPhase, input: VmInput) -> Option<VmPhase> {
    use VmInput as I;
    use VmPhase as P;
    match (phase, input) {
        (P::Absent | P::Gone, I::BootAsked) => Some(P::Booting),
        (P::Booting, I::BootDone) => Some(P::Up),
        (P::Gone, I::BootUndone) => Some(P::Absent),
        // A Stop that is under way decides.
        (P::Stopping, I::BootUndone) => Some(P::Stopping),

        // A second Stop waits for the first one, and removes what that one could not.
        (P::Absent | P::Booting | P::Up | P::Gone, I::StopAsked) => Some(P::Stopping),
        (P::Stopping, I::Stopped) => Some(P::Gone),

        (P::Up, I::VmEnded) => Some(P::Gone),
        // A boot fails by it, a Stop waits for it, and afterwards it changes nothing.
        (P::Absent | P::Booting | P::Stopping | P::Gone, I::VmEnded) => Some(phase),
        _ => None,
    }
}

/// Why a VM has ended; set once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEnd {
    /// We stopped it, or the guest powered itself off after DestroySandbox.
    AskedToStop,
    /// QEMU ended by itself; the text is one line with the end of its output.
    Exited {
        code: i32,
        text: String,
    },
    Killed {
        signal: i32,
        text: String,
    },
    /// The guest kernel panicked.
    Panicked {
        text: String,
    },
    /// QEMU or the guest's loader said why; `output_tail`: how QEMU ended and the end of its output, for the log.
    Explained {
        diagnosis: Diagnosis,
        output_tail: String,
    },
}

impl fmt::Display for VmEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AskedToStop => write!(f, "the VM was stopped"),
            Self::Exited { code, text } => write!(f, "QEMU ended with exit code {code}: {text}"),
            Self::Killed { signal, text } => write!(f, "QEMU was killed by signal {signal}: {text}"),
            Self::Panicked { text } => write!(f, "the guest kernel panicked: {text}"),
            Self::Explained { diagnosis, .. } => diagnosis.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [VmPhase; 5] =
        [VmPhase::Absent, VmPhase::Booting, VmPhase::Up, VmPhase::Stopping, VmPhase::Gone];
    const INPUTS: [VmInput; 6] = [
        VmInput::BootAsked,
        VmInput::BootDone,
        VmInput::BootUndone,
        VmInput::StopAsked,
        VmInput::Stopped,
        VmInput::VmEnded,
    ];

    #[test]
    fn the_whole_table_is_as_reviewed() {
        let mut text = String::new();
        for phase in PHASES {
            for input in INPUTS {
                let to = next(phase, input).map_or("refused".to_owned(), |to| format!("{to:?}"));
                text += &format!("{phase:?} {input:?}: {to}\n");
            }
        }
        let golden = include_str!("testdata/vm.table");
        assert!(text == golden, "the table has changed:\n{text}");
    }

    proptest::proptest! {
        /// In any order of events: a VM is up only after a boot that nothing has ended since, nothing
        /// is left half way after a Stop, and each phase can still be stopped.
        #[test]
        fn a_vm_is_up_only_between_its_boot_and_its_end(
            inputs in proptest::collection::vec(0..INPUTS.len(), 0..64)
        ) {
            let (mut phase, mut booted) = (VmPhase::default(), false);
            for input in inputs.into_iter().map(|at| INPUTS[at]) {
                let Some(to) = next(phase, input) else { continue };
                match input {
                    VmInput::BootDone => booted = true,
                    VmInput::BootAsked | VmInput::StopAsked | VmInput::VmEnded => booted = false,
                    VmInput::BootUndone | VmInput::Stopped => {}
                }
                proptest::prop_assert_eq!(to == VmPhase::Up, booted, "{:?} by {:?} to {:?}", phase, input, to);
                if to != phase && phase == VmPhase::Stopping {
                    proptest::prop_assert_eq!(input, VmInput::Stopped);
                }
                phase = to;
            }
            if phase != VmPhase::Stopping {
                phase = next(phase, VmInput::StopAsked).expect("can be stopped");
            }
            proptest::prop_assert_eq!(next(phase, VmInput::Stopped), Some(VmPhase::Gone));
        }
    }
}
