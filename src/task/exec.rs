//! Task.Exec: registers an additional process; Task.Start runs it.

use crate::error::{Error, Result};
use crate::failpoint::{Step, hit};
use crate::ids::ProcessId;
use crate::lifecycle::process::Phase;
use crate::oci::guest_spec::guest_process;
use crate::oci::spec::parse_process;
use crate::pod::Pod;
use crate::pod::event::Event;
use crate::pod::request::ExecRequest;
use crate::pod::state::Process;
use crate::pod::state::no_container;

/// A frozen container would freeze the new process, too, before it could be waited for.
pub(crate) fn paused(id: &ProcessId) -> Error {
    Error::precondition(format!("{id}: container {} is paused: resume it first", id.container))
}

impl Pod {
    /// Registers an exec after checking what it is to run.
    pub(crate) fn exec(&self, request: ExecRequest) -> Result<()> {
        let ExecRequest { container, exec, process, stdio } = request;
        let id = ProcessId { container: container.clone(), exec: Some(exec.clone()) };
        let process = guest_process(parse_process(&process)?, stdio.terminal);
        let mut state = self.lock();
        let known = state.containers.get_mut(&container).ok_or_else(|| no_container(&container))?;
        match known.init.phase() {
            Phase::Created | Phase::Starting | Phase::Running => {}
            Phase::Pausing | Phase::Paused | Phase::Resuming => return Err(paused(&id)),
            Phase::Creating | Phase::Exited | Phase::Deleting => {
                return Err(Error::precondition(format!("{id}: container {container} is not running")));
            }
        }
        // The agent keeps init and execs in one space of names.
        if known.execs.contains_key(&exec) || exec.as_str() == container.as_str() {
            return Err(Error::already_exists(format!("{id}: exists already")));
        }
        known.execs.insert(exec.clone(), Process::exec(stdio, process));
        self.events.push(Event::ExecAdded { id: container, exec });
        drop(state);
        hit(Step::ExecMade)
    }
}
