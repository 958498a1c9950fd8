//! Images that guests pull themselves: from a real registry that a pod reaches through its own network, while the
//! host's copy is empty or another one.

use std::fs;
use std::process::{Child, Output};
use std::time::{Duration, Instant};

use harness::{Containerd, Fault, Layer, MEMBER, Packing, PodNetns, Registry, SANDBOX};

/// A file that no image of the host has.
const MARK: &str = "cat /srv/mark";

/// busybox, two layers that replace, remove and hide what is below, and the mark; packed in every way.
fn layered() -> Vec<Layer> {
    let mut layers = Layer::of_archive("layered.tar");
    layers.push(mark());
    let packings = [Packing::Gzip, Packing::Zstd, Packing::Plain, Packing::Zstd];
    assert_eq!(layers.len(), packings.len());
    layers.into_iter().zip(packings).map(|(layer, packing)| layer.packed(packing)).collect()
}

fn mark() -> Layer {
    Layer::of_files(&[("srv/mark", b"of the registry\n")])
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Nothing was packed of what the host has.
fn assert_nothing_packed(node: &Containerd) {
    let layers = fs::read_dir(node.path("layers")).into_iter().flatten().flatten();
    let packed: Vec<_> = layers.map(|entry| entry.path()).filter(|path| path.extension().is_some()).collect();
    assert!(packed.is_empty(), "{packed:?}");
}

#[test]
fn a_container_runs_an_image_that_only_its_guest_has() {
    let netns = PodNetns::new();
    let registry = Registry::on(&netns.host(false));
    let theirs = [Layer::of_files(&[("srv/mark", b"of another machine\n")])];
    registry.push_index("app:1", &[("amd64", &theirs), ("s390x", &layered())]);
    // By the agent's versions: one that takes metadata and one that takes none.
    for version in ["4.1.0", "4.2.0"] {
        let node = Containerd::new();
        node.guests_pull("", &format!("guest-agent.version={version}"));
        // The host has no image at all.
        fs::create_dir(node.path("empty")).expect("folder");
        let empty = node.path("empty").display().to_string();
        let network = format!("network:{}", netns.path());
        let image = format!("io.kubernetes.cri.image-name={}", registry.name("app:1"));
        let options = ["--rm", "--with-ns", &network, "--annotation", &image, "--rootfs"];
        let script =
            format!("{MARK}; uname -m; ls /sys/block | wc -l; cd /srv; cat replaced; ls; cat opaque/*");
        let output = node.run_of(&empty, &options, "c1", &["/bin/sh", "-c", &script]).output().expect("ctr");
        assert_eq!(
            text(&output),
            "of the registry\ns390x\n0\nupper\nkept\nmark\nopaque\nreplaced\nupper\n",
            "agent {version}: {}",
            node.log()
        );
        assert_nothing_packed(&node);
        assert!(node.log().contains("the guest has pulled"), "{}", node.log());
        node.assert_clean();
    }
}

/// A pod by `ctr`: its sandbox container runs as long as this lives.
struct CtrPod<'n> {
    node: &'n Containerd,
    sandbox: Child,
    network: String,
}

impl<'n> CtrPod<'n> {
    fn start(node: &'n Containerd, netns: &PodNetns) -> Self {
        let network = format!("network:{}", netns.path());
        // The guest runs its own pause program in place of this one, which would end at once.
        let options = [&SANDBOX[..], &["--with-ns", &network]].concat();
        let sandbox = node.run(&options, "pod", &["true"]).spawn().expect("ctr");
        harness::until("the pod runs", 60, || {
            node.task("pod").is_some_and(|(status, _)| status == "RUNNING")
        });
        Self { node, sandbox, network }
    }

    /// A container of an image that the guest pulls, to its end.
    fn run(&self, image: &str, id: &str, args: &[&str]) -> Output {
        let image = format!("io.kubernetes.cri.image-name={image}");
        let options = [&MEMBER[..], &["--rm", "--with-ns", &self.network, "--annotation", &image]].concat();
        self.node.run(&options, id, args).output().expect("ctr")
    }

    fn end(mut self) {
        self.node.ctr_ok(&["task", "kill", "pod"]);
        let code = self.sandbox.wait().expect("ctr").code();
        assert_eq!(code, Some(0), "the guest's pause program handles the signal");
        self.node.remove("pod");
        self.node.assert_clean();
    }
}

