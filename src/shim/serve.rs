//! The server process: one pod and one socket, with the Task service under two names and the Sandbox service.

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::create_task;
use slog::{Logger, error, info, warn};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use ttrpc::r#async::{Server, Service};

use crate::error::{Context, Error, Result};
use crate::host::process::raise_file_limit;
use crate::host::{lock, log, sys, tasks};
use crate::ids::PodKey;
use crate::limits;
use crate::pod::{Pod, PodParts, dir};
use crate::shim::flags::Flags;
use crate::shim::pod_service::PodService;
use crate::shim::{connections, events, remove_pod_dir};

/// The action with which `start` runs this program.
pub(crate) const ACTION: &str = "serve";

/// The address of containerd's event service; unset under CRI-O.
pub(crate) const EVENTS_ENVIRONMENT: &str = "TTRPC_ADDRESS";

/// containerd's request for a core scheduling domain per pod, with any value.
pub(crate) const SCHED_CORE_ENVIRONMENT: &str = "SCHED_CORE";

/// The descriptors that `start` passes to the server.
const LISTENER: i32 = 3;
const POD_LOCK: i32 = 4;

/// The same Task service under both names: v2 for containerd 1.x and CRI-O, v3 for containerd 2.
const NAMES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// Serves the pod until its Shutdown.
pub(crate) fn serve(flags: &Flags) -> Result<()> {
    let raised = raise_file_limit();
    let listener = UnixListener::from(sys::inherited_fd(LISTENER).context("listening socket")?);
    let lock = sys::inherited_fd(POD_LOCK).context("pod lock")?; // held until the pod has ended
    let lock = std::fs::File::from(lock);
    lock::sign(&lock)?;
    let (namespace, id) = flags.ids()?;
    let bundle = flags.bundle_dir()?;
    let sandbox = id.to_sandbox(); // no other container's `start` runs a server
    let key = PodKey::new(&flags.address, &namespace, &sandbox);
    let dir = dir::of(&dir::run_dir(), &key);
    let (log, level) = log::open(&dir.join(dir::LOG), &bundle.join("log"), &sandbox, flags.debug);
    let panicked = note_panics(log.clone());
    if let Err(e) = raised {
        warn!(log, "the limit of open files stays as it was (RLIMIT_NOFILE): {}", e);
    }
    let core_scheduling = std::env::var_os(SCHED_CORE_ENVIRONMENT).is_some_and(|value| !value.is_empty());
    let (parts_dir, parts_log) = (dir.clone(), log.clone());
    let parts = PodParts { key, namespace, sandbox, dir: parts_dir, log: parts_log, core_scheduling, level };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(run_server(parts, listener, panicked));
    if let Err(e) = &result {
        error!(log, "{}", e);
    }
    remove_pod_dir(&dir);
    drop(lock);
    // Only the last events may be left: a containerd that waited for the end of this shim's service accepts them now.
    if let Some(sender) = result? {
        runtime.block_on(async { timeout(limits::shim::EVENT_FLUSH_LATE, sender).await }).ok();
    }
    Ok(())
}

/// Serves until the pod ends. Returns the task that sends events if some are still queued.
async fn run_server(
    parts: PodParts,
    listener: UnixListener,
    panicked: Arc<Notify>,
) -> Result<Option<JoinHandle<()>>> {
    let log = parts.log.clone();
    ignore_signals(&log)?;
    let namespace = parts.namespace.clone();
    let pod = Pod::new(parts)?;
    let mut sender = tasks::spawn(events::send(
        Arc::clone(&pod),
        std::env::var(EVENTS_ENVIRONMENT).ok().filter(|a| !a.is_empty()),
        namespace,
    ));
    let service = Arc::new(PodService::new(Arc::clone(&pod)));
    let (listener, mut connections) = connections::counted(listener).context("listen")?;
    let sandbox = create_sandbox(Arc::clone(&service) as Arc<_>);
    let mut server = Server::new().add_listener(listener).register_service(sandbox);
    for name in NAMES {
        server = server.register_service(renamed(create_task(Arc::clone(&service) as Arc<_>), name));
    }
    server.start().await.map_err(|e| Error::internal(format!("serve: {e}")))?;
    info!(log, "serving"; "version" => env!("CARGO_PKG_VERSION"));
    tokio::select! {
        () = pod.shut_down() => {}
        () = pod.orphaned() => {}
        () = panicked.notified() => pod.end_after_panic().await,
    }
    pod.events.close();
    // Normally containerd accepts them at once. One that cleans up during its own start accepts none until this
    // shim's connection is closed.
    let sent = timeout(limits::shim::EVENT_FLUSH, &mut sender).await.is_ok();
    if pod.has_sandbox() {
        // containerd's client may treat a response as lost when the connection closes right after it. Its Task
        // service tolerates that, its sandbox controller does not.
        timeout(limits::shim::CLIENT_HANGUP, connections.wait_for(|open| *open == 0)).await.ok();
    }
    timeout(limits::shim::SERVER_SHUTDOWN, server.shutdown()).await.ok();
    Ok((!sent).then_some(sender))
}

fn renamed(services: HashMap<String, Service>, name: &str) -> HashMap<String, Service> {
    services.into_values().map(|service| (name.to_owned(), service)).collect()
}

/// A host's shutdown signals all processes at once, and `pkill -USR1 containerd`, which makes containerd dump its
/// stacks, also matches its shims. A pod ends only by Shutdown.
fn ignore_signals(log: &Logger) -> Result<()> {
    let kinds = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ];
    for kind in kinds {
        let mut signals = signal(kind).context("watch signals")?;
        let log = log.clone();
        tasks::detach(async move {
            while signals.recv().await.is_some() {
                warn!(log, "signal {} ignored: the pod ends only by Shutdown", kind.as_raw_value());
            }
        });
    }
    Ok(())
}

/// A panic anywhere, in a task, a handler or a thread, is logged and notified. What its work was about is in a
/// state that no one knows, and those who wait for its end would wait for ever: it ends the pod.
fn note_panics(log: Logger) -> Arc<Notify> {
    let panicked = Arc::new(Notify::new());
    let notified = Arc::clone(&panicked);
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        error!(log, "a bug in the shim: panic at {}: the pod ends", place);
        notified.notify_one();
    }));
    panicked
}
