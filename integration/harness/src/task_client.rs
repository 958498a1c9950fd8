//! A client of the shim that calls it as containerd does: `start` and `delete` as commands, tasks over ttrpc.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::TaskClient;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
pub use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::context::{Context, with_duration};

use crate::{Bundle, within};

/// No stdin, stdout or stderr.
pub const NO_STREAMS: [&str; 3] = ["", "", ""];

/// Longer than anything that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Reads a fifo to its end, on a thread. It is open when this returns: what a process writes before the thread
/// runs is not lost, even if the shim closes its end at once.
pub fn reader(path: PathBuf) -> std::thread::JoinHandle<Vec<u8>> {
    use std::os::fd::AsFd;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::File::options();
    let fifo = options.read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let mut fifo = fifo.expect("open");
    std::thread::spawn(move || {
        let (mut bytes, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            // The end is reported only once a writer was there; a read alone would find it at once.
            let mut waited = [PollFd::new(fifo.as_fd(), PollFlags::POLLIN)];
            poll(&mut waited, PollTimeout::NONE).expect("poll");
            match fifo.read(&mut chunk) {
                Ok(0) => return bytes,
                Ok(count) => bytes.extend_from_slice(&chunk[..count]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => panic!("read: {e}"),
            }
        }
    })
}

/// A connection to a pod's shim.
#[derive(Clone)]
pub struct Shim {
    pub address: String,
    task: TaskClient,
    stdio: PathBuf,
}

impl std::fmt::Debug for Shim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.address)
    }
}

/// The code of a failed call.
pub fn code<T: std::fmt::Debug>(result: &ttrpc::Result<T>) -> Option<Code> {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => Some(status.code()),
        Err(_) => Some(Code::UNKNOWN),
        Ok(_) => None,
    }
}

fn patient() -> Context {
    with_duration(PATIENCE)
}

impl Shim {
    pub async fn connect(address: &str, stdio: &Path) -> Self {
        Self::try_connect(address, stdio).await.unwrap_or_else(|e| panic!("connect {address}: {e}"))
    }

    /// The same, or why there is no connection.
    pub async fn try_connect(address: &str, stdio: &Path) -> ttrpc::Result<Self> {
        let client = Client::connect(address).await?;
        Ok(Self { address: address.to_owned(), task: TaskClient::new(client), stdio: stdio.to_path_buf() })
    }

