//! A guest that lies about exit codes and statistics: values are clamped to what is possible. One that breaks the
//! protocol: its VM ends, and the shim does not grow. One that does not tell a process' end: no more ends than has to.

use harness::{Bundle, NO_STREAMS, TestNode, eventually, within};
use serde_json::{Value, json};

#[tokio::test]
async fn lies_of_a_guest_are_harmless() {
    let node = TestNode::new().await;
    node.script(&json!([
        {"call": "WaitProcess", "nth": 1, "answer": {"status": -7}},
        {"call": "WaitProcess", "nth": 2, "answer": {"status": 70000}},
    ]));
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    for exec in ["e1", "e2"] {
        shim.exec("c1", exec, Bundle::process(&["/bin/true"]), NO_STREAMS).await.expect("exec");
        shim.start("c1", exec).await.expect("start");
        let status = within("an end", 20, shim.wait("c1", exec)).await.expect("wait");
        assert!(status <= 255, "{status}");
    }
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn statistics_of_a_lying_guest_are_bounded_by_its_vm() {
    use containerd_shim_protos::cgroups::metrics::Metrics;
    use containerd_shim_protos::protobuf::Message;
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let many: Vec<Value> =
        (0..2_000).map(|n| json!({"major": n.to_string(), "op": "read", "value": "1"})).collect();
    let most = u64::MAX.to_string();
    node.script(&json!([{"call": "StatsContainer", "answer": {"cgroup_stats": {
        "cpu_stats": {"cpu_usage": {"total_usage": most}},
        "memory_stats": {"usage": {"usage": most}, "stats": {"inactive_file": most, "pgfault": most}},
        "pids_stats": {"current": most},
        "blkio_stats": {"io_service_bytes_recursive": many},
    }}}]));
    let (kind, bytes) = within("an answer", 10, shim.stats("c1")).await.expect("stats");
    assert!(kind.starts_with("io.containerd.cgroups.v"), "{kind}");
    if kind == "io.containerd.cgroups.v1.Metrics" {
        let metrics = Metrics::parse_from_bytes(&bytes).expect("metrics");
        assert_eq!(metrics.memory.usage.usage, 256 << 20, "the VM's memory");
        assert_eq!(metrics.memory.total_inactive_file, 256 << 20);
        assert!(metrics.cpu.usage.total < 60_000_000_000, "one CPU since the VM's start");
        assert!(metrics.pids.current <= 4 << 20);
    }
    assert!(bytes.len() < 16 << 10, "{} bytes", bytes.len());
    node.end(&shim, "c1").await;
}

/// The most memory that a process has had, in KiB.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the shim");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[tokio::test]
async fn a_guest_that_breaks_the_protocol_is_ended_and_the_shim_does_not_grow() {
    let flood = |kind: u8, bytes: u32| json!({"flood": {"frames": 0, "bytes": bytes, "type": kind}});
    let many: Vec<Value> =
        (0..40_000).map(|n| json!({"major": n.to_string(), "op": "read", "value": "1"})).collect();
    for (rule, how) in [
        (flood(3, 0), "a frame of type 3"),
        (flood(3, 1 << 20), "a frame of type 3"),
        (flood(2, 1000), "an answer to no call"),
        (json!({"header": {"type": 3}}), "a frame of type 3"),
        (json!({"header": {"length": u32::MAX}}), "an answer of 4294967295 bytes"),
        (json!({"header": {"stream_id": 4_000_001}}), "an answer to no call (stream 4000001)"),
        (json!({"repeat": 1}), "an answer to no call"),
        (
            json!({"answer": {"cgroup_stats": {"blkio_stats": {"io_service_bytes_recursive": many}}}}),
            "an answer of",
        ),
    ] {
        let node = TestNode::new().await;
        let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
        let (server, _) = shim.pids_of("c1").await.expect("pids");
        let mut rule = rule;
        rule["call"] = json!("StatsContainer");
        node.script(&json!([rule]));
        let answer = within("an answer", 5, shim.stats("c1")).await;
        // An honest first answer counts; the next frame does not.
        if let Err(e) = answer {
            assert!(
                e.to_string().contains(&format!("the guest's agent broke the protocol: {how}")),
                "{how}: {e}"
            );
        }
        assert_eq!(within("the pod's end", 5, shim.wait("c1", "")).await, Ok(137), "{how}");
        assert!(node.log().contains(how), "{how}: {}", node.log());
        let peak = peak(server);
        assert!(peak < 64 << 10, "{how}: {peak} KiB");
        node.end(&shim, "c1").await;
    }
}

#[tokio::test]
async fn an_exec_whose_end_may_not_be_known_ends_alone_and_a_container_with_its_vm() {
    let blocked = json!({"code": 7, "text": "WaitProcessRequest is blocked by policy: "});
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    node.script(&json!([{"call": "WaitProcess", "request": {"exec_id": "e1"}, "error": blocked}]));
    shim.exec("c1", "e1", Bundle::process(&["/bin/true"]), NO_STREAMS).await.expect("exec");
    shim.start("c1", "e1").await.expect("start");
    assert_eq!(within("its end", 10, shim.wait("c1", "e1")).await, Ok(137));
    shim.delete("c1", "e1").await.expect("delete");
    assert_eq!(shim.run_exec("c1", "e2", &["/bin/sh", "-c", "exit 5"]).await, 5, "the pod lives");
    let killed =
        node.requests().iter().any(|r| r["call"] == "SignalProcess" && r["request"]["exec_id"] == "e1");
    assert!(killed, "it must not run on");
    let log = node.log();
    let line = "exec e1 of container c1: agent WaitProcess: WaitProcessRequest is blocked by policy:: its end cannot be known";
    assert!(log.contains(line), "{log}");
    node.end(&shim, "c1").await;

    // A container of which no end would ever be told.
    node.script(&json!([{"call": "WaitProcess", "error": blocked}]));
    let dir = node.bundle("c1", &Bundle::sh("true"));
    let shim = node.shim("c1", &dir).await;
    shim.create("c1", &dir, NO_STREAMS).await.expect("create");
    shim.start("c1", "").await.expect("start");
    assert_eq!(within("its end", 10, shim.wait("c1", "")).await, Ok(137));
    let why = "container c1: agent WaitProcess: WaitProcessRequest is blocked by policy:";
    let record = node.pod_dir().join("state.json");
    let has_reason = || std::fs::read_to_string(&record).is_ok_and(|text| text.contains(why));
    eventually("the reason in the record", 5, has_reason).await;
    let log = node.log();
    assert!(log.contains(&format!("killing the VM: {why}")), "{log}");
    node.end(&shim, "c1").await;
}
