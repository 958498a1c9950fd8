//! containerd's event service: records what a shim sends, in order.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::events::task as pb;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Events as Service, EventsClient, create_events};
use tokio::sync::oneshot;
use ttrpc::r#async::{Client, Server, TtrpcContext};
use ttrpc::context::with_duration;

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
    /// A containerd's service, which has to accept an event before it is recorded.
    to: Option<PathBuf>,
    seen: Arc<Mutex<Vec<Event>>>,
    server: Option<Server>,
}

struct Recorder {
    seen: Arc<Mutex<Vec<Event>>>,
    to: Option<PathBuf>,
}

impl Events {
    pub async fn listen(path: &Path) -> Self {
        let mut events = Self { path: path.to_path_buf(), to: None, seen: Arc::default(), server: None };
        events.up().await;
        events
    }

    /// Forwards everything to the service at `to`, and returns its answers.
    pub async fn relay(path: &Path, to: &Path) -> Self {
        let to = Some(to.to_path_buf());
        let mut events = Self { path: path.to_path_buf(), to, seen: Arc::default(), server: None };
        events.up().await;
        events
    }

    /// Serves again after [`Self::down`].
    pub async fn up(&mut self) {
        std::fs::remove_file(&self.path).ok();
        let service = create_events(Arc::new(Recorder { seen: Arc::clone(&self.seen), to: self.to.clone() }));
        let server = Server::new().bind(&format!("unix://{}", self.path.display())).expect("bind events");
        let mut server = server.register_service(service);
        server.start().await.expect("serve events");
        self.server = Some(server);
    }

    /// Stops serving, like a containerd that is stopped.
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
        self.seen().iter().map(Event::line).collect()
    }
}

impl Event {
    /// In short, `topic id status`.
    pub fn line(&self) -> String {
        let topic = self.topic.trim_start_matches("/tasks/");
        match self.status {
            Some(status) => format!("{topic} {} {status}", self.id),
            None => format!("{topic} {}", self.id),
        }
    }
}

/// A relay on a separate thread, for tests that block theirs.
pub struct Relay {
    seen: Arc<Mutex<Vec<Event>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// See [`Events::relay`].
    pub(crate) fn start(path: &Path, to: &Path) -> Self {
        let (path, to) = (path.to_path_buf(), to.to_path_buf());
        let (stop, stopped) = oneshot::channel();
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("runtime").block_on(async {
                let mut events = Events::relay(&path, &to).await;
                sender.send(Arc::clone(&events.seen)).expect("receiver");
                stopped.await.ok();
                events.down().await;
            });
        });
        let seen = receiver.recv().expect("the relay runs");
        Self { seen, stop: Some(stop), thread: Some(thread) }
    }

    /// Events of this container and its execs that containerd has accepted, in short.
    pub fn of(&self, container: &str) -> Vec<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = seen.iter().filter(|e| e.id.split('/').next() == Some(container));
        ours.map(Event::line).collect()
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Relay")
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
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
        let envelope = req.envelope.clone().unwrap_or_default();
        let event = of(&envelope.topic, &envelope.event.value);
        if let Some(to) = &self.to {
            let client = Client::connect(&format!("unix://{}", to.display())).await?;
            let limit = with_duration(Duration::from_secs(5));
            EventsClient::new(client).forward(limit, &req).await?;
        }
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        Ok(Empty::new())
    }
}
