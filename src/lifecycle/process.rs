//! The life of one process (init or exec), as a table.
//!
//! The transitional phases are what keeps two operations on one process apart. An input that has
//! no place in a phase is an error value that carries both, never a panic.

use crate::error::{Code, Error};
use crate::ids::ProcessId;

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Create is under way (init processes only).
    Creating,
    /// Created (init), or added (exec): known, not started.
    Created,
    Starting,
    Running,
    /// Pause is under way.
    Pausing,
    Paused,
    /// Resume is under way.
    Resuming,
    Exited,
    /// Delete is under way.
    Deleting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Init,
    Exec,
}

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Create has succeeded.
    CreateDone,
    StartAsked,
    Started,
    /// It ended, or the agent refused to start it.
    Exited,
    VmEnded,
    KillAsked,
    PauseAsked,
    PauseDone,
    /// Pause failed and was undone.
    PauseFailed,
    ResumeAsked,
    ResumeDone,
    ResumeFailed,
    UpdateAsked,
    StatsAsked,
    DeleteAsked,
    /// Delete failed and may be asked again.
    DeleteFailed,
}

/// An event for containerd; which one exactly also depends on init or exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Emit {
    Create,
    Start,
    Pause,
    Resume,
    Exit,
}

/// An input that has no place in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InvalidTransition {
    pub code: Code,
    pub phase: Phase,
    pub input: Input,
}

impl Kind {
    pub(crate) fn first_phase(self) -> Phase {
        match self {
            Self::Init => Phase::Creating,
            Self::Exec => Phase::Created,
        }
    }
}

/// One step of the table.
pub(crate) fn next(
    kind: Kind,
    phase: Phase,
    input: Input,
) -> Result<(Phase, &'static [Emit]), InvalidTransition> {
    use Input as I;
    use Phase as P;
    const NONE: &[Emit] = &[];
    let refuse = |code| Err(InvalidTransition { code, phase, input });
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

        (P::Running, I::PauseAsked) => Ok((P::Pausing, NONE)),
        (P::Pausing, I::PauseDone) => Ok((P::Paused, &[Emit::Pause])),
        (P::Pausing, I::PauseFailed) => Ok((P::Running, NONE)),
        (P::Paused, I::ResumeAsked) => Ok((P::Resuming, NONE)),
        (P::Resuming, I::ResumeDone) => Ok((P::Running, &[Emit::Resume])),
        (P::Resuming, I::ResumeFailed) => Ok((P::Paused, NONE)),

        (P::Running | P::Pausing | P::Paused | P::Resuming, I::Exited | I::VmEnded) => {
            Ok((P::Exited, &[Emit::Exit]))
        }
        (P::Running | P::Pausing | P::Paused | P::Resuming, I::KillAsked) => Ok((phase, NONE)),

        (
            P::Created | P::Starting | P::Running | P::Pausing | P::Paused | P::Resuming,
            I::UpdateAsked | I::StatsAsked,
        ) => Ok((phase, NONE)),
        // Callers take it for a process that ended in between, and go on.
        (P::Exited | P::Deleting, I::UpdateAsked | I::StatsAsked) => refuse(Code::NotFound),

        (P::Exited | P::Deleting, I::Exited | I::VmEnded) => Ok((phase, NONE)), // the first end wins
        (P::Exited | P::Deleting, I::KillAsked) => refuse(Code::NotFound),
        (P::Exited, I::DeleteAsked) => Ok((P::Deleting, NONE)),

        // What it was asked for before its end has failed by that, or is not wanted any more.
        (P::Exited | P::Deleting, I::PauseFailed | I::ResumeFailed) => Ok((phase, NONE)),
        (
            P::Deleting,
            I::StartAsked | I::Started | I::PauseAsked | I::PauseDone | I::ResumeAsked | I::ResumeDone,
        ) => refuse(Code::NotFound),
        (P::Deleting, I::DeleteFailed) => Ok((P::Exited, NONE)),
        _ => refuse(Code::FailedPrecondition),
    }
}

