//! Seccomp profiles reach only guests that want them: the policies of most refuse a container with one.

use harness::{Bundle, NO_STREAMS, Stage};
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
fn switch_on(stage: &Stage) {
    std::fs::create_dir(stage.path("config.d")).expect("folder");
    std::fs::write(stage.path("config.d/seccomp.toml"), "[guest]\nseccomp = true\n").expect("drop-in");
}

/// The profile in the last CreateContainer that the agent got.
fn sent(stage: &Stage) -> Value {
    let requests = stage.requests();
    let last = requests.iter().rfind(|r| r.to_string().contains("CreateContainer")).expect("CreateContainer");
    last.pointer("/request/OCI/Linux/Seccomp").cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_profile_is_left_out_unless_the_key_says_otherwise() {
    let stage = Stage::new().await;
    let shim = stage.running("c1", &profiled()).await;
    assert_eq!(sent(&stage), Value::Null);
    assert!(!stage.log().contains("seccomp"));
    stage.end(&shim, "c1").await;
}

#[tokio::test]
async fn an_agent_that_cannot_apply_profiles_is_one_warning() {
    let stage = Stage::new().await;
    switch_on(&stage);
    let shim = stage.running("s1", &profiled().sandbox()).await;
    let dir = stage.bundle("m1", &profiled().member("s1"));
    shim.create("m1", &dir, NO_STREAMS).await.expect("create");
    assert_eq!(sent(&stage), Value::Null);
    assert_eq!(stage.log().matches("cannot apply seccomp profiles").count(), 1);
    shim.delete("m1", "").await.expect("delete");
    stage.end(&shim, "s1").await;
}

#[tokio::test]
async fn a_profile_is_sent_whole_to_an_agent_that_applies_it_and_a_policys_refusal_is_told() {
    let stage = Stage::new().await;
    switch_on(&stage);
    // It says so, and then its policy refuses.
    stage.script(
        &json!([{"call": "GetGuestDetails", "answer": {"agent_details": {"supports_seccomp": true}}}]),
    );
    let e = stage.refused(&profiled()).await;
    assert!(e.contains("seccomp is set: policies refuse it"), "{e}");
    let profile = sent(&stage);
    assert_eq!(profile["Syscalls"][0]["Names"], json!(["mkdir"]), "{profile}");
    assert_eq!(profile["Syscalls"][0]["errnoret"], 1, "{profile}");
}