#[test]
fn containers_of_a_pod_share_the_layers_and_the_sandbox_has_the_guests_own_program() {
    let netns = PodNetns::new();
    let registry = Registry::on(&netns.host(false));
    registry.push("app:1", &layered());
    let node = Containerd::version("1.7");
    node.guests_pull("", "");
    let pod = CtrPod::start(&node, &netns);
    assert_eq!(registry.asked().len(), 0, "the sandbox needs no registry");
    let image = registry.name("app:1");
    let write = format!("{MARK}; echo mine > /srv/mark; {MARK}");
    assert_eq!(text(&pod.run(&image, "c1", &["sh", "-c", &write])), "of the registry\nmine\n");
    let first = registry.asked();
    assert_eq!(first.iter().filter(|path| path.starts_with("blobs/")).count(), 5, "{first:?}");
    assert_eq!(text(&pod.run(&image, "c2", &["sh", "-c", MARK])), "of the registry\n", "a root of its own");
    assert_eq!(registry.asked()[first.len()..], ["manifests/1"], "no layer comes twice");
    assert_nothing_packed(&node);
    pod.end();
}

#[test]
fn why_a_pull_failed_is_said_and_the_pod_goes_on() {
    let netns = PodNetns::new();
    let mut registry = Registry::on(&netns.host(false));
    let broken = Layer::of_files(&[("broken", &[7; 5000])]).packed(Packing::Plain);
    registry.push("app:1", &layered());
    registry.push("broken:1", &[mark(), broken.clone()]);
    registry.corrupt(&broken);
    let cut = registry.behind(Fault::Close, 500_000);
    let node = Containerd::version("2");
    node.guests_pull("", "");
    let pod = CtrPod::start(&node, &netns);
    let mut tried = 0;
    let mut refused = |image: &str, inner: &str, hint: &str| {
        tried += 1;
        // A guest takes an id once, whatever came of it.
        let id = format!("c{tried}");
        let output = pod.run(image, &id, &["true"]);
        let said = text(&output);
        assert!(!output.status.success(), "{said}");
        let outer = format!(
            "[CDH] [ERROR]: Image Pull error: Failed to pull image {image} from all mirror/mapping locations or \
             original location: image: {image}, error: "
        );
        for part in [&*outer, inner, hint] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let lines = said.lines().filter(|line| line.contains("Image Pull error")).count();
        assert_eq!((lines, node.task(&id)), (1, None), "{said}");
    };
    let no_way = "the guest cannot reach the registry, or has no credentials for it";
    refused(&registry.name("app:2"), "OCI API error: manifest unknown", no_way);
    refused(&registry.name("broken:1"), "Invalid digest, expected sha256:", "");
    refused(&cut.name("app:1"), "Failed to decode layer data stream", "");
    let nobody = format!("{}:5999/app:1", netns.host(false));
    refused(&nobody, "error sending request for url", no_way);
    registry.lock();
    refused(&registry.name("app:1"), "Not authorized: url http://", no_way);
    let output = node.run(&[&MEMBER[..], &["--rm"]].concat(), "nameless", &["true"]).output().expect("ctr");
    let said = text(&output);
    assert!(
        said.contains("annotation io.kubernetes.cri.image-name with the image's name is missing"),
        "{said}"
    );
    registry.unlock();
    assert_eq!(text(&pod.run(&registry.name("app:1"), "last", &["sh", "-c", MARK])), "of the registry\n");
    pod.end();
}

#[test]
fn a_pull_that_stalls_ends_at_its_limit_and_says_what_came() {
    let netns = PodNetns::new();
    let registry = Registry::on(&netns.host(false));
    registry.push("app:1", &layered());
    let stalled = registry.behind(Fault::Stall, 400_000);
    let node = Containerd::version("2");
    node.guests_pull("image_pull_timeout_s = 10", "");
    let pod = CtrPod::start(&node, &netns);
    let began = Instant::now();
    let said = text(&pod.run(&stalled.name("app:1"), "c1", &["true"]));
    let took = began.elapsed();
    assert!((Duration::from_secs(10)..Duration::from_secs(20)).contains(&took), "{took:?}: {said}");
    assert_eq!(stalled.passed(), 400_000);
    let image = stalled.name("app:1");
    for part in [
        &*format!("image {image}: the guest has not pulled it within 10 s (agent.image_pull_timeout_s)"),
        ", 0.4 MB came over the pod's network",
        "runtimeRequestTimeout",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Its connection ends, and with it the pull that others wait for.
    drop(stalled);
    assert_eq!(text(&pod.run(&registry.name("app:1"), "c2", &["sh", "-c", MARK])), "of the registry\n");
    pod.end();
}
