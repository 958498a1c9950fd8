//! What the guest's agent is asked for, request by request: as in the golden files, for agents up to 4.1 and newer
//! ones, and as policies allow it that were made by CoCo's generator for the same pods.
//!
//! After a change that is wanted: `KATA_SE_BLESS=1 hack/test process the_requests_of_a_pod`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Bundle, KubeletVolume, Mounted, NO_STREAMS, TestNode, generated_policy};
use serde_json::{Value, json};

/// Calls in an order that does not depend on when a process writes or ends.
const IN_ORDER: [&str; 8] = [
    "CreateSandbox",
    "CopyFile",
    "CreateContainer",
    "StartContainer",
    "ExecProcess",
    "SignalProcess",
    "RemoveContainer",
    "GetGuestDetails",
];

/// What generated policies deny and a pod can do without: see docs/data-paths.md.
const DENIED: [&str; 3] = ["ReadStdout", "ReadStderr", "CloseStdin"];

const IMAGE: &str = "registry.example/app@sha256:1234";

/// As CNI's plugins are given it.
const NETWORK: &str = "cni-12345678-1234-1234-1234-123456789012";

/// A namespace without interfaces, which have addresses that differ from run to run.
struct Network;

impl Network {
    fn new() -> Self {
        ip("del"); // of a test that was killed
        assert!(ip("add"), "ip netns add");
        Self
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        ip("del");
    }
}

fn ip(verb: &str) -> bool {
    let output = Command::new("ip").args(["netns", verb, NETWORK]).output();
    output.expect("ip").status.success()
}

/// A pod with what Kubernetes gives nearly every one, and a volume of each kind.
struct Pod {
    node: TestNode,
    config: KubeletVolume,
    secret: KubeletVolume,
    _memory: Mounted,
    kubelet: tempfile::TempDir,
    _network: Network,
}

impl Pod {
    async fn new(config: &str, agent: &str) -> Self {
        let network = Network::new();
        // Before the node, which counts mounts.
        let kubelet = tempfile::tempdir().expect("dir");
        let memory = kubelet.path().join("volumes/kubernetes.io~empty-dir/memory");
        fs::create_dir_all(&memory).expect("folder");
        let memory = Mounted::new("tmpfs", memory, None);
        let node = TestNode::new().await;
        fs::create_dir_all(node.path("config.d")).expect("folder");
        fs::write(node.path("config.d/own.toml"), config).expect("drop-in");
        node.double(|orders| orders["agent_options"] = json!(["--version", agent]));
        for (name, text) in [("hosts", "127.0.0.1 localhost\n"), ("resolv.conf", "nameserver 10.0.0.1\n")] {
            write(&node.path(name), text);
        }
        let config = KubeletVolume::new(
            kubelet.path().join("volumes/kubernetes.io~configmap/config"),
            &[("a.conf", "a"), ("b.conf", "b")],
        );
        let token = kubelet.path().join("volumes/kubernetes.io~projected/token");
        let secret = KubeletVolume::new(token, &[("token", "t")]);
        for volume in [&config, &secret] {
            plain_modes(volume.path());
        }
        fs::create_dir(kubelet.path().join("volumes/kubernetes.io~empty-dir/cache")).expect("folder");
        Self { node, config, secret, _memory: memory, kubelet, _network: network }
    }

    fn empty_dir(&self, name: &str) -> PathBuf {
        self.kubelet.path().join("volumes/kubernetes.io~empty-dir").join(name)
    }

    fn sandbox(&self) -> Bundle {
        let mut bundle = Bundle::new(&["/pause"]).sandbox();
        let options = ["rbind", "ro", "nosuid", "nodev", "noexec"];
        mount(&mut bundle, "/etc/resolv.conf", &self.node.path("resolv.conf"), &options);
        bundle.network(&format!("/var/run/netns/{NETWORK}"))
    }

    fn member(&self, id: &str) -> Bundle {
        let mut bundle = Bundle::new(&["/bin/sleep", "1000"]).member("s1");
        let annotations = [
            ("io.kubernetes.cri.image-name", IMAGE),
            ("io.kubernetes.cri.container-name", id),
            ("io.kubernetes.cri.sandbox-name", "pod"),
        ];
        for (key, value) in annotations {
            bundle = bundle.annotation(key, value);
        }
        let kept = ["rbind", "rprivate"];
        let [ro, rw] = ["ro", "rw"].map(|access| [&kept[..], &[access]].concat());
        let at = |name: &str| self.node.path(name);
        mount(&mut bundle, "/etc/hosts", &at("hosts"), &rw);
        mount(&mut bundle, "/etc/resolv.conf", &at("resolv.conf"), &rw);
        mount(&mut bundle, "/etc/config", self.config.path(), &ro);
        mount(&mut bundle, "/var/run/secrets/kubernetes.io/serviceaccount", self.secret.path(), &ro);
        mount(&mut bundle, "/cache", &self.empty_dir("cache"), &rw);
        mount(&mut bundle, "/memory", &self.empty_dir("memory"), &rw);
        bundle
    }

