//! Every call to the guest agent has a deadline, and what it leaves is consistent: the pod can be used or ended.

use std::time::{Duration, Instant};

use harness::{Bundle, Code, NO_STREAMS, PodNetns, Shim, TestNode, code, eventually, within};
use serde_json::{Value, json};

/// The limit of a call in these tests.
const LIMIT: Duration = Duration::from_secs(1);

/// The three ways of not answering: never, after the limit, and half an answer.
fn silences(call: &str) -> [Value; 3] {
    [
        json!([{"call": call, "skip": true, "hang": true}]),
        json!([{"call": call, "skip": true, "delay_ms": 1500}]),
        json!([{"call": call, "skip": true, "cut": 5}]),
    ]
}

async fn node_with_short_limits() -> TestNode {
    let node = TestNode::new().await;
    std::fs::create_dir(node.path("config.d")).expect("folder");
    let limits = "[agent]\ncall_timeout_s = 1\ncreate_timeout_s = 1\n";
    std::fs::write(node.path("config.d/limits.toml"), limits).expect("drop-in");
    node
}

/// The call ends at its deadline, with an error that says so.
async fn ends<T: std::fmt::Debug>(call: &str, asking: impl Future<Output = ttrpc::Result<T>>) {
    let began = Instant::now();
    let result = within(call, 10, asking).await;
    let took = began.elapsed();
    assert_eq!(code(&result), Some(Code::DEADLINE_EXCEEDED), "{call}: {result:?}");
    let text = result.expect_err("no answer").to_string();
    assert!(text.contains(&format!("agent {call}: no answer within 1 s")), "{text}");
    assert!(took >= LIMIT && took < LIMIT * 2, "{call}: {took:?}");
}

