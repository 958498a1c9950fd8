//! How kills by the guest's OOM killer are reported to containerd and CRI-O.

use std::time::{Duration, Instant};

use harness::{Bundle, NO_STREAMS, TestNode, cgroup_of, eventually, limit_memory, within};
use serde_json::json;

/// A script that waits for the file `name` and then exits as if it were killed: an init process cannot kill itself.
fn killed_when(node: &TestNode, name: &str) -> Bundle {
    let file = node.path(name);
    Bundle::sh(&format!("while ! [ -e {} ]; do sleep 0.02; done; exit 137", file.display()))
}

#[tokio::test]
async fn an_oom_is_reported_before_the_exit_and_to_crio_by_a_file() {
    let node = TestNode::new().await;
    // The report comes three seconds after the pod is up, half a second after the exit.
    node.script(&json!([{"call": "GetOOMEvent", "nth": 1, "skip": true, "delay_ms": 3000,
        "answer": {"container_id": "m1"}}]));
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    let up = Instant::now();
    let dir = node.bundle("m1", &killed_when(&node, "now").member("s1"));
    shim.create("m1", &dir, NO_STREAMS).await.expect("create");
    shim.start("m1", "").await.expect("start");
    tokio::time::sleep(Duration::from_millis(2400).saturating_sub(up.elapsed())).await;
    std::fs::write(node.path("now"), b"").expect("now");
    assert_eq!(within("its end", 5, shim.wait("m1", "")).await, Ok(137));
    assert!(dir.join("oom").is_file(), "CRI-O's file exists before the exit is reported");
    assert!(!node.path("bundles/s1/oom").exists());
    eventually("events", 5, || node.events.lines().iter().any(|l| l == "exit m1 137")).await;
    let lines = node.events.lines();
    let at = |line: &str| lines.iter().position(|l| l == line);
    assert!(at("oom m1").is_some() && at("oom m1") < at("exit m1 137"), "{lines:?}");
    shim.delete("m1", "").await.expect("delete");
    node.end(&shim, "s1").await;
}

#[tokio::test]
async fn an_exit_without_oom_is_reported_soon() {
    let node = TestNode::new().await;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    // Killed by a caller: at once.
    let dir = node.bundle("m1", &Bundle::sh("sleep 1000").member("s1"));
    shim.create("m1", &dir, NO_STREAMS).await.expect("create");
    shim.start("m1", "").await.expect("start");
    let began = Instant::now();
    shim.kill("m1", "", 9).await.expect("kill");
    assert_eq!(shim.wait("m1", "").await, Ok(137));
    assert!(began.elapsed() < Duration::from_millis(800), "{:?}", began.elapsed());
    // Killed inside the guest: after a bounded wait.
    let dir = node.bundle("m2", &Bundle::sh("exit 137").member("s1"));
    shim.create("m2", &dir, NO_STREAMS).await.expect("create");
    shim.start("m2", "").await.expect("start");
    assert_eq!(within("its end", 3, shim.wait("m2", "")).await, Ok(137));
    assert!(!dir.join("oom").exists());
    for id in ["m1", "m2"] {
        shim.delete(id, "").await.expect("delete");
    }
    node.end(&shim, "s1").await;
}

#[tokio::test]
async fn a_guest_cannot_flood_containerd_with_ooms() {
    let node = TestNode::new().await;
    node.script(&json!([{"call": "GetOOMEvent", "skip": true, "answer": {"container_id": "c1"}}]));
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ooms = node.events.lines().iter().filter(|l| *l == "oom c1").count();
    assert!((1..=30).contains(&ooms), "{ooms}");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_vm_killed_by_the_hosts_oom_killer_is_reported_as_such() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let (_, vm) = shim.pid("c1").await;
    let dir = cgroup_of(vm, "memory");
    std::fs::write(format!("/proc/{vm}/oom_score_adj"), "1000").expect("the double is hit first");
    limit_memory(&dir, 64 << 20);
    // On this node the guest's processes are in the same cgroup.
    let hog = "echo -500 > /proc/self/oom_score_adj; exec tail /dev/zero";
    shim.exec("c1", "hog", Bundle::process(&["/bin/sh", "-c", hog]), NO_STREAMS).await.expect("exec");
    shim.start("c1", "hog").await.ok();
    assert_eq!(within("its end", 20, shim.wait("c1", "")).await, Ok(137));
    let record = std::fs::read_to_string(node.pod_dir().join("state.json")).expect("record");
    let record: serde_json::Value = serde_json::from_str(&record).expect("JSON");
    let failure = &record["failure"];
    assert_eq!(failure["cause"], "the host's OOM killer ended the VM", "{record}");
    let evidence = failure["evidence"].as_str().expect("evidence");
    assert!(evidence.contains("is 64 MiB") && evidence.contains("/kata-se-tests/kata-se-"), "{evidence}");
    node.end(&shim, "c1").await;
}
