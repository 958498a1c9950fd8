//! A container's termination message: what it wrote in the guest is in the host's file before its exit is told, and
//! no guest can write anywhere else.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use harness::{Bundle, NO_STREAMS, Shim, TestNode, within};
use serde_json::json;

/// A container with the kubelet's mount and annotations, whose message is this.
fn with_message(id: &str, script: &str, file: &Path, policy: &str) -> Bundle {
    let copy =
        format!("file=$(ls -d $GUEST_ROOT/run/kata-containers/shared/containers/{id}-*-termination-log); ");
    let mut bundle = Bundle::sh(&format!("{copy}{script}")).member("pod");
    bundle.config["mounts"].as_array_mut().expect("list").push(json!({
        "destination": "/dev/termination-log", "type": "bind", "source": file, "options": ["rbind", "rprivate", "rw"],
    }));
    let annotations = &mut bundle.config["annotations"];
    annotations["io.kubernetes.container.terminationMessagePath"] = "/dev/termination-log".into();
    annotations["io.kubernetes.container.terminationMessagePolicy"] = policy.into();
    bundle
}

/// Runs it to its end.
async fn ended(node: &TestNode, shim: &Shim, id: &str, bundle: &Bundle) {
    let dir = node.bundle(id, bundle);
    shim.create(id, &dir, NO_STREAMS).await.expect("create");
    shim.start(id, "").await.expect("start");
    within("an exit", 10, shim.wait(id, "")).await.expect("wait");
}

fn asked(node: &TestNode) -> usize {
    node.requests().iter().filter(|r| r["call"] == "GetDiagnosticData").count()
}

#[tokio::test]
async fn a_message_is_in_the_hosts_file_when_the_exit_is_told() {
    let node = TestNode::new().await;
    let shim = node.running("pod", &Bundle::sh("sleep 1000").sandbox()).await;
    let file = node.path("message");
    for (id, script, wanted) in [
        ("short", "printf why > $file; exit 3", "why".to_owned()),
        ("none", "exit 3", String::new()),
        ("long", "head -c 10000 /dev/zero | tr '\\0' x > $file", "x".repeat(4096)),
    ] {
        fs::write(&file, "").expect("file");
        ended(&node, &shim, id, &with_message(id, script, &file, "File")).await;
        assert_eq!(fs::read_to_string(&file).expect("file"), wanted, "{id}");
        shim.delete(id, "").await.expect("delete");
    }
    assert_eq!(asked(&node), 3);
    // What the guest says is bounded here, too.
    node.script(&json!([{"call": "GetDiagnosticData", "answer": {"data": {"$text": 50_000}}}]));
    ended(&node, &shim, "lie", &with_message("lie", "exit 3", &file, "File")).await;
    assert_eq!(fs::read_to_string(&file).expect("file"), "x".repeat(4096));
    shim.delete("lie", "").await.expect("delete");
    node.script(&json!([]));
    fs::write(&file, "").expect("file");
    let logs = with_message("logs", "printf why > $file", &file, "FallbackToLogsOnError");
    ended(&node, &shim, "logs", &logs).await;
    assert_eq!((fs::read_to_string(&file).expect("file").as_str(), asked(&node)), ("", 4), "not asked");
    shim.delete("logs", "").await.expect("delete");
    node.end(&shim, "pod").await;
}

#[tokio::test]
async fn nothing_else_is_written_and_a_guest_that_refuses_or_hangs_costs_the_message_only() {
    let node = TestNode::new().await;
    let shim = node.running("pod", &Bundle::sh("sleep 1000").sandbox()).await;
    let (file, other) = (node.path("message"), node.path("other"));
    let log = RefCell::new(String::new());
    let lines = |what: &str| {
        log.borrow_mut().push_str(&node.log());
        log.borrow().matches(what).count()
    };
    fs::write(&other, "the node's").expect("file");
    fs::write(&file, "").expect("file");
    let bundle = |id: &str| with_message(id, "printf why > $file; sleep 0.3", &file, "File");
    // A link in the file's place, made after the container was.
    let dir = node.bundle("link", &bundle("link"));
    shim.create("link", &dir, NO_STREAMS).await.expect("create");
    fs::remove_file(&file).expect("remove");
    symlink(&other, &file).expect("link");
    shim.start("link", "").await.expect("start");
    within("an exit", 10, shim.wait("link", "")).await.expect("wait");
    assert_eq!(fs::read_to_string(&other).expect("file"), "the node's");
    assert_eq!(lines("the termination message of link is lost"), 1, "{}", log.borrow());
    shim.delete("link", "").await.expect("delete");
    fs::remove_file(&file).expect("remove");
    fs::write(&file, "").expect("file");

    node.script(&json!([{"call": "GetDiagnosticData", "hang": true}]));
    ended(&node, &shim, "hangs", &bundle("hangs")).await;
    assert_eq!(lines("the termination message of hangs is lost"), 1, "{}", log.borrow());
    shim.delete("hangs", "").await.expect("delete");
    let refusal = json!({"code": 7, "text": "GetDiagnosticDataRequest is blocked by policy: x"});
    node.script(&json!([{"call": "GetDiagnosticData", "skip": true, "error": refusal}]));
    let before = asked(&node);
    for id in ["one", "two"] {
        ended(&node, &shim, id, &bundle(id)).await;
        shim.delete(id, "").await.expect("delete");
    }
    assert_eq!(asked(&node), before + 1, "asked once in a pod");
    assert_eq!(lines("this guest tells no termination messages"), 1, "{}", log.borrow());
    assert_eq!(fs::read_to_string(&file).expect("file"), "");
    node.script(&json!([]));
    node.end(&shim, "pod").await;
}
