//! Images that the guest pulls: what the agent is asked for, by caller and by the agent's version, and what an
//! operator is told when it does not come.

use std::fs;
use std::path::Path;

use harness::{Bundle, NO_STREAMS, Shim, TestNode, eventually, within};
use serde_json::{Value, json};

const NAME: &str = "io.kubernetes.cri.image-name";
const IMAGE: &str = "registry.example/app:1";

async fn node() -> TestNode {
    let node = TestNode::new().await;
    fs::create_dir_all(node.path("config.d")).expect("folder");
    fs::write(node.path("config.d/pull.toml"), "[rootfs]\nmode = \"guest-pull\"\n").expect("drop-in");
    node
}

/// Creates a container whose layers on the host do not exist: whoever opened one would fail.
async fn create(node: &TestNode, id: &str, bundle: &Bundle) -> (Shim, Result<u32, String>) {
    let dir = node.bundle(id, bundle);
    fs::remove_dir_all(dir.join("rootfs")).expect("no root file system");
    let shim = node.shim(id, &dir).await;
    let created = shim.create_on(id, &dir, &[Path::new("/nonexistent/snapshots/1/fs")]).await;
    (shim, created.map_err(|e| e.to_string()))
}

fn made(node: &TestNode) -> Vec<Value> {
    let requests = node.requests();
    requests.iter().filter(|r| r["call"] == "CreateContainer").map(|r| r["request"].clone()).collect()
}

/// The storage of a container's root file system, as policies want it; empty fields are left out in a record.
fn storage(id: &str, source: &str, metadata: Option<&Value>) -> Value {
    let mut storage = json!({
        "driver": "image_guest_pull", "source": source, "fstype": "overlay",
        "mount_point": format!("/run/kata-containers/{id}/rootfs"),
    });
    if let Some(metadata) = metadata {
        storage["driver_options"] = json!([format!("image_guest_pull={}", json!({"metadata": metadata}))]);
    }
    storage
}

#[tokio::test]
async fn a_pod_pulls_its_images_in_the_form_that_its_agent_takes_and_nothing_of_the_host_is_opened() {
    for (version, old) in [("3.25.0", true), ("4.1.0", true), ("4.2.0", false)] {
        for (kind, sandbox, member, key) in [
            (
                "io.kubernetes.cri.container-type",
                Bundle::sh("x").sandbox(),
                Bundle::sh("sleep 1000").member("s1"),
                NAME,
            ),
            (
                "io.kubernetes.cri-o.ContainerType",
                Bundle::sh("x").crio_sandbox("s1"),
                Bundle::sh("sleep 1000").crio_member("s1"),
                "io.kubernetes.cri-o.ImageName",
            ),
        ] {
            let node = node().await;
            node.double(|o| o["agent_options"] = json!(["--version", version]));
            let (shim, created) = create(&node, "s1", &sandbox).await;
            created.expect(version);
            let (_, created) = create(&node, "c1", &member.annotation(key, IMAGE)).await;
            created.expect(version);
            let sent = made(&node);
            let [of_sandbox, of_member] = sent.as_slice() else { panic!("{sent:?}") };
            for (sent, id, source, value) in
                [(of_sandbox, "s1", "pause", "sandbox"), (of_member, "c1", IMAGE, "container")]
            {
                let storages = sent["storages"].as_array().expect("storages");
                let metadata = json!({kind: value});
                let [rootfs] = storages.as_slice() else { panic!("{storages:?}") };
                assert_eq!(*rootfs, storage(id, source, old.then_some(&metadata)), "{version}");
                assert_eq!(sent["OCI"]["Root"]["Path"], json!(format!("/run/kata-containers/{id}/rootfs")));
            }
            assert!(!node.path("layers").exists(), "something was packed");
            let log = node.log();
            assert!(log.contains("the guest pulls registry.example/app:1"), "{log}");
            assert!(!log.contains("disk plugged"), "{log}");
            shim.delete("c1", "").await.expect("delete");
            node.end(&shim, "s1").await;
        }
    }
}

