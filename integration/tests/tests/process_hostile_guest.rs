//! A guest that lies about exit codes and statistics: values are clamped to what is possible. One that breaks the
//! protocol, and a QEMU that does: its VM ends, and the shim does not grow. One that writes without an end: nothing
//! grows. One that does not tell a process' end: no more ends than has to.

use harness::{Bundle, NO_STREAMS, TestNode, eventually, peak_memory, within};
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

/// What the shim may use, whatever it gets.
fn assert_small(shim: u32, why: &str) {
    let peak = peak_memory(shim);
    assert!(peak < 64 << 10, "{why}: {peak} KiB");
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
        assert_small(server, how);
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
    let line =
        "exec e1 of container c1: agent WaitProcess: the guest's policy denies it: its end cannot be known";
    assert!(log.contains(line), "{log}");
    node.end(&shim, "c1").await;

    // A container of which no end would ever be told.
    node.script(&json!([{"call": "WaitProcess", "error": blocked}]));
    let dir = node.bundle("c1", &Bundle::sh("true"));
    let shim = node.shim("c1", &dir).await;
    shim.create("c1", &dir, NO_STREAMS).await.expect("create");
    shim.start("c1", "").await.expect("start");
    assert_eq!(within("its end", 10, shim.wait("c1", "")).await, Ok(137));
    let why = "container c1: agent WaitProcess: the guest's policy denies it";
    let record = node.pod_dir().join("state.json");
    let has_reason = || std::fs::read_to_string(&record).is_ok_and(|text| text.contains(why));
    eventually("the reason in the record", 5, has_reason).await;
    let log = node.log();
    assert!(log.contains(&format!("killing the VM: {why}")), "{log}");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_qemu_that_breaks_its_protocol_ends_its_pod_and_the_shim_does_not_grow() {
    for (flood, how) in [
        ("line", "QMP: a line longer than 1048576 bytes"),
        ("events", "QMP: more than 4194304 bytes in a second"),
        ("answers", "QMP: more than 4194304 bytes in a second"),
        ("brackets", "QMP: not JSON: recursion limit exceeded"),
    ] {
        let node = TestNode::new().await;
        node.double(|orders| orders["flood"] = flood.into());
        let dir = node.bundle("c1", &Bundle::sh("sleep 1000"));
        let shim = node.shim("c1", &dir).await;
        let server = node.shim_pid().await;
        // The flood begins when the container's disk is plugged.
        let created = within("an answer", 5, shim.create("c1", &dir, NO_STREAMS)).await;
        if created.is_ok() {
            assert_eq!(within("the pod's end", 5, shim.wait("c1", "")).await, Ok(137), "{flood}");
            shim.delete("c1", "").await.expect("delete");
        }
        let log = node.log();
        assert!(log.contains(how), "{flood}: {created:?} {log}");
        assert_small(server, flood);
        within("the shim's end", 5, shim.shutdown(true)).await.expect("shutdown");
        node.assert_clean();
    }
}

#[tokio::test]
async fn output_without_an_end_waits_for_its_reader_and_the_shim_does_not_grow() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let (server, _) = shim.pid("c1").await;
    let (out, count) = (shim.fifo("e1", "out"), node.path("count"));
    let taken = || std::fs::metadata(&count).map_or(0, |file| file.len());
    // One byte in the file for each 4 KiB that went away.
    let script = format!("while head -c 4096 /dev/zero; do printf x >>{}; done", count.display());
    shim.script("c1", "e1", &script, ["", out.to_str().expect("text"), ""]).await;
    let mut last = (0, std::time::Instant::now());
    eventually("the process is held back", 20, || {
        if taken() != last.0 {
            last = (taken(), std::time::Instant::now());
        }
        last.0 > 0 && last.1.elapsed() > std::time::Duration::from_secs(1)
    })
    .await;
    // The process' own pipe and the reader's fifo hold 64 KiB each.
    let kept = (last.0 * 4) - 128;
    assert!(kept <= 256, "{kept} KiB are kept for a reader that is not there");
    // A slow reader gets it piece by piece.
    let reading = std::thread::spawn(move || {
        let mut fifo = std::fs::File::open(out).expect("open");
        let mut piece = vec![0; 64 << 10];
        for _ in 0..200 {
            std::io::Read::read_exact(&mut fifo, &mut piece).expect("read");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
    within("the reader's end", 60, tokio::task::spawn_blocking(move || reading.join()))
        .await
        .expect("join")
        .expect("read");
    assert_small(server, "endless output");
    shim.kill("c1", "e1", 9).await.expect("kill");
    assert_eq!(within("its end", 20, shim.wait("c1", "e1")).await, Ok(137));
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_gibibyte_on_the_console_is_read_and_not_kept() {
    let node = TestNode::new().await;
    // It is written before the agent answers: a console that nobody reads would keep the pod from starting.
    node.double(|orders| orders["console_bytes"] = (1_u64 << 30).into());
    let began = std::time::Instant::now();
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    eprintln!("a pod behind 1 GiB of console: {:?}", began.elapsed());
    let (server, _) = shim.pid("c1").await;
    assert_small(server, "console");
    let mut files = vec![];
    for entry in std::fs::read_dir(node.pod_dir()).expect("pod").flatten() {
        files.push((entry.path(), entry.metadata().expect("stat").len()));
    }
    assert!(files.iter().all(|(_, length)| *length < 1 << 20), "{files:?}");
    node.end(&shim, "c1").await;
}
