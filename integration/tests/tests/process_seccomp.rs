//! Seccomp profiles are sent only to guests that support them: the policies of most refuse a container with one.

use harness::{Bundle, NO_STREAMS, TestNode};
use serde_json::{Value, json};

fn profiled() -> Bundle {
    let mut bundle = Bundle::sh("sleep 1000");
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"],
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    });
    bundle
}

/// The key set to true in a drop-in.
fn switch_on(node: &TestNode) {
    std::fs::create_dir(node.path("config.d")).expect("folder");
    std::fs::write(node.path("config.d/seccomp.toml"), "[guest]\nseccomp = true\n").expect("drop-in");
}

/// The profile in the last CreateContainer that the agent got.
fn sent(node: &TestNode) -> Value {
    let requests = node.requests();
    let last = requests.iter().rfind(|r| r.to_string().contains("CreateContainer")).expect("CreateContainer");
    last.pointer("/request/OCI/Linux/Seccomp").cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_profile_is_left_out_unless_the_key_says_otherwise() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &profiled()).await;
    assert_eq!(sent(&node), Value::Null);
    assert!(!node.log().contains("seccomp"));
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn an_agent_that_cannot_apply_profiles_is_one_warning() {
    let node = TestNode::new().await;
    switch_on(&node);
    let shim = node.running("s1", &profiled().sandbox()).await;
    let dir = node.bundle("m1", &profiled().member("s1"));
    shim.create("m1", &dir, NO_STREAMS).await.expect("create");
    assert_eq!(sent(&node), Value::Null);
    assert_eq!(node.log().matches("cannot apply seccomp profiles").count(), 1);
    shim.delete("m1", "").await.expect("delete");
    node.end(&shim, "s1").await;
}

#[tokio::test]
async fn a_profile_is_sent_whole_to_an_agent_that_applies_it_and_a_policys_refusal_is_reported() {
    let node = TestNode::new().await;
    switch_on(&node);
    // The agent announces support, and then its policy refuses.
    node.script(
        &json!([{"call": "GetGuestDetails", "answer": {"agent_details": {"supports_seccomp": true}}}]),
    );
    let e = node.refused(&profiled()).await;
    assert!(e.contains("seccomp is set: policies refuse it"), "{e}");
    let profile = sent(&node);
    assert_eq!(profile["Syscalls"][0]["Names"], json!(["mkdir"]), "{profile}");
    assert_eq!(profile["Syscalls"][0]["errnoret"], 1, "{profile}");
}
