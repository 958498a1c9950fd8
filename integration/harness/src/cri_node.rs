//! A private containerd with its CRI plugin, as a node of a cluster has it: pods get their network by
//! CNI's bridge. Bridge, addresses, port mappings and streaming server are in a network namespace of
//! the node, so that none of them is on this machine.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::netns::connect_within;
use crate::{Containerd, program};

/// Where the streams of exec, attach and port forward are served, in the node's network.
pub const STREAMS: &str = "127.0.0.1:10010";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The parts of a node beside containerd.
#[derive(Debug)]
pub(crate) struct CriPlugin {
    netns: String,
    /// Network namespaces of others.
    others: BTreeSet<PathBuf>,
}

impl CriPlugin {
    /// The node's network: a loopback device and the bridge that CNI will find.
    fn new() -> Self {
        let netns = format!("kstn{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        ip(&format!("netns add {netns}"));
        let plugin = Self { others: networks(), netns };
        for command in ["link set lo up", "link add cni0 type bridge", "link set cni0 up"] {
            ip(&format!("-n {} {command}", plugin.netns));
        }
        plugin
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.netns)
    }

    /// `program` as a process of this machine in the node's network.
    pub(crate) fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Removes the networks of pods that were never stopped.
    pub(crate) fn end_networks(&self) {
        for left in networks().difference(&self.others) {
            Command::new("ip").args(["netns", "del"]).arg(left.file_name().unwrap_or_default()).output().ok();
        }
    }
}

impl Drop for CriPlugin {
    fn drop(&mut self) {
        Command::new("ip").args(["netns", "del", &self.netns]).output().ok();
    }
}

fn networks() -> BTreeSet<PathBuf> {
    fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn ip(command: &str) {
    let ran = Command::new("ip").args(command.split(' ')).output().expect("ip");
    assert!(ran.status.success(), "ip {command}: {}", String::from_utf8_lossy(&ran.stderr));
}

impl Containerd {
    /// A node with CRI, and the images that the tests of it use.
    pub fn cri(version: &str) -> Self {
        Self::cri_by(version, "podsandbox")
    }

    /// With another of containerd 2's sandbox controllers: `shim` is the Sandbox API.
    pub fn cri_by(version: &str, sandboxer: &str) -> Self {
        let plugins = |dir: &Path| {
            let cni = dir.join("cni");
            fs::create_dir(&cni).expect("cni");
            fs::write(cni.join("10-bridge.conflist"), network(dir)).expect("network");
            if version == "2" { version_3(&cni, sandboxer) } else { version_2(&cni) }
        };
        let shim = program("containerd-shim-kata-se-v2");
        let node = Self::start(version, plugins, shim, Vec::new(), Some(CriPlugin::new()));
        for image in ["cri-pause.tar", "cri-busybox.tar", "cri-own.tar"] {
            node.import(image, "overlayfs");
        }
        node
    }

    /// A program in the network of this node.
    pub fn in_network(&self, program: &str) -> Command {
        self.plugin().inside(Path::new(program))
    }

    /// The network namespace of this node.
    pub fn network(&self) -> PathBuf {
        self.plugin().path()
    }

    /// A connection made in the network of this node.
    pub fn connect(&self, address: &str) -> std::io::Result<TcpStream> {
        let address = address.parse().expect("address with a port");
        connect_within(&self.plugin().path(), address)
    }

    fn plugin(&self) -> &CriPlugin {
        self.cri.as_ref().expect("a node with CRI")
    }
}

fn network(dir: &Path) -> String {
    let data = dir.join("addresses");
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": {{"type": "host-local",
   "dataDir": "{}", "ranges": [[{{"subnet": "10.89.0.0/24"}}], [{{"subnet": "fd89::/64"}}]],
   "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}"#,
        data.display()
    )
}

/// The runtime handlers `kata-se` and `kata-se-host-devices`, which no node should configure.
fn handlers(runtimes: &str, more: &str) -> String {
    let runtime = format!(
        "runtime_type = \"io.containerd.kata-se.v2\"\npod_annotations = [\"io.katacontainers.*\"]\n\
         container_annotations = [\"io.kubernetes.container.terminationMessage*\"]\n{more}"
    );
    format!(
        "[{runtimes}.kata-se]\nprivileged_without_host_devices = true\n{runtime}\
         [{runtimes}.kata-se-host-devices]\n{runtime}"
    )
}

/// Of containerd 1.6 and 1.7.
fn version_2(cni: &Path) -> String {
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    format!(
        "version = 2\n[{cri}]\nsandbox_image = \"localhost/pause:latest\"\n{}\n\
         [{cri}.cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"{}\"\n\
         [{cri}.containerd]\nsnapshotter = \"overlayfs\"\ndefault_runtime_name = \"kata-se\"\n\
         {}",
        common(),
        cni.display(),
        handlers(&format!("{cri}.containerd.runtimes"), ""),
    )
}

/// Of containerd 2.
fn version_3(cni: &Path, sandboxer: &str) -> String {
    let runtime = "plugins.'io.containerd.cri.v1.runtime'";
    let images = "plugins.'io.containerd.cri.v1.images'";
    format!(
        "version = 3\n[{images}]\nsnapshotter = \"overlayfs\"\n\
         [{images}.pinned_images]\nsandbox = \"localhost/pause:latest\"\n\
         [{runtime}]\nrestrict_oom_score_adj = true\ndisable_apparmor = true\n\
         [{runtime}.cni]\nbin_dirs = [\"/usr/lib/cni\"]\nconf_dir = \"{}\"\n\
         [{runtime}.containerd]\ndefault_runtime_name = \"kata-se\"\n\
         {}\
         [plugins.'io.containerd.grpc.v1.cri']\n{}\n\
         [plugins.'io.containerd.nri.v1.nri']\ndisable = true\n",
        cni.display(),
        handlers(&format!("{runtime}.containerd.runtimes"), &format!("sandboxer = \"{sandboxer}\"\n")),
        streaming(),
    )
}

fn common() -> String {
    format!("restrict_oom_score_adj = true\ndisable_apparmor = true\n{}", streaming())
}

fn streaming() -> String {
    let (address, port) = STREAMS.split_once(':').expect("port");
    format!("stream_server_address = \"{address}\"\nstream_server_port = \"{port}\"")
}
