//! A node for tests without a VM: the real shim, called directly, with QEMU's double and the test
//! agent as a plain process. Everything is below one temporary folder.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use serde_json::Value;
use tempfile::TempDir;

use crate::doubles::Doubles;
use crate::{Bundle, Census, Events, NO_STREAMS, Shim, eventually, program, within};

/// One node; when it is dropped, everything on it has to be gone.
#[derive(Debug)]
pub struct TestNode {
    dir: TempDir,
    doubles: Doubles,
    census: Census,
    pub events: Events,
    /// More environment for `start`, for example a failpoint.
    pub environment: Mutex<Vec<(String, String)>>,
    /// Log fifos, kept open so that the shim's lines can be read.
    logs: Mutex<Vec<File>>,
}

impl TestNode {
    pub async fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "needs root: it makes cgroups");
        let dir = tempfile::Builder::new().prefix("kst").tempdir_in("/tmp").expect("temporary folder");
        let at = |name: &str| dir.path().join(name);
        for name in ["bundles", "stdio"] {
            fs::create_dir(at(name)).expect(name);
        }
        fs::DirBuilder::new().mode(0o700).create(at("run")).expect("run");
        let doubles = Doubles::new(dir.path(), false);
        let events = Events::listen(&at("events.sock")).await;
        let census = Census::take(dir.path(), &at("run"));
        let (environment, logs) = (Mutex::default(), Mutex::default());
        let node = Self { dir, doubles, census, events, environment, logs };
        node.config("");
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// See [`Doubles::double`].
    pub fn double(&self, change: impl FnOnce(&mut Value)) {
        self.doubles.double(change);
    }

    /// See [`Doubles::script`].
    pub fn script(&self, rules: &Value) {
        self.doubles.script(rules);
    }

    /// See [`Doubles::policy`].
    pub fn policy(&self, rego: &str) {
        self.doubles.policy(rego);
    }

    /// Writes the configuration with more lines at its end.
    pub fn config(&self, more: &str) {
        self.doubles.config(more);
    }

    /// The kubelet's folder of an emptyDir, made.
    pub fn empty_dir(&self, name: &str) -> PathBuf {
        let folder = self.path("pods/u/volumes/kubernetes.io~empty-dir").join(name);
        fs::create_dir_all(&folder).expect("folder");
        folder
    }

    /// Makes a bundle with a small root file system.
    pub fn bundle(&self, id: &str, bundle: &Bundle) -> PathBuf {
        let dir = self.path("bundles").join(id);
        fs::create_dir_all(dir.join("rootfs/bin")).expect("rootfs");
        fs::write(dir.join("rootfs/bin/sh"), b"not run: the guest is a plain process").expect("rootfs");
        fs::write(dir.join("config.json"), bundle.config.to_string()).expect("config.json");
        let log = dir.join("log");
        if nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU).is_ok() {
            use std::os::unix::fs::OpenOptionsExt;
            let mut options = File::options();
            let file = options.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(&log);
            self.logs.lock().expect("logs").push(file.expect("log"));
        }
        dir
    }

    /// What the shims of this node have logged so far.
    pub fn log(&self) -> String {
        let text = self.log_with_bugs();
        assert_no_panic(&text);
        text
    }

    /// The same, in a test of panics.
    pub fn log_with_bugs(&self) -> String {
        let mut text = Vec::new();
        for mut log in self.logs.lock().expect("logs").iter() {
            let mut chunk = [0; 65536];
            while let Ok(count @ 1..) = log.read(&mut chunk) {
                text.extend_from_slice(&chunk[..count]);
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn command(&self, id: &str, bundle: &Path, action: &str) -> Command {
        let mut command = Command::new(program("containerd-shim-kata-se-v2"));
        command
            .args(["-namespace", "tests", "-address", &self.path("c.sock").display().to_string()])
            .args(["-publish-binary", "/bin/true", "-id", id, action])
            .current_dir(bundle)
            .env("KATA_SE_RUN_DIR", self.path("run"))
            .env("KATA_SE_CONFIG", self.path("config.toml"))
            .env("TTRPC_ADDRESS", self.path("events.sock"))
            .envs(self.environment.lock().expect("environment").iter().cloned())
            .stdin(Stdio::null());
        command
    }

    /// `start`, as containerd to 2.2 and CRI-O call it.
    pub fn start_command(&self, id: &str, bundle: &Path) -> Command {
        self.command(id, bundle, "start")
    }

    pub fn start_output(&self, id: &str, bundle: &Path) -> Output {
        self.start_command(id, bundle).output().expect("run the shim")
    }

    /// `start` with something on stdin.
    pub fn start_with_input(&self, id: &str, bundle: &Path, input: &[u8]) -> Output {
        use std::io::Write;
        let mut command = self.command(id, bundle, "start");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("shim");
        child.stdin.take().expect("stdin").write_all(input).expect("write");
        child.wait_with_output().expect("shim")
    }

    /// Starts the shim of a new pod (or finds that of an existing one) and connects.
    pub async fn shim(&self, id: &str, bundle: &Path) -> Shim {
        let output = self.start_output(id, bundle);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "start: {text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "start prints: {}", String::from_utf8_lossy(&output.stderr));
        Shim::connect(&text, &self.path("stdio")).await
    }

    /// A pod whose first container runs `bundle`, created and started.
    pub async fn running(&self, id: &str, bundle: &Bundle) -> Shim {
        let dir = self.bundle(id, bundle);
        let shim = self.shim(id, &dir).await;
        shim.create(id, &dir, NO_STREAMS).await.expect("create");
        shim.start(id, "").await.expect("start");
        shim
    }

    /// Creates a pod that cannot start: returns the error, one line, and leaves a clean node.
    pub async fn refused(&self, bundle: &Bundle) -> String {
        let dir = self.bundle("c1", bundle);
        let shim = self.shim("c1", &dir).await;
        let e = within("an error", 20, shim.create("c1", &dir, NO_STREAMS)).await.expect_err("cannot start");
        shim.shutdown(true).await.expect("shutdown");
        self.assert_clean();
        let text = e.to_string();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    }

    /// `delete`, as containerd calls it when the shim cannot be reached.
    pub fn delete_command(&self, id: &str) -> Command {
        let bundle = self.path("bundles").join(id);
        fs::create_dir_all(&bundle).expect("bundle");
        self.command(id, &bundle, "delete")
    }

    pub fn delete_output(&self, id: &str) -> Output {
        self.delete_command(id).output().expect("run the shim")
    }

    pub fn delete(&self, id: &str) {
        let output = self.delete_output(id);
        assert!(output.status.success(), "delete {id}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Kills, deletes and shuts down what a finished test left running on purpose.
    pub async fn end(&self, shim: &Shim, id: &str) {
        if shim.kill(id, "", 9).await.is_ok() {
            shim.wait(id, "").await.ok();
        }
        shim.delete(id, "").await.expect("delete");
        shim.shutdown(true).await.expect("shutdown");
        self.assert_clean();
    }

    /// Everything of every pod is gone.
    pub fn assert_clean(&self) {
        self.census.assert_clean();
    }

    /// The folder of the only pod there is.
    pub fn pod_dir(&self) -> PathBuf {
        only_pod(&self.path("run"))
    }

    /// The process of the only shim there is, once it has signed its lock.
    pub async fn shim_pid(&self) -> u32 {
        let pid = || fs::read_to_string(self.pod_dir().join("lock")).ok()?.trim().parse().ok();
        eventually("the shim's pid", 5, || pid().is_some()).await;
        pid().expect("pid")
    }

    /// See [`Doubles::requests`].
    pub fn requests(&self) -> Vec<Value> {
        self.doubles.requests()
    }

    /// The permissions of a file.
    pub fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("stat").permissions().mode() & 0o7777
    }
}

/// A shim that panics logs it, also when no caller is left that would miss an answer.
pub(crate) fn assert_no_panic(log: &str) {
    let message = log.lines().find(|line| line.contains("a bug in the shim"));
    assert!(std::thread::panicking() || message.is_none(), "{message:?}");
}

/// The directory of the only pod.
pub(crate) fn only_pod(run: &Path) -> PathBuf {
    let found = crate::pods(run);
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().expect("one")
}

impl Drop for TestNode {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.path("bundles")).into_iter().flatten().flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            self.delete_output(&id);
        }
        if std::thread::panicking() {
            eprintln!("--- log of the shims\n{}", self.log());
        } else {
            self.assert_clean();
            self.log();
        }
    }
}