/// A newer agent could take a container with its sandbox's id for the sandbox container.
#[tokio::test]
async fn a_container_of_ctr_pulls_the_image_that_its_annotation_names() {
    let node = node().await;
    node.double(|o| o["agent_options"] = json!(["--version", "4.2.0"]));
    let (shim, created) = create(&node, "c1", &Bundle::sh("sleep 1000").annotation(NAME, IMAGE)).await;
    created.expect("create");
    let sent = made(&node);
    assert_eq!(sent[0]["storages"][0], storage("c1", IMAGE, None));
    let sandbox = node.requests().into_iter().find(|r| r["call"] == "CreateSandbox").expect("sandbox");
    assert_eq!(sandbox["request"]["sandbox_id"], "c1-sandbox");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn an_image_without_a_name_is_refused_with_the_key_and_one_of_another_mode_with_its_key() {
    let nameless = node().await;
    let text = nameless.refused(&Bundle::sh("true")).await;
    assert!(
        text.contains("the annotation io.kubernetes.cri.image-name with the image's name is missing"),
        "{text}"
    );
    assert!(nameless.requests().is_empty(), "a guest was started for it");

    // {"volume_type":"image_guest_pull","source":"dummy-image-reference"}
    let volume =
        "eyJ2b2x1bWVfdHlwZSI6ImltYWdlX2d1ZXN0X3B1bGwiLCJzb3VyY2UiOiJkdW1teS1pbWFnZS1yZWZlcmVuY2UifQ==";
    let options = [format!("io.katacontainers.volume={volume}")];
    let packed = TestNode::new().await;
    let dir = packed.bundle("c1", &Bundle::sh("true").annotation(NAME, IMAGE));
    let shim = packed.shim("c1", &dir).await;
    let e =
        shim.create_with("c1", &dir, "fuse.nydus-overlayfs", &options).await.expect_err("packed").to_string();
    assert!(e.contains("the snapshotter leaves the image to the guest: set rootfs.mode"), "{e}");
    shim.shutdown(true).await.expect("shutdown");
    packed.assert_clean();

    let pulls = node().await;
    let dir = pulls.bundle("c1", &Bundle::sh("sleep 1000").annotation(NAME, IMAGE));
    let shim = pulls.shim("c1", &dir).await;
    shim.create_with("c1", &dir, "fuse.nydus-overlayfs", &options).await.expect("create");
    assert_eq!(made(&pulls)[0]["storages"][0]["source"], IMAGE);
    pulls.end(&shim, "c1").await;
}

#[tokio::test]
async fn an_error_of_the_guest_comes_with_what_to_do() {
    let node = node().await;
    let text = "[CDH] [ERROR]: Image Pull error: Failed to pull image registry.example/app:1 from all mirror/mapping \
                locations or original location: image: registry.example/app:1, error: Not authorized: url x";
    node.script(&json!([{"call": "CreateContainer", "error": {"code": 13, "text": text}}]));
    let (shim, created) = create(&node, "c1", &Bundle::sh("true").annotation(NAME, IMAGE)).await;
    let e = created.expect_err("not authorized");
    assert!(
        e.contains(
            "error: Not authorized: url x: the guest cannot reach the registry, or has no credentials"
        ),
        "{e}"
    );
    assert!(e.contains("never from imagePullSecrets"), "{e}");
    shim.shutdown(true).await.expect("shutdown");
    node.assert_clean();
}

/// The pull's limit is neither that of other creations nor that of other calls.
#[tokio::test]
async fn a_pull_that_takes_too_long_says_which_limit_ended_it_and_which_are_smaller() {
    let node = node().await;
    node.config("image_pull_timeout_s = 1\n");
    node.double(|o| o["agent_options"] = json!(["--no-cdh"]));
    let bundle = Bundle::sh("true").annotation(NAME, IMAGE);
    let (shim, created) = create(&node, "c1", &bundle).await;
    let e = created.expect_err("no data hub");
    assert!(e.contains("the guest has not pulled it within 1 s (agent.image_pull_timeout_s): 1 s, "), "{e}");
    for other in ["runtimeRequestTimeout", "container_create_timeout", "Confidential Data Hub"] {
        assert!(e.contains(other), "{e}");
    }
    shim.shutdown(true).await.expect("shutdown");
    node.assert_clean();
}

#[tokio::test]
async fn a_pull_outlives_the_limit_of_other_creations_and_one_that_is_given_up_says_so() {
    let node = node().await;
    node.config("image_pull_timeout_s = 60\n");
    let (shim, created) = create(&node, "s1", &Bundle::sh("x").sandbox()).await;
    created.expect("sandbox");
    // As long as the limit of other creations, and a second more.
    node.script(&json!([{"call": "CreateContainer", "nth": 1, "delay_ms": 6000}, {"call": "CreateContainer", "hang": true}]));
    let (_, created) = create(&node, "c1", &Bundle::sh("true").member("s1").annotation(NAME, IMAGE)).await;
    created.expect("slow");

    let dir = node.bundle("c2", &Bundle::sh("true").member("s1").annotation(NAME, IMAGE));
    let creating = shim.create("c2", &dir, NO_STREAMS);
    let deleting = async {
        eventually("the pull", 10, || made(&node).iter().any(|sent| sent["container_id"] == "c2")).await;
        shim.delete("c2", "").await
    };
    let (created, deleted) = within("the end", 30, async { tokio::join!(creating, deleting) }).await;
    assert!(deleted.expect_err("never made").to_string().contains("its creation was cancelled"));
    assert!(created.expect_err("deleted").to_string().contains("cancelled"));
    let log = node.log();
    assert!(log.contains("the guest was still pulling it when its container was given up after "), "{log}");
    assert!(
        log.contains("Our limit is 60 s (agent.image_pull_timeout_s); smaller ones are the kubelet's"),
        "{log}"
    );
    shim.delete("c1", "").await.expect("delete");
    node.end(&shim, "s1").await;
}
