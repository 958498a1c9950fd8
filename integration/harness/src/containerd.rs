//! A private containerd with the shim, its guests real and emulated, or doubles; driven by `ctr`.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use tempfile::TempDir;

use crate::cri_node::CriPlugin;
use crate::{Census, Doubles, Relay, USER, cached, program, vsock_program};

/// The image that every node has.
pub const IMAGE: &str = "localhost/busybox:s390x";

/// `ctr run` options: the sandbox container of the pod `pod`, and another one of it.
pub const SANDBOX: [&str; 4] = [
    "--annotation",
    "io.kubernetes.cri.container-type=sandbox",
    "--annotation",
    "io.kubernetes.cri.sandbox-id=pod",
];
pub const MEMBER: [&str; 4] = [
    "--annotation",
    "io.kubernetes.cri.container-type=container",
    "--annotation",
    "io.kubernetes.cri.sandbox-id=pod",
];

/// One node; when it is dropped, everything on it has to be gone.
#[derive(Debug)]
pub struct Containerd {
    dir: TempDir,
    version: String,
    shim: PathBuf,
    /// More environment for the shims.
    environment: Vec<(&'static str, PathBuf)>,
    daemon: Option<Child>,
    /// Its CRI plugin, if enabled.
    pub(crate) cri: Option<CriPlugin>,
    census: Census,
    doubled: Option<(Doubles, Relay)>,
}

impl Containerd {
    pub fn new() -> Self {
        Self::version("1.6")
    }

    pub fn version(version: &str) -> Self {
        Self::with(version, "")
    }

    /// `more`: sections added to containerd's configuration.
    pub fn with(version: &str, more: &str) -> Self {
        Self::under(version, more, program("containerd-shim-kata-se-v2"), Vec::new())
    }

    /// With another build of the shim.
    pub(crate) fn under(
        version: &str,
        more: &str,
        shim: PathBuf,
        environment: Vec<(&'static str, PathBuf)>,
    ) -> Self {
        let off = "[\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\"]";
        let plugins = |_: &Path| format!("version = 2\ndisabled_plugins = {off}\n{more}");
        let node = Self::start(version, plugins, shim, environment, None);
        node.import("busybox.tar", "overlayfs");
        node
    }

    /// `plugins`: containerd's configuration without its paths, given its folder; begins with a version.
    pub(crate) fn start(
        version: &str,
        plugins: impl FnOnce(&Path) -> String,
        shim: PathBuf,
        environment: Vec<(&'static str, PathBuf)>,
        cri: Option<CriPlugin>,
    ) -> Self {
        let dir = tempfile::Builder::new().prefix("kst").tempdir_in("/tmp").expect("temporary folder");
        let at = |name: &str| dir.path().join(name);
        fs::DirBuilder::new().mode(0o700).create(at("run")).expect("run");
        let show = |path: PathBuf| path.display().to_string();
        let config = format!(
            "root = \"{}\"\nstate = \"{}\"\n{}\n[grpc]\naddress = \"{}\"\n",
            show(at("root")),
            show(at("state")),
            plugins(dir.path()),
            show(at("c.sock")),
        );
        fs::write(at("containerd.toml"), config).expect("config");
        let emulated = format!(
            "[qemu]\naccelerator = \"tcg\"\nuser = \"{USER}\"\n[guest]\nconfidential = false\nkernel = \"{}\"\ninitrd = \"{}\"\n\
             kernel_parameters = \"console=ttysclp0 panic=-1 quiet cgroup_no_v1=all\"\nmemory_mib = 512\n\
             [vsock]\ndevice = \"vhost-user\"\nprogram = \"{}\"\n[rootfs]\ncache_dir = \"{}\"\n[log]\nlevel = \"debug\"\n",
            show(cached("guest/kernel")),
            show(cached("guest/initrd.img")),
            show(vsock_program(dir.path())),
            show(at("layers")),
        );
        fs::write(at("config.toml"), emulated).expect("config");
        let census = Census::take(&at("run"), &at("run"));
        let version = version.to_owned();
        let mut node = Self { dir, version, shim, environment, daemon: None, cri, census, doubled: None };
        node.up();
        node
    }

    /// With doubles for QEMU and the guest: a pod takes a second and no memory, and programs are the
    /// host's. Events of the shims pass a relay, which records them once containerd has accepted them.
    pub fn doubled(version: &str) -> Self {
        let mut node = Self::version(version);
        let doubles = Doubles::new(node.dir.path(), true);
        doubles.config("");
        let relay = node.path("relay.sock");
        let mut of_containerd = node.path("c.sock").into_os_string();
        of_containerd.push(".ttrpc");
        let delivered = Relay::start(&relay, Path::new(&of_containerd));
        // containerd passes its own event address: a script with the shim's name replaces it.
        let shim = node.path("bin/containerd-shim-kata-se-v2");
        let script =
            format!("#!/bin/sh\nTTRPC_ADDRESS={} exec {} \"$@\"\n", relay.display(), node.shim.display());
        fs::write(&shim, script).expect("script");
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o700)).expect("chmod");
        node.shim = shim;
        node.doubled = Some((doubles, delivered));
        node.kill();
        node.up();
        node
    }