/// Retries until it works.
async fn eventually_ok<F: Future<Output = ttrpc::Result<()>>>(what: &str, ask: impl Fn() -> F) {
    within(what, 10, async {
        while ask().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// KILL and Delete end a pod whatever its guest does.
async fn end_all_the_same(node: &TestNode, shim: &Shim) {
    within("KILL", 12, shim.kill("c1", "", 9)).await.ok();
    assert_eq!(within("its end", 10, shim.wait("c1", "")).await, Ok(137));
    within("delete", 10, shim.delete("c1", "")).await.expect("delete");
    shim.shutdown(true).await.expect("shutdown");
    node.assert_clean();
}

#[tokio::test]
async fn a_create_whose_guest_stops_answering_fails_and_is_undone() {
    let netns = PodNetns::new();
    let node = node_with_short_limits().await;
    let calls = [
        "UpdateInterface",
        "UpdateRoutes",
        "AddARPNeighbors",
        "CreateSandbox",
        "GetGuestDetails",
        "CopyFile",
        "CreateContainer",
    ];
    let mut bundle = Bundle::sh("true").network(&netns.path());
    let file =
        json!({"destination": "/f", "type": "bind", "source": node.path("config.toml"), "options": ["bind"]});
    bundle.config["mounts"].as_array_mut().expect("list").push(file);
    let dir = node.bundle("c1", &bundle);
    for call in calls {
        for silence in silences(call) {
            node.script(&silence);
            let shim = node.shim("c1", &dir).await;
            let began = Instant::now();
            let result = within("an error", 10, shim.create("c1", &dir, NO_STREAMS)).await;
            assert_eq!(code(&result), Some(Code::DEADLINE_EXCEEDED), "{call}: {result:?}");
            let text = result.expect_err("no answer").to_string();
            assert!(text.contains(&format!("agent {call}: no answer within 1 s")), "{text}");
            assert!(began.elapsed() < Duration::from_secs(9), "{call}: {:?}", began.elapsed());
            shim.shutdown(true).await.expect("shutdown");
            node.assert_clean();
        }
    }
}

#[tokio::test]
async fn every_call_of_a_running_pod_has_an_end() {
    let node = node_with_short_limits().await;
    for way in 0..3 {
        let dir = node.bundle("c1", &Bundle::sh("sleep 1000").terminal());
        let shim = node.shim("c1", &dir).await;
        let (input, out) = (shim.fifo("c1", "in"), shim.fifo("c1", "out"));
        let streams = [input.to_str().expect("utf-8"), out.to_str().expect("utf-8"), ""];
        shim.create_for("c1", &dir, streams, true, Duration::from_secs(10)).await.expect("create");
        let silence = |call: &str| node.script(&silences(call)[way]);
        silence("StartContainer");
        // It is unknown whether it runs: it counts as ended.
        ends("StartContainer", shim.start("c1", "")).await;
        node.end(&shim, "c1").await;

        node.script(&json!([]));
        let shim = node.shim("c1", &dir).await;
        shim.create_for("c1", &dir, streams, true, Duration::from_secs(10)).await.expect("create");
        shim.start("c1", "").await.expect("start");
        silence("TtyWinResize");
        ends("TtyWinResize", shim.resize("c1", 80, 25)).await;
        silence("StatsContainer");
        ends("StatsContainer", shim.stats("c1")).await;
        silence("UpdateContainer");
        ends("UpdateContainer", shim.update("c1", &json!({"cpu": {"shares": 2}}))).await;
        silence("ExecProcess");
        shim.exec("c1", "e1", Bundle::process(&["/bin/true"]), NO_STREAMS).await.expect("exec");
        ends("ExecProcess", shim.start("c1", "e1")).await;
        shim.delete("c1", "e1").await.expect("delete");
        silence("SignalProcess");
        ends("SignalProcess", shim.kill("c1", "", 15)).await;
        silence("PauseContainer");
        ends("PauseContainer", shim.pause("c1")).await;
        // After half an answer the connection stays silent.
        if way < 2 {
            node.script(&json!([]));
            eventually_ok("it can be paused again", || shim.pause("c1")).await;
            silence("ResumeContainer");
            ends("ResumeContainer", shim.resume("c1")).await;
            node.script(&json!([]));
            shim.resume("c1").await.expect("asked again");
        }
        // Input that the guest does not accept is lost; nothing else is.
        silence("WriteStdin");
        std::fs::OpenOptions::new()
            .write(true)
            .open(&input)
            .and_then(|mut f| std::io::Write::write_all(&mut f, b"x"))
            .expect("write");
        silence("DestroySandbox");
        end_all_the_same(&node, &shim).await;
    }
}

#[tokio::test]
async fn a_container_the_guest_does_not_remove_is_reported_and_ends_with_its_pod() {
    let node = node_with_short_limits().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000").sandbox()).await;
    for (n, silence) in silences("RemoveContainer").iter().enumerate() {
        let id = format!("m{n}");
        let dir = node.bundle(&id, &Bundle::sh("exit 3").member("c1"));
        shim.create(&id, &dir, NO_STREAMS).await.expect("create");
        shim.start(&id, "").await.expect("start");
        assert_eq!(shim.wait(&id, "").await, Ok(3));
        node.script(silence);
        ends("RemoveContainer", shim.delete(&id, "")).await;
        node.script(&json!([]));
    }
    end_all_the_same(&node, &shim).await;
}

#[tokio::test]
async fn a_start_that_hangs_fails_and_leaves_a_container_that_can_be_deleted() {
    let node = TestNode::new().await;
    node.script(&json!([{"call": "StartContainer", "hang": true}]));
    let dir = node.bundle("c1", &Bundle::sh("sleep 1000"));
    let shim = node.shim("c1", &dir).await;
    shim.create("c1", &dir, NO_STREAMS).await.expect("create");
    let started = within("an error", 8, shim.start("c1", "")).await;
    assert_eq!(code(&started), Some(Code::DEADLINE_EXCEEDED), "{started:?}");
    assert!(started.expect_err("hung").to_string().contains("agent StartContainer: no answer within 5 s"));
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn one_slow_container_does_not_slow_the_pod() {
    let node = TestNode::new().await;
    node.config("");
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    node.script(&json!([{"call": "CreateContainer", "request": {"containerId": "m1"}, "hang": true},
        {"call": "CreateContainer", "hang": true}]));
    let dir = node.bundle("m1", &Bundle::sh("true").member("s1"));
    let slow = shim.clone();
    let creating = tokio::spawn(async move { slow.create("m1", &dir, NO_STREAMS).await });
    eventually("the call hangs", 5, || {
        node.requests().iter().filter(|r| r["call"] == "CreateContainer").count() == 2
    })
    .await;
    let mut each = Vec::new();
    for _ in 0..200 {
        let began = std::time::Instant::now();
        shim.state("s1", "").await.expect("state");
        each.push(began.elapsed());
    }
    each.sort();
    assert!(each[197] < Duration::from_millis(20), "the slowest: {:?}", &each[190..]);
    assert_eq!(shim.run_exec("s1", "e1", &["/bin/true"]).await, 0);
    assert!(creating.await.expect("join").is_err());
    node.end(&shim, "s1").await;
}

#[tokio::test]
async fn a_connection_lost_while_waiting_loses_no_exit_code() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    node.script(&json!([{"call": "StatsContainer", "close": true}, {"call": "SignalProcess", "nth": 1, "close": true}]));
    shim.exec("c1", "e1", Bundle::process(&["/bin/sh", "-c", "sleep 2; exit 6"]), NO_STREAMS)
        .await
        .expect("exec");
    shim.start("c1", "e1").await.expect("start");
    let lost = shim.kill("c1", "", 18).await;
    assert_eq!(code(&lost), Some(Code::UNAVAILABLE), "not repeated: {lost:?}");
    assert_eq!(within("its end", 10, shim.wait("c1", "e1")).await, Ok(6));
    node.end(&shim, "c1").await;
}
