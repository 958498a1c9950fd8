//! The life of the virtual machine.

use std::fmt;

use crate::diagnosis::Diagnosis;

/// Why a VM is gone; set once, final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEnd {
    /// We told it to stop, or the guest powered itself off after DestroySandbox.
    AskedToStop,
    /// QEMU ended by itself; the text is one line with its last output_tail.
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
    /// QEMU or the guest's loader said why; `output_tail`: how QEMU ended and its last output_tail, for the log.
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