impl InvalidTransition {
    /// The refusal of an operation on process `id`, in words.
    pub(crate) fn of(self, id: &ProcessId) -> Error {
        let is = match self.phase {
            Phase::Creating => "is still being created",
            Phase::Created => "is not started",
            Phase::Starting => "is being started",
            Phase::Running => "is running",
            Phase::Pausing => "is being paused",
            Phase::Paused => "is paused",
            Phase::Resuming => "is being resumed",
            Phase::Exited => "has finished",
            Phase::Deleting => "is being deleted",
        };
        let ended = matches!(self.phase, Phase::Exited | Phase::Deleting);
        let cannot = match self.input {
            Input::StartAsked => "cannot be started",
            Input::KillAsked => "cannot be signalled",
            Input::PauseAsked => "cannot be paused",
            Input::ResumeAsked => "cannot be resumed",
            // It ended while the guest did what was asked for.
            Input::Started if ended => "cannot be started",
            Input::PauseDone if ended => "cannot be paused",
            Input::ResumeDone if ended => "cannot be resumed",
            Input::UpdateAsked => "cannot be updated",
            Input::StatsAsked => "has no statistics",
            Input::DeleteAsked => "cannot be deleted",
            Input::CreateDone
            | Input::Started
            | Input::Exited
            | Input::VmEnded
            | Input::PauseDone
            | Input::PauseFailed
            | Input::ResumeDone
            | Input::ResumeFailed
            | Input::DeleteFailed => "met an event out of order (a bug of the shim)",
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
    const PHASES: [Phase; 9] = [
        Phase::Creating,
        Phase::Created,
        Phase::Starting,
        Phase::Running,
        Phase::Pausing,
        Phase::Paused,
        Phase::Resuming,
        Phase::Exited,
        Phase::Deleting,
    ];
    const INPUTS: [Input; 16] = [
        Input::CreateDone,
        Input::StartAsked,
        Input::Started,
        Input::Exited,
        Input::VmEnded,
        Input::KillAsked,
        Input::PauseAsked,
        Input::PauseDone,
        Input::PauseFailed,
        Input::ResumeAsked,
        Input::ResumeDone,
        Input::ResumeFailed,
        Input::UpdateAsked,
        Input::StatsAsked,
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

    /// A process may end, or be deleted, while the guest does what was asked for.
    #[test]
    fn an_end_during_a_call_is_no_bug() {
        let id = ProcessId::init(crate::ids::ContainerId::parse("c1").expect("id"));
        let calls = [
            (Input::StartAsked, Input::Started, None),
            (Input::PauseAsked, Input::PauseDone, Some(Input::PauseFailed)),
            (Input::ResumeAsked, Input::ResumeDone, Some(Input::ResumeFailed)),
        ];
        for phase in [Phase::Exited, Phase::Deleting] {
            for (asked, done, failed) in calls {
                let answer =
                    |input| next(Kind::Init, phase, input).expect_err("has ended").of(&id).to_string();
                assert_eq!(answer(done), answer(asked), "as if it had come after the end");
                assert!(!answer(done).contains("bug"), "{}", answer(done));
                if let Some(failed) = failed {
                    assert_eq!(next(Kind::Init, phase, failed), Ok((phase, &[] as &[Emit])));
                }
            }
        }
    }

    /// A small generator: the same sequences on every machine.
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
            let (mut phase, mut emitted) = (kind.first_phase(), Vec::new());
            for _ in 0..number(48) {
                if let Ok((to, emits)) = next(kind, phase, INPUTS[number(INPUTS.len())]) {
                    emitted.extend_from_slice(emits);
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
            let pauses = |e: &Emit| matches!(e, Emit::Pause | Emit::Resume);
            let ends: Vec<Emit> = emitted.iter().copied().filter(|e| !pauses(e)).collect();
            assert!(wanted.contains(&ends.as_slice()), "{kind:?}: {emitted:?}");
            // Pauses are between start and exit, and alternate with resumes.
            let first = emitted.iter().position(pauses).unwrap_or(emitted.len());
            let between = &emitted[first..emitted.iter().rposition(pauses).map_or(first, |last| last + 1)];
            assert!(between.iter().step_by(2).all(|e| *e == Emit::Pause), "{kind:?}: {emitted:?}");
            assert!(between.iter().skip(1).step_by(2).all(|e| *e == Emit::Resume), "{kind:?}: {emitted:?}");
            assert!(between.is_empty() || emitted[first - 1] == Emit::Start, "{kind:?}: {emitted:?}");
        }
    }
}
