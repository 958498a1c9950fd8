//! Documents that a pod brings for its guest's programs: the disk on which the guest finds them, what is told of them,
//! and what is refused.

use std::fs;

use harness::{Bundle, PodConfig, TestNode, command};
use serde_json::{Value, json};

const ANNOTATION: &str = "io.katacontainers.config.hypervisor.cc_init_data";
const TEXT: &str = include_str!("../../../src/config/testdata/initdata.base64");
/// The hash of the TOML text, by its own algorithm.
const DIGEST: &str =
    "01d3248ddd3ae769b8c4f80edf30f3008b88c3e71e6aa46c1a2752080fe7781584ab10e3720247ea0fb1d7741a44d611";

/// What the node command says of the gzip stream on the disk that the guest finds, which is read as an agent reads
/// it: by its magic, and by the length that follows.
fn digest_on_disk(node: &TestNode) -> String {
    let disk = fs::read(node.path("record/disks/initdata")).expect("the disk");
    assert!(disk.starts_with(b"initdata") && disk.len() % 512 == 0, "{} bytes", disk.len());
    let length = u64::from_le_bytes(disk[8..16].try_into().expect("eight bytes"));
    let end = 16 + usize::try_from(length).expect("short");
    fs::write(node.path("stream"), &disk[16..end]).expect("write");
    let output = command("kata-se").args(["initdata", "digest"]).arg(node.path("stream")).output();
    String::from_utf8(output.expect("kata-se").stdout).expect("text")
}

fn record(node: &TestNode) -> Value {
    serde_json::from_slice(&fs::read(node.pod_dir().join("state.json")).expect("record")).expect("JSON")
}

#[tokio::test]
async fn a_guest_finds_its_pods_initdata_on_a_disk_and_its_digest_is_told() {
    let node = TestNode::new().await;
    let bundle = Bundle::sh("sleep 1000").sandbox().annotation(ANNOTATION, TEXT);
    let shim = node.running("c1", &bundle).await;
    assert_eq!(digest_on_disk(&node), format!("sha384 {DIGEST}\n"));
    assert_eq!(record(&node)["initdata"], json!({"algorithm": "sha384", "digest": DIGEST}));
    let log = node.log();
    assert!(log.contains("the pod brings initdata") && log.contains(DIGEST), "{log}");
    let said =
        format!("{log}{}{}", record(&node), node.requests().iter().map(Value::to_string).collect::<String>());
    for secret in [TEXT.trim(), ANNOTATION, "kbs:8080"] {
        assert!(!said.contains(secret), "{secret} is in {said}");
    }
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_sandbox_without_a_container_brings_its_own() {
    let node = TestNode::new().await;
    let (_shim, sandbox) = node.sandbox("s1").await;
    sandbox.create(&PodConfig::default().annotation(ANNOTATION, TEXT), "").await.expect("create");
    sandbox.start().await.expect("start");
    assert_eq!(digest_on_disk(&node), format!("sha384 {DIGEST}\n"));
    let status = sandbox.status(true).await.expect("status");
    let info: Value = serde_json::from_str(&status.info["info"]).expect("JSON");
    assert_eq!(info["record"]["initdata"]["digest"], DIGEST);
    sandbox.stop().await.expect("stop");
    sandbox.shutdown().await.expect("shutdown");
    node.assert_clean();
}

#[tokio::test]
async fn what_a_guest_could_not_read_is_refused_before_anything_is_started() {
    let node = TestNode::new().await;
    for (value, wanted) in [
        ("", "is empty: make it with `kata-se initdata build`"),
        ("S3CRET!", "not base64 with the standard alphabet and padding"),
        ("UzNDUkVU", "not a whole gzip stream"),
    ] {
        let text = node.refused(&Bundle::sh("true").sandbox().annotation(ANNOTATION, value)).await;
        assert!(text.contains(&format!("annotation {ANNOTATION}: {wanted}")), "{text}");
        assert!(!text.contains("S3CRET") && !text.contains("UzND") && !text.contains("QEMU"), "{text}");
    }
    assert!(node.requests().is_empty(), "no guest was started");
}

#[tokio::test]
async fn a_pod_without_initdata_has_no_disk() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000").sandbox()).await;
    assert_eq!(fs::read_dir(node.path("record/disks")).expect("folder").count(), 0);
    assert!(record(&node).get("initdata").is_none());
    node.end(&shim, "c1").await;
}
