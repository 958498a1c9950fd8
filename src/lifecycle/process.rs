//! The life of one process (init or exec), as a table.
//!
//! The transitional phases are what keeps two operations on one process apart. An input that has
//! no place in a phase is an error value that carries both, never a panic.

use crate::error::{Code, Error};
use crate::ids::ProcessId;

/// Where a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Create is at work (init processes only).
    Creating,
    /// Created (init), or added (exec): known, not started.
    Created,
    Starting,
    Running,
    Paused,
    Exited,
    /// Delete is at work.
    Deleting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Init,
    Exec,
}

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Create has succeeded.
    CreateDone,
    StartAsked,
    Started,
    /// It ended, or the agent refused to start it.
    Exited,
    VmEnded,
    KillAsked,
    DeleteAsked,
    /// Delete failed and may be asked again.
    DeleteFailed,
}

/// What is told to containerd; init or exec makes the difference outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emit {
    Create,
    Start,
    Exit,
}

/// An input that has no place in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub code: Code,
    pub phase: Phase,
    pub input: Input,
}

impl Kind {
    pub fn first_phase(self) -> Phase {
        match self {
            Self::Init => Phase::Creating,
            Self::Exec => Phase::Created,
        }
    }
}

/// One step of the table.
pub fn next(kind: Kind, phase: Phase, input: Input) -> Result<(Phase, &'static [Emit]), Refused> {
    use Input as I;
    use Phase as P;
    const NONE: &[Emit] = &[];
    let refuse = |code| Err(Refused { code, phase, input });
    match (phase, input) {
        (P::Creating, I::CreateDone) => Ok((P::Created, &[Emit::Create])),
        // KillAsked waits for Create outside of the table; DeleteAsked cancels it.
        (P::Creating, I::DeleteAsked | I::KillAsked) => Ok((P::Creating, NONE)),

        (P::Created, I::StartAsked) => Ok((P::Starting, NONE)),
        (P::Created, I::KillAsked) if kind == Kind::Init => Ok((P::Created, NONE)),
        (P::Created, I::DeleteAsked) => Ok((P::Deleting, NONE)),
        (P::Created | P::Starting, I::Exited | I::VmEnded) => {
            Ok((P::Exited, if kind == Kind::Init { &[Emit::Exit] } else { NONE }))
        }

        (P::Starting, I::Started) => Ok((P::Running, &[Emit::Start])),
        (P::Starting, I::KillAsked) => Ok((P::Starting, NONE)),

        (P::Running | P::Paused, I::Exited | I::VmEnded) => Ok((P::Exited, &[Emit::Exit])),
        (P::Running | P::Paused, I::KillAsked) => Ok((phase, NONE)),

        (P::Exited | P::Deleting, I::Exited | I::VmEnded) => Ok((phase, NONE)), // the first end wins
        (P::Exited | P::Deleting, I::KillAsked) => refuse(Code::NotFound),
        (P::Exited, I::DeleteAsked) => Ok((P::Deleting, NONE)),

        (P::Deleting, I::StartAsked) => refuse(Code::NotFound),
        (P::Deleting, I::DeleteFailed) => Ok((P::Exited, NONE)),
        _ => refuse(Code::FailedPrecondition),
    }
}

impl Refused {
    /// The refusal of an operation on process `id`, in words.
    pub fn of(self, id: &ProcessId) -> Error {
        let is = match self.phase {
            Phase::Creating => "is still being created",
            Phase::Created => "is not started",
            Phase::Starting => "is being started",
            Phase::Running => "is running",
            Phase::Paused => "is paused",
            Phase::Exited => "has finished",
            Phase::Deleting => "is being deleted",
        };
        let cannot = match self.input {
            Input::StartAsked => "cannot be started",
            Input::KillAsked => "cannot be signalled",
            Input::DeleteAsked => "cannot be deleted",
            Input::CreateDone | Input::Started | Input::Exited | Input::VmEnded | Input::DeleteFailed => {
                "met an event out of order (a bug of the shim)"
            }
        };
        // Callers look for these words in the text, beside the code.
        let known = match (self.code, self.phase) {
            (Code::NotFound, _) => "process already finished: ",
            _ => "",
        };
        Error::new(self.code, format!("{known}{id} {is} and {cannot}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 2] = [Kind::Init, Kind::Exec];
    const PHASES: [Phase; 7] = [
        Phase::Creating,
        Phase::Created,
        Phase::Starting,
        Phase::Running,
        Phase::Paused,
        Phase::Exited,
        Phase::Deleting,
    ];
    const INPUTS: [Input; 8] = [
        Input::CreateDone,
        Input::StartAsked,
        Input::Started,
        Input::Exited,
        Input::VmEnded,
        Input::KillAsked,
        Input::DeleteAsked,
        Input::DeleteFailed,
    ];

    #[test]
    fn the_whole_table_is_as_reviewed() {
        let mut text = String::new();
        for kind in KINDS {
            for phase in PHASES {
                for input in INPUTS {
                    let result = match next(kind, phase, input) {
                        Ok((to, emits)) => format!("{to:?} {emits:?}"),
                        Err(refused) => format!("{:?}", refused.code),
                    };
                    text += &format!("{kind:?} {phase:?} {input:?}: {result}\n");
                }
            }
        }
        let golden = include_str!("testdata/process.table");
        assert!(text == golden, "the table has changed:\n{text}");
    }

    /// A small generator of its own: the same sequences on every machine.
    fn numbers(mut seed: u64) -> impl FnMut(usize) -> usize {
        move |below| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % below as u64).expect("small")
        }
    }

    #[test]
    fn random_lives_keep_the_order_and_exit_once() {
        let mut number = numbers(0x5eed);
        for _ in 0..100_000 {
            let kind = KINDS[number(2)];
            let (mut phase, mut told) = (kind.first_phase(), Vec::new());
            for _ in 0..number(24) {
                if let Ok((to, emits)) = next(kind, phase, INPUTS[number(INPUTS.len())]) {
                    told.extend_from_slice(emits);
                    phase = to;
                }
            }
            let wanted: &[&[Emit]] = &[
                &[],
                &[Emit::Create],
                &[Emit::Start],
                &[Emit::Create, Emit::Exit],
                &[Emit::Start, Emit::Exit],
                &[Emit::Create, Emit::Start],
                &[Emit::Create, Emit::Start, Emit::Exit],
            ];
            assert!(wanted.contains(&told.as_slice()), "{kind:?}: {told:?}");
        }
    }
}
