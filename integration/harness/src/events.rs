//! containerd's event service: records what a shim sends, in order.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::events::task as pb;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Events as Service, create_events};
use ttrpc::r#async::{Server, TtrpcContext};

/// One event, in short: topic, the process it is about, exit status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub topic: String,
    /// Container id, or `container/exec`.
    pub id: String,
    pub status: Option<u32>,
}

/// A running event service.
pub struct Events {
    path: PathBuf,
    seen: Arc<Mutex<Vec<Event>>>,
    server: Option<Server>,
}

struct Recorder(Arc<Mutex<Vec<Event>>>);

impl Events {
    pub async fn listen(path: &Path) -> Self {
        let mut events = Self { path: path.to_path_buf(), seen: Arc::default(), server: None };
        events.up().await;
        events
    }

    /// Comes back after [`Self::down`].
    pub async fn up(&mut self) {
        std::fs::remove_file(&self.path).ok();
        let service = create_events(Arc::new(Recorder(Arc::clone(&self.seen))));
        let server = Server::new().bind(&format!("unix://{}", self.path.display())).expect("bind events");
        let mut server = server.register_service(service);
        server.start().await.expect("serve events");
        self.server = Some(server);
    }

    /// Goes away, as a containerd that is stopped.
    pub async fn down(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.shutdown().await.ok();
        }
        std::fs::remove_file(&self.path).ok();
    }

    pub fn seen(&self) -> Vec<Event> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// In short, `topic id status`, for comparing.
    pub fn lines(&self) -> Vec<String> {
        let line = |e: &Event| match e.status {
            Some(status) => format!("{} {} {status}", e.topic.trim_start_matches("/tasks/"), e.id),
            None => format!("{} {}", e.topic.trim_start_matches("/tasks/"), e.id),
        };
        self.seen().iter().map(line).collect()
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.seen()).finish()
    }
}

fn of(topic: &str, bytes: &[u8]) -> Event {
    let event = |id: &str, exec: &str, status| {
        let id = if exec.is_empty() || exec == id { id.to_owned() } else { format!("{id}/{exec}") };
        Event { topic: topic.to_owned(), id, status }
    };
    match topic {
        "/tasks/create" => {
            event(&pb::TaskCreate::parse_from_bytes(bytes).expect("create").container_id, "", None)
        }
        "/tasks/start" => {
            event(&pb::TaskStart::parse_from_bytes(bytes).expect("start").container_id, "", None)
        }
        "/tasks/exec-added" => {
            let e = pb::TaskExecAdded::parse_from_bytes(bytes).expect("exec-added");
            event(&e.container_id, &e.exec_id, None)
        }
        "/tasks/exec-started" => {
            let e = pb::TaskExecStarted::parse_from_bytes(bytes).expect("exec-started");
            event(&e.container_id, &e.exec_id, None)
        }
        "/tasks/exit" => {
            let e = pb::TaskExit::parse_from_bytes(bytes).expect("exit");
            event(&e.container_id, &e.id, Some(e.exit_status))
        }
        "/tasks/delete" => {
            let e = pb::TaskDelete::parse_from_bytes(bytes).expect("delete");
            event(&e.container_id, "", Some(e.exit_status))
        }
        "/tasks/paused" => {
            event(&pb::TaskPaused::parse_from_bytes(bytes).expect("paused").container_id, "", None)
        }
        "/tasks/resumed" => {
            event(&pb::TaskResumed::parse_from_bytes(bytes).expect("resumed").container_id, "", None)
        }
        "/tasks/oom" => event(&pb::TaskOOM::parse_from_bytes(bytes).expect("oom").container_id, "", None),
        other => event(other, "", None),
    }
}

#[async_trait]
impl Service for Recorder {
    async fn forward(&self, _: &TtrpcContext, req: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = req.envelope.unwrap_or_default();
        let event = of(&envelope.topic, &envelope.event.value);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        Ok(Empty::new())
    }
}