    /// Guests of new pods pull their images. More keys of `[agent]`, more words of the guest's command line.
    pub fn guests_pull(&self, agent: &str, words: &str) {
        let path = self.path("config.toml");
        let text = fs::read_to_string(&path).expect("configuration");
        let mode = format!("[agent]\n{agent}\n[rootfs]\nmode = \"guest-pull\"\n");
        let text = text.replace("[rootfs]\n", &mode).replace("panic=-1", &format!("panic=-1 {words}"));
        fs::write(path, text).expect("configuration");
    }

    pub fn doubles(&self) -> &Doubles {
        &self.doubled.as_ref().expect("a node with doubles").0
    }

    /// Events that containerd has accepted.
    pub fn delivered(&self) -> &Relay {
        &self.doubled.as_ref().expect("a node with doubles").1
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The folder of the only pod there is.
    pub fn pod_dir(&self) -> PathBuf {
        crate::test_node::only_pod(&self.path("run"))
    }

    fn search_path(&self) -> String {
        let own = cached(&format!("containerd/{}/usr", self.version));
        let system = std::env::var("PATH").unwrap_or_default();
        let bin = self.shim.parent().expect("folder").display();
        format!("{bin}:{0}/bin:{0}/sbin:{system}", own.display())
    }

    /// Starts the daemon and waits until it answers.
    pub fn up(&mut self) {
        let log =
            fs::File::options().create(true).append(true).open(self.path("containerd.log")).expect("log");
        let program = cached(&format!("containerd/{}/usr/bin/containerd", self.version));
        let mut command =
            self.cri.as_ref().map_or_else(|| Command::new(&program), |cri| cri.inside(&program));
        command
            .arg("--config")
            .arg(self.path("containerd.toml"))
            .env("PATH", self.search_path())
            .env("KATA_SE_RUN_DIR", self.path("run"))
            .env("KATA_SE_CONFIG", self.path("config.toml"))
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log);
        self.daemon = Some(command.spawn().expect("containerd"));
        let end = Instant::now() + Duration::from_secs(20);
        while !self.ctr(&["version"]).status.success() {
            assert!(Instant::now() < end, "containerd does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The daemon's process.
    pub fn pid(&self) -> Pid {
        let daemon = self.daemon.as_ref().expect("containerd runs");
        Pid::from_raw(i32::try_from(daemon.id()).expect("pid"))
    }

    /// Kills the daemon; shims keep running.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().ok();
            daemon.wait().ok();
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("containerd.log")).unwrap_or_default()
    }

    /// `ctr` with these arguments; the command is not run yet.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(cached(&format!("containerd/{}/usr/bin/ctr", self.version)));
        command.arg("--address").arg(self.path("c.sock")).args(["--namespace", self.namespace()]);
        command.args(words).stdin(Stdio::null());
        command
    }

    pub fn ctr(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("ctr")
    }

    pub fn ctr_ok(&self, words: &[&str]) -> String {
        let output = self.ctr(words);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "ctr {words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// containerd's namespace of the containers.
    fn namespace(&self) -> &'static str {
        if self.cri.is_some() { "k8s.io" } else { "default" }
    }

    /// Imports an image of the cache and unpacks it.
    pub fn import(&self, archive: &str, snapshotter: &str) {
        let path = cached(&format!("guest/{archive}")).display().to_string();
        // containerd 2 would unpack in the daemon, which knows this machine's own platform only.
        let here: &[&str] = if self.version == "2" { &["--local"] } else { &[] };
        let platform = if self.cri.is_some() { "linux/amd64" } else { "linux/s390x" };
        let words = ["--snapshotter", snapshotter, "--platform", platform, &path];
        self.ctr_ok(&[&["image", "import"], here, &words].concat());
    }

