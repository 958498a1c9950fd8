//! Sends the pod's events to containerd in order, and repeats each until containerd has accepted it.

use std::sync::Arc;
use std::time::SystemTime;

use containerd_shim_protos::events::task as pb;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::EventsClient;
use containerd_shim_protos::topics;
use slog::warn;
use tokio::time::sleep;
use ttrpc::r#async::Client;

use crate::error::{Context, Error, Result};
use crate::ids::Namespace;
use crate::limits;
use crate::pod::Pod;
use crate::pod::event::Event;
use crate::pod::request::StdioPaths;
use crate::shim::convert::{mount, timestamp};

/// Runs until the queue is closed and empty. Without an address (CRI-O) events are discarded.
pub(crate) async fn send(pod: Arc<Pod>, address: Option<String>, namespace: Namespace) {
    let mut client = None;
    let (first_pause, longest) = limits::shim::EVENT_RETRY;
    let mut pause = first_pause;
    while let Some(event) = pod.events.head().await {
        if let Some(address) = &address {
            if let Err(e) = forward(&mut client, address, &namespace, &event).await {
                client = None;
                if pause == first_pause {
                    warn!(pod.log(), "event not sent, will be retried: {}", e);
                }
                if pod.events.closes_within(pause).await {
                    // The shim is about to exit: retry soon, there is little time.
                    sleep(first_pause).await;
                    pause = first_pause;
                } else {
                    pause = (pause * 2).min(longest);
                }
                continue;
            }
        }
        pause = first_pause;
        pod.events.done(&event);
        let dropped = pod.events.take_dropped();
        if dropped > 0 {
            warn!(pod.log(), "{} events were dropped while containerd was not reachable", dropped);
        }
    }
}

async fn forward(
    client: &mut Option<EventsClient>,
    address: &str,
    ns: &Namespace,
    event: &Event,
) -> Result<()> {
    let connected = match client.take() {
        Some(connected) => connected,
        None => {
            let url = if address.contains("://") { address.to_owned() } else { format!("unix://{address}") };
            let connecting = Client::connect(&url).await;
            EventsClient::new(connecting.map_err(|e| Error::unavailable(format!("connect {url}: {e}")))?)
        }
    };
    let (topic, any) = encode_event(event)?;
    let envelope = Envelope {
        timestamp: MessageField::some(timestamp(SystemTime::now())),
        namespace: ns.as_str().to_owned(),
        topic: topic.to_owned(),
        event: MessageField::some(any),
        ..Default::default()
    };
    let request = ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
    let sent = connected.forward(ttrpc::context::with_duration(limits::shim::EVENT_SEND), &request).await;
    sent.map_err(|e| Error::unavailable(format!("{topic}: {e}")))?;
    *client = Some(connected);
    Ok(())
}

/// containerd registers its event types without a URL's host.
fn event_any(name: &str, message: &impl Message) -> Result<Any> {
    let value = message.write_to_bytes().context("encode event")?;
    Ok(Any { type_url: format!("containerd.events.{name}"), value, ..Default::default() })
}

fn task_io(stdio: &StdioPaths) -> pb::TaskIO {
    pb::TaskIO {
        stdin: stdio.stdin.clone(),
        stdout: stdio.stdout.clone(),
        stderr: stdio.stderr.clone(),
        terminal: stdio.terminal,
        ..Default::default()
    }
}

fn encode_event(event: &Event) -> Result<(&'static str, Any)> {
    Ok(match event {
        Event::Create { id, bundle, rootfs, stdio, pid } => {
            let create = pb::TaskCreate {
                container_id: id.to_string(),
                bundle: bundle.display().to_string(),
                rootfs: rootfs.iter().map(mount).collect(),
                io: MessageField::some(task_io(stdio)),
                pid: *pid,
                ..Default::default()
            };
            (topics::TASK_CREATE_EVENT_TOPIC, event_any("TaskCreate", &create)?)
        }
        Event::Start { id, pid } => {
            let start = pb::TaskStart { container_id: id.to_string(), pid: *pid, ..Default::default() };
            (topics::TASK_START_EVENT_TOPIC, event_any("TaskStart", &start)?)
        }
        Event::ExecAdded { id, exec } => {
            let added = pb::TaskExecAdded {
                container_id: id.to_string(),
                exec_id: exec.to_string(),
                ..Default::default()
            };
            (topics::TASK_EXEC_ADDED_EVENT_TOPIC, event_any("TaskExecAdded", &added)?)
        }
        Event::ExecStarted { id, exec, pid } => {
            let started = pb::TaskExecStarted {
                container_id: id.to_string(),
                exec_id: exec.to_string(),
                pid: *pid,
                ..Default::default()
            };
            (topics::TASK_EXEC_STARTED_EVENT_TOPIC, event_any("TaskExecStarted", &started)?)
        }
        Event::Exit { id, exec, pid, status, at } => {
            let exit = pb::TaskExit {
                container_id: id.to_string(),
                id: exec.as_ref().map_or(id.as_str(), |e| e.as_str()).to_owned(),
                pid: *pid,
                exit_status: *status,
                exited_at: MessageField::some(timestamp(*at)),
                ..Default::default()
            };
            (topics::TASK_EXIT_EVENT_TOPIC, event_any("TaskExit", &exit)?)
        }
        Event::Delete { id, pid, status, at } => {
            let delete = pb::TaskDelete {
                container_id: id.to_string(),
                pid: *pid,
                exit_status: *status,
                exited_at: MessageField::some(timestamp(*at)),
                ..Default::default()
            };
            (topics::TASK_DELETE_EVENT_TOPIC, event_any("TaskDelete", &delete)?)
        }
        Event::Oom { id } => {
            let oom = pb::TaskOOM { container_id: id.to_string(), ..Default::default() };
            (topics::TASK_OOM_EVENT_TOPIC, event_any("TaskOOM", &oom)?)
        }
        Event::Paused { id } => {
            let paused = pb::TaskPaused { container_id: id.to_string(), ..Default::default() };
            (topics::TASK_PAUSED_EVENT_TOPIC, event_any("TaskPaused", &paused)?)
        }
        Event::Resumed { id } => {
            let resumed = pb::TaskResumed { container_id: id.to_string(), ..Default::default() };
            (topics::TASK_RESUMED_EVENT_TOPIC, event_any("TaskResumed", &resumed)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ContainerId;

    #[test]
    fn an_exit_names_the_process_and_has_containerds_type() {
        let id = ContainerId::parse("c1").expect("id");
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::new(5, 7);
        let event = Event::Exit { id, exec: None, pid: 9, status: 137, at };
        let (topic, any) = encode_event(&event).expect("encode");
        assert_eq!((topic, any.type_url.as_str()), ("/tasks/exit", "containerd.events.TaskExit"));
        let exit = pb::TaskExit::parse_from_bytes(&any.value).expect("decode");
        assert_eq!((exit.id.as_str(), exit.exit_status, exit.exited_at.seconds), ("c1", 137, 5));
    }
}