    /// The life of the pod with two containers, one of which is asked by a probe; its requests.
    async fn run(&self) -> Vec<Value> {
        let node = &self.node;
        let shim = node.running("s1", &self.sandbox()).await;
        for id in ["c1", "c2"] {
            let dir = node.bundle(id, &self.member(id));
            shim.create(id, &dir, NO_STREAMS).await.expect("create");
        }
        shim.start("c1", "").await.expect("start");
        assert_eq!(shim.run_exec("c1", "probe", &["/bin/true"]).await, 0);
        shim.kill("c1", "", 9).await.expect("kill");
        shim.wait("c1", "").await.expect("wait");
        for id in ["c1", "c2"] {
            shim.delete(id, "").await.expect("delete");
        }
        let requests = node.requests();
        node.end(&shim, "s1").await;
        requests
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("file");
    plain_modes(path);
}

/// Modes that do not depend on who runs the test.
fn plain_modes(path: &Path) {
    let meta = fs::symlink_metadata(path).expect("file");
    if meta.is_symlink() {
        return;
    }
    let mode = if meta.is_dir() { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
    if meta.is_dir() {
        fs::read_dir(path).expect("folder").for_each(|entry| plain_modes(&entry.expect("entry").path()));
    }
}

fn mount(bundle: &mut Bundle, destination: &str, source: &Path, options: &[&str]) {
    bundle.config["mounts"]
        .as_array_mut()
        .expect("list")
        .push(json!({"destination": destination, "type": "bind", "source": source, "options": options}));
}

/// Requests without what differs from run to run: the node's folder, and the numbers of copies.
fn steady(node: &TestNode, kubelet: &Path, requests: &[Value]) -> String {
    let in_order = |entry: &&Value| entry["call"].as_str().is_some_and(|call| IN_ORDER.contains(&call));
    let asked = |entry: &Value| json!({"call": entry["call"], "request": entry["request"]});
    let requests: Vec<_> = requests.iter().filter(in_order).map(asked).collect();
    let mut text = serde_json::to_string_pretty(&requests).expect("text");
    text = text.replace(&node.path("").display().to_string(), "/node/");
    text = text.replace(&kubelet.display().to_string(), "/kubelet");
    let shared = "/run/kata-containers/shared/containers/";
    let mut numbers = Vec::new();
    let mut steady = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once(shared) {
        let mut parts = after.splitn(3, '-');
        let [id, number, name] = [(); 3].map(|()| parts.next().expect("a copy"));
        let known = numbers.iter().position(|known| *known == number).unwrap_or_else(|| {
            numbers.push(number);
            numbers.len() - 1
        });
        steady += &format!("{before}{shared}{id}-{known:016x}-");
        rest = name;
    }
    steady + rest + "\n"
}

#[tokio::test]
async fn the_requests_of_a_pod_are_those_of_the_golden_files_and_generated_policies_allow_them() {
    for (agent, newer) in [("4.1.0", false), ("4.2.0", true)] {
        let pod = Pod::new("[rootfs]\nmode = \"guest-pull\"\n", agent).await;
        let requests = pod.run().await;
        let denied = |entry: &&Value| entry["call"].as_str().is_some_and(|call| DENIED.contains(&call));
        for entry in requests.iter().filter(|entry| !denied(entry)) {
            let refusals = generated_policy::refusals(entry, newer);
            assert!(refusals.is_empty(), "{refusals:#?}: {entry:#}");
        }
        let golden =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/testdata/requests-{agent}.json"));
        let text = steady(&pod.node, pod.kubelet.path(), &requests);
        if std::env::var_os("KATA_SE_BLESS").is_some() {
            fs::write(&golden, &text).expect("golden file");
        }
        let wanted = fs::read_to_string(&golden).expect("golden file");
        let line = text.lines().zip(wanted.lines()).position(|(is, was)| is != was);
        assert!(text == wanted, "{} differs in line {:?}:\n{text}", golden.display(), line.map(|n| n + 1));
    }
}

/// What policies refuse, so that the rules can fail: what the host gives a guest instead of what it makes itself.
#[tokio::test]
async fn generated_policies_refuse_what_the_host_gives_a_guest() {
    for (config, wanted) in [
        (
            "[rootfs]\nmode = \"packed\"\n",
            ["0 storages image_guest_pull", "no rule allows a storage \"blk-ccw\""],
        ),
        (
            "[rootfs]\nmode = \"guest-pull\"\n[volumes]\nempty_dir = \"guest-local\"\n",
            ["no rule allows a storage \"local\"", "mount /cache: type \"local\""],
        ),
        (
            "[rootfs]\nmode = \"guest-pull\"\n[volumes]\nempty_dir = \"block-plain\"\n",
            ["scsi: driver_options is", "scsi: options is [\"discard\"]"],
        ),
    ] {
        let pod = Pod::new(config, "4.1.0").await;
        let requests = pod.run().await;
        let refusals: Vec<_> =
            requests.iter().flat_map(|entry| generated_policy::refusals(entry, false)).collect();
        for why in wanted {
            assert!(refusals.iter().any(|refusal| refusal.contains(why)), "{why}: {refusals:#?}");
        }
    }
}