    /// `ctr run` of the image with our runtime: options, then the container's id, then its program.
    pub fn run(&self, options: &[&str], id: &str, args: &[&str]) -> Command {
        self.run_of(IMAGE, options, id, args)
    }

    /// The same with another image, or with a directory and `--rootfs`.
    pub fn run_of(&self, image: &str, options: &[&str], id: &str, args: &[&str]) -> Command {
        let mut words = vec!["run", "--platform", "linux/s390x", "--runtime", "io.containerd.kata-se.v2"];
        words.extend_from_slice(options);
        words.extend([image, id]);
        words.extend_from_slice(args);
        self.command(&words)
    }

    /// `ctr task exec` in a running container.
    pub fn exec(&self, id: &str, exec: &str, args: &[&str]) -> Output {
        self.ctr(&[&["task", "exec", "--exec-id", exec, id], args].concat())
    }

    /// A container that runs until it is killed, once it has printed `up`.
    pub fn running(&self, options: &[&str], id: &str, script: &str) -> Child {
        use std::io::{BufRead, BufReader};
        let script = format!("echo up; {script}");
        let mut child = self
            .run(options, id, &["sh", "-c", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("ctr run");
        let mut line = String::new();
        let mut reader = BufReader::new(child.stdout.as_mut().expect("stdout"));
        reader.read_line(&mut line).expect("read");
        assert_eq!(line, "up\n", "{}", self.log());
        child
    }

    /// A task's status according to containerd, and its VM's process; none: unknown.
    pub fn task(&self, id: &str) -> Option<(String, u32)> {
        let listed = self.ctr_ok(&["task", "ls"]);
        let mut words = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let words = words.find(|words| words.first() == Some(&id))?;
        Some((words.get(2)?.to_string(), words.get(1)?.parse().ok()?))
    }

    /// Kills a running container and removes it.
    pub fn remove(&self, id: &str) {
        self.ctr(&["task", "kill", "--signal", "KILL", id]);
        self.ctr(&["task", "rm", "--force", id]);
        self.ctr(&["container", "rm", id]);
    }

    fn has_pods(&self) -> bool {
        !crate::pods(&self.path("run")).is_empty()
    }

    /// Ends pods that a failed test left behind, without containerd.
    fn end_pods(&self) {
        for pod in crate::pods(&self.path("run")) {
            let holder = fs::read_to_string(pod.join("lock")).unwrap_or_default();
            Command::new("kill").args(["-KILL", holder.trim()]).output().ok();
        }
        let bundles = self.path("state/io.containerd.runtime.v2.task").join(self.namespace());
        for bundle in fs::read_dir(bundles).into_iter().flatten().flatten() {
            let mut command = Command::new(&self.shim);
            command.args(["-namespace", self.namespace(), "-address"]).arg(self.path("c.sock"));
            command.arg("-id").arg(bundle.file_name()).arg("delete").current_dir(bundle.path());
            command.env("KATA_SE_RUN_DIR", self.path("run")).stdin(Stdio::null()).output().ok();
        }
    }

    pub fn assert_clean(&self) {
        self.census.assert_clean();
    }
}

impl Default for Containerd {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let ids = String::from_utf8_lossy(&self.ctr(&["task", "ls", "-q"]).stdout).into_owned();
        for id in ids.lines() {
            self.remove(id);
        }
        if std::thread::panicking() {
            eprintln!("--- log of containerd\n{}", self.log());
        }
        // Deletes of other callers may be in progress.
        let end = Instant::now() + Duration::from_secs(10);
        while self.has_pods() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill();
        if self.has_pods() {
            self.end_pods();
        }
        for entry in fs::read_dir(self.path("state")).into_iter().flatten().flatten() {
            // Mounts of bundles whose tasks were never removed.
            Command::new("umount").arg("-R").arg(entry.path()).output().ok();
        }
        if let Some(cri) = &self.cri {
            cri.end_networks();
        }
        if !std::thread::panicking() {
            self.assert_clean();
            crate::test_node::assert_no_panic(&self.log());
        }
    }
}
