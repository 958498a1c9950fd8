//! One monitor per process: its streams to their end, then its exit, in this order.
//!
//! The agent throws unread output away when WaitProcess answers, and no call reports that a process
//! ended without taking its output. So both streams are read to their first empty answer, then
//! WaitProcess is called, and the pumps go on reading, ever slower, until it answers: a policy
//! that hides output makes every answer empty, and the process must not block on a full pipe. Output
//! without a reader cannot be read to its end: then the exit is asked for all the same.

use std::sync::Arc;
use std::time::SystemTime;

use slog::{info, warn};
use tokio::sync::watch as channel;
use tokio::time::timeout;

use crate::agent::calls::OutputStream;
use crate::error::{Code, Error, Result};
use crate::host::tasks;
use crate::ids::{ContainerId, ProcessId};
use crate::lifecycle::process::{Input, Phase};
use crate::limits;
use crate::pod::Pod;
use crate::pod::guest::Guest;
use crate::pod::request::StdioPaths;
use crate::pod::state::KILLED;
use crate::pod::state::SIGKILL;
use crate::stdio::pump::{self, PumpHandle};
use crate::stdio::sink::Sink;
use crate::stdio::stdin::{self, Stdin};

/// A process' opened streams, on the client's side.
#[derive(Debug)]
pub(crate) struct Streams {
    stdin: Option<Stdin>,
    stdout: Sink,
    stderr: Option<Sink>,
    /// The client named no stdin, and no terminal gives it one.
    no_input: bool,
    close_stdin: channel::Receiver<bool>,
    killed: channel::Receiver<bool>,
    /// Closed when the process is no longer known.
    deleted: channel::Receiver<Phase>,
}

impl Streams {
    /// Opens what the client named; never waits for its other end.
    pub(crate) async fn open(pod: &Pod, id: &ProcessId, paths: &StdioPaths) -> Result<Self> {
        let (close_stdin, killed, deleted) = {
            let state = pod.lock();
            let process = state.process(id)?;
            (process.close_stdin.subscribe(), process.killed.subscribe(), process.phases())
        };
        let (stdout, stderr) = Sink::open_pair(
            &paths.stdout,
            &paths.stderr,
            id.container.as_str(),
            pod.parts.namespace.as_str(),
            pod.log(),
        )
        .await?;
        Ok(Self {
            stdin: Stdin::open(&paths.stdin)?,
            stdout,
            stderr: (!paths.terminal).then_some(stderr),
            no_input: paths.stdin.is_empty() && !paths.terminal,
            close_stdin,
            killed,
            deleted,
        })
    }
}

/// Lives as long as the process; records its end once.
pub(crate) async fn watch(pod: Arc<Pod>, guest: Arc<Guest>, id: ProcessId, streams: Streams) {
    let exited = channel::Sender::new(false);
    let deleted = || streams.deleted.clone();
    let mut pumps = vec![copy(&guest, &id, OutputStream::Stdout, streams.stdout, &exited, deleted())];
    if let Some(sink) = streams.stderr {
        pumps.push(copy(&guest, &id, OutputStream::Stderr, sink, &exited, deleted()));
    }
    if let Some(input) = streams.stdin {
        let (guest, id) = (Arc::clone(&guest), id.clone());
        let mut gone = exited.subscribe();
        tasks::detach(async move {
            let write = |data| guest.agent.write_stdin(&id, data);
            let copy = stdin::copy(input, streams.close_stdin, write, guest.agent.close_stdin(&id));
            tokio::select! {
                () = copy => {}
                _ = gone.wait_for(|yes| *yes) => {}
            }
        });
    }
    if streams.no_input {
        let (guest, id) = (Arc::clone(&guest), id.clone());
        // Its input is at its end, as if it were /dev/null. A policy may refuse that: then it stays open.
        tasks::detach(async move {
            guest.agent.close_stdin(&id).await.ok();
        });
    }
    let (status, input) = match wait_for_end(&guest, &id, &mut pumps, streams.killed).await {
        Ok(status) => (status, Input::Exited),
        Err(e) => {
            if guest.vm.gone().borrow().is_none() {
                lost(&pod, &guest, &id, e).await;
            }
            (KILLED, Input::VmEnded)
        }
    };
    let at = SystemTime::now();
    exited.send_replace(true);
    let draining = async {
        for pump in &mut pumps {
            pump.handle.finished().await;
        }
    };
    let oom = async {
        if id.exec.is_none() && input == Input::Exited && status == KILLED {
            pod.await_oom(&id.container).await;
        }
    };
    let message = async {
        if id.exec.is_none() && input == Input::Exited {
            pod.bring_message(&guest, &id.container).await;
        }
    };
    let execs = async {
        if id.exec.is_none() {
            end_execs(&pod, &id.container).await;
        }
    };
    let own = async {
        tokio::select! {
            _ = async { tokio::join!(timeout(limits::stdio::OUTPUT_DRAIN, draining), oom, message) } => {}
            () = pod.shutting_down() => {}
        }
    };
    let ((), _execs) = tokio::join!(own, timeout(limits::stdio::OUTPUT_DRAIN, execs));
    if pumps.iter().any(|pump| !pump.task.is_finished()) {
        warn!(pod.log(), "{}: its output has no reader; the rest is dropped", id);
    }
    info!(pod.log(), "{} exited", id; "status" => status);
    pod.end_process(&id, input, status, at);
}