    /// The fifo of a stream of a process, made if needed.
    pub fn fifo(&self, id: &str, stream: &str) -> PathBuf {
        let path = self.stdio.join(format!("{id}-{stream}"));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).ok();
        path
    }

    /// An exec of a shell's script, started.
    pub async fn script(&self, id: &str, exec: &str, script: &str, streams: [&str; 3]) {
        self.exec(id, exec, Bundle::process(&["/bin/sh", "-c", script]), streams).await.expect("exec");
        within("its start", 2, self.start(id, exec)).await.expect("start");
    }

    pub async fn create(&self, id: &str, bundle: &Path, streams: [&str; 3]) -> ttrpc::Result<u32> {
        self.create_for(id, bundle, streams, false, PATIENCE).await
    }

    pub async fn create_for(
        &self,
        id: &str,
        bundle: &Path,
        [stdin, stdout, stderr]: [&str; 3],
        terminal: bool,
        deadline: Duration,
    ) -> ttrpc::Result<u32> {
        let req = api::CreateTaskRequest {
            id: id.into(),
            bundle: bundle.display().to_string(),
            terminal,
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: stderr.into(),
            ..Default::default()
        };
        Ok(self.task.create(with_duration(deadline), &req).await?.pid)
    }

    /// On an overlay of `layers`, topmost first, as the overlayfs snapshotter would mount it.
    pub async fn create_on(&self, id: &str, bundle: &Path, layers: &[&Path]) -> ttrpc::Result<u32> {
        let layers: Vec<String> = layers.iter().map(|l| l.display().to_string()).collect();
        self.create_with(id, bundle, "overlay", &[format!("lowerdir={}", layers.join(":"))]).await
    }

    /// On a mount of this type with these options, as a snapshotter would have it.
    pub async fn create_with(
        &self,
        id: &str,
        bundle: &Path,
        typ: &str,
        options: &[String],
    ) -> ttrpc::Result<u32> {
        let mount = api::Mount {
            type_: typ.into(),
            source: "overlay".into(),
            options: options.to_vec(),
            ..Default::default()
        };
        let req = api::CreateTaskRequest {
            id: id.into(),
            bundle: bundle.display().to_string(),
            rootfs: vec![mount],
            ..Default::default()
        };
        Ok(self.task.create(patient(), &req).await?.pid)
    }

    pub async fn start(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let req = api::StartRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        Ok(self.task.start(patient(), &req).await?.pid)
    }

    pub async fn exec(
        &self,
        id: &str,
        exec: &str,
        process: Vec<u8>,
        [i, o, e]: [&str; 3],
    ) -> ttrpc::Result<()> {
        let spec =
            Any { type_url: "types.containerd.io/process".into(), value: process, ..Default::default() };
        let req = api::ExecProcessRequest {
            id: id.into(),
            exec_id: exec.into(),
            spec: MessageField::some(spec),
            stdin: i.into(),
            stdout: o.into(),
            stderr: e.into(),
            ..Default::default()
        };
        self.task.exec(patient(), &req).await.map(|_| ())
    }

    /// Exec, start, wait, delete: the exit status.
    pub async fn run_exec(&self, id: &str, exec: &str, args: &[&str]) -> u32 {
        self.exec(id, exec, Bundle::process(args), NO_STREAMS).await.expect("exec");
        self.start(id, exec).await.expect("start exec");
        let status = self.wait(id, exec).await.expect("wait exec");
        self.delete(id, exec).await.expect("delete exec");
        status
    }

    pub async fn wait(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let req = api::WaitRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        Ok(self.task.wait(patient(), &req).await?.exit_status)
    }

    pub async fn state(&self, id: &str, exec: &str) -> ttrpc::Result<api::StateResponse> {
        let req = api::StateRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.task.state(patient(), &req).await
    }

    pub async fn kill(&self, id: &str, exec: &str, signal: u32) -> ttrpc::Result<()> {
        let req = api::KillRequest { id: id.into(), exec_id: exec.into(), signal, ..Default::default() };
        self.task.kill(patient(), &req).await.map(|_| ())
    }

    pub async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        self.delete_for(id, exec, PATIENCE).await
    }

    pub async fn delete_for(&self, id: &str, exec: &str, deadline: Duration) -> ttrpc::Result<u32> {
        let req = api::DeleteRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        Ok(self.task.delete(with_duration(deadline), &req).await?.exit_status)
    }

    pub async fn pids(&self, id: &str) -> ttrpc::Result<Vec<u32>> {
        let req = api::PidsRequest { id: id.into(), ..Default::default() };
        Ok(self.task.pids(patient(), &req).await?.processes.iter().map(|p| p.pid).collect())
    }

    pub async fn close_stdin(&self, id: &str, exec: &str) -> ttrpc::Result<()> {
        let req =
            api::CloseIORequest { id: id.into(), exec_id: exec.into(), stdin: true, ..Default::default() };
        self.task.close_io(patient(), &req).await.map(|_| ())
    }

    pub async fn resize(&self, id: &str, width: u32, height: u32) -> ttrpc::Result<()> {
        let req = api::ResizePtyRequest { id: id.into(), width, height, ..Default::default() };
        self.task.resize_pty(patient(), &req).await.map(|_| ())
    }

    /// The shim's process and the VM's.
    pub async fn pid(&self, id: &str) -> (u32, u32) {
        self.pids_of(id).await.expect("connect")
    }

    /// The same, or the shim's error.
    pub async fn pids_of(&self, id: &str) -> ttrpc::Result<(u32, u32)> {
        let req = api::ConnectRequest { id: id.into(), ..Default::default() };
        let answer = self.task.connect(patient(), &req).await?;
        Ok((answer.shim_pid, answer.task_pid))
    }

    pub async fn shutdown(&self, now: bool) -> ttrpc::Result<()> {
        self.shutdown_for(now, PATIENCE).await
    }

    pub async fn shutdown_for(&self, now: bool, deadline: Duration) -> ttrpc::Result<()> {
        let req = api::ShutdownRequest { id: "x".into(), now, ..Default::default() };
        self.task.shutdown(with_duration(deadline), &req).await.map(|_| ())
    }

    /// Every call about this name answers that it is unknown.
    pub async fn assert_unknown(&self, id: &str, exec: &str) {
        let unknown = Some(Code::NOT_FOUND);
        assert_eq!(code(&self.start(id, exec).await), unknown, "start {id} {exec}");
        assert_eq!(code(&self.state(id, exec).await), unknown, "state {id} {exec}");
        assert_eq!(code(&self.wait(id, exec).await), unknown, "wait {id} {exec}");
        assert_eq!(code(&self.kill(id, exec, 9).await), unknown, "kill {id} {exec}");
        assert_eq!(code(&self.delete(id, exec).await), unknown, "delete {id} {exec}");
        assert_eq!(code(&self.close_stdin(id, exec).await), unknown, "close stdin of {id} {exec}");
    }

    /// With `all`.
    pub async fn kill_all(&self, id: &str, signal: u32) -> ttrpc::Result<()> {
        let req = api::KillRequest { id: id.into(), signal, all: true, ..Default::default() };
        self.task.kill(patient(), &req).await.map(|_| ())
    }

    pub async fn resume(&self, id: &str) -> ttrpc::Result<()> {
        let req = api::ResumeRequest { id: id.into(), ..Default::default() };
        self.task.resume(patient(), &req).await.map(|_| ())
    }

    /// OCI resources, as containerd packs them.
    pub async fn update(&self, id: &str, resources: &serde_json::Value) -> ttrpc::Result<()> {
        let resources = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
            value: resources.to_string().into_bytes(),
            ..Default::default()
        };
        let resources = MessageField::some(resources);
        let req = api::UpdateTaskRequest { id: id.into(), resources, ..Default::default() };
        self.task.update(patient(), &req).await.map(|_| ())
    }

    /// The message's type and its bytes.
    pub async fn stats(&self, id: &str) -> ttrpc::Result<(String, Vec<u8>)> {
        let req = api::StatsRequest { id: id.into(), ..Default::default() };
        let any = self.task.stats(patient(), &req).await?.stats.unwrap_or_default();
        Ok((any.type_url, any.value))
    }

    pub async fn checkpoint(&self, id: &str) -> ttrpc::Result<()> {
        let req = api::CheckpointTaskRequest { id: id.into(), ..Default::default() };
        self.task.checkpoint(patient(), &req).await.map(|_| ())
    }

    pub async fn pause(&self, id: &str) -> ttrpc::Result<()> {
        let req = api::PauseRequest { id: id.into(), ..Default::default() };
        self.task.pause(patient(), &req).await.map(|_| ())
    }
}