/// A container ends with its first process; callers delete it then and want the exits of its other processes
/// before. In a pid namespace of the container's own they are dead already.
async fn end_execs(pod: &Arc<Pod>, container: &ContainerId) {
    let running: Vec<_> = {
        let state = pod.lock();
        let Ok(known) = state.container(container) else { return };
        let live =
            known.execs.iter().filter(|(_, exec)| matches!(exec.phase(), Phase::Starting | Phase::Running));
        live.map(|(id, exec)| (id.clone(), exec.exit_watch())).collect()
    };
    for (exec, _) in &running {
        let (pod, id) =
            (Arc::clone(pod), ProcessId { container: container.clone(), exec: Some(exec.clone()) });
        tasks::detach(async move {
            pod.kill(&id, SIGKILL, false).await.ok();
        });
    }
    for (_, mut exit) in running {
        exit.wait_for(Option::is_some).await.ok();
    }
}

/// One stream being copied; ended with this.
struct Copying {
    handle: PumpHandle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The process' status, once both streams had their end; earlier, and in short waits, while one of
/// them is stuck.
async fn wait_for_end(
    guest: &Guest,
    id: &ProcessId,
    pumps: &mut [Copying],
    mut killed: channel::Receiver<bool>,
) -> Result<u32> {
    loop {
        let mut stuck = Vec::new();
        for pump in pumps.iter_mut() {
            if !pump.handle.first_end(&mut killed).await {
                stuck.push(&pump.handle);
            }
        }
        if stuck.is_empty() {
            return guest.agent.wait_process(id).await;
        }
        // What such a stream still holds keeps the process from ending while this is under way.
        let held: Option<Vec<_>> = stuck.iter().map(|handle| handle.hold_back()).collect();
        if held.is_none() {
            continue;
        }
        if let Some(status) = guest.agent.wait_process_shortly(id).await? {
            return Ok(status);
        }
        // The guest counts the same time from a little later.
        tokio::time::sleep(limits::stdio::STUCK_WAIT).await;
        drop(held);
        tokio::time::sleep(limits::stdio::STUCK_PAUSE).await;
    }
}

/// What ends with a process whose end the guest does not tell, and which cannot be known otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// The guest knows no such process: it has ended.
    Nothing,
    /// An exec, whose WaitProcess alone a policy may refuse.
    Exec,
    /// A container whose end is never told, or a guest that cannot be asked, is of no use.
    Vm,
}

impl Lost {
    fn by(e: &Error, id: &ProcessId) -> Self {
        match e.code() {
            Code::NotFound => Self::Nothing,
            Code::Unavailable | Code::DeadlineExceeded => Self::Vm,
            _ if id.exec.is_none() => Self::Vm,
            _ => Self::Exec,
        }
    }
}

async fn lost(pod: &Arc<Pod>, guest: &Guest, id: &ProcessId, e: Error) {
    let what = Lost::by(&e, id);
    let e = e.context(id);
    match what {
        Lost::Nothing => warn!(pod.log(), "{}", e),
        Lost::Vm => guest.kill_because(pod.log(), &e),
        Lost::Exec => {
            warn!(pod.log(), "{}: its end cannot be known: it is killed", e);
            match pod.kill(id, SIGKILL, false).await {
                Err(e) if e.code() != Code::NotFound => {
                    warn!(pod.log(), "{} may run on in the guest: {}", id, e);
                }
                _ => {}
            }
        }
    }
}

fn copy(
    guest: &Arc<Guest>,
    id: &ProcessId,
    stream: OutputStream,
    sink: Sink,
    exited: &channel::Sender<bool>,
    mut deleted: channel::Receiver<Phase>,
) -> Copying {
    let (guest, id) = (Arc::clone(guest), id.clone());
    let (pump, handle) = pump::new(sink, exited.subscribe());
    let task = tasks::spawn(async move {
        let sink = pump.run(|len| guest.agent.read_output(&id, stream, len)).await;
        // A client that begins to read after the exit finds what the pipe holds, until Delete.
        tasks::detach(sink.linger(async move {
            deleted.wait_for(|_phase| false).await.ok();
        }));
    });
    Copying { handle, task }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ExecId;

    #[test]
    fn only_an_exec_ends_when_a_guest_refuses_to_tell_its_end() {
        let init = ProcessId::init(ContainerId::parse("c1").expect("id"));
        let exec = ProcessId { exec: Some(ExecId::parse("e1").expect("id")), ..init.clone() };
        for (code, of_exec, of_init) in [
            (Code::PermissionDenied, Lost::Exec, Lost::Vm),
            (Code::Unimplemented, Lost::Exec, Lost::Vm),
            (Code::Internal, Lost::Exec, Lost::Vm),
            (Code::Unavailable, Lost::Vm, Lost::Vm),
            (Code::DeadlineExceeded, Lost::Vm, Lost::Vm),
            (Code::NotFound, Lost::Nothing, Lost::Nothing),
        ] {
            let e = Error::new(code, "x");
            assert_eq!((Lost::by(&e, &exec), Lost::by(&e, &init)), (of_exec, of_init), "{code:?}");
        }
    }
}
