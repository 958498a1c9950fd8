//! Every call in every state of a container and of an exec: the code that callers rely on, and the text.

use std::time::Duration;

use harness::{Bundle, Code, NO_STREAMS, Shim, TestNode, code, eventually, within};
use serde_json::json;

/// The calls, those that end a state last.
const CALLS: [&str; 15] = [
    "state",
    "pids",
    "stats",
    "update",
    "checkpoint",
    "close_io",
    "resize",
    "create",
    "exec",
    "resume in vain",
    "pause in vain",
    "start in vain",
    "delete in vain",
    "kill 0",
    "kill",
];

/// The result of one call: `ok`, or code and text.
async fn ask(node: &TestNode, shim: &Shim, call: &str, id: &str, exec: &str) -> String {
    let dir = node.path("bundles/m1");
    let asking = async {
        match call {
            "state" => shim.state(id, exec).await.map(|_| ()),
            "pids" => shim.pids(id).await.map(|_| ()),
            "stats" => shim.stats(id).await.map(|_| ()),
            "update" => shim.update(id, &json!({"cpu": {"shares": 512}})).await,
            "checkpoint" => shim.checkpoint(id).await,
            "close_io" => shim.close_stdin(id, exec).await,
            "resize" => shim.resize(id, 80, 25).await,
            "create" => shim.create(id, &dir, NO_STREAMS).await.map(|_| ()),
            "exec" => shim.exec(id, "e1", Bundle::process(&["/bin/sleep", "1000"]), NO_STREAMS).await,
            "resume in vain" => shim.resume(id).await,
            "pause in vain" => shim.pause(id).await,
            "start in vain" => shim.start(id, exec).await.map(|_| ()),
            "delete in vain" => shim.delete(id, exec).await.map(|_| ()),
            "kill 0" => shim.kill(id, exec, 0).await,
            _ => shim.kill(id, exec, 18).await,
        }
    };
    match within(call, 10, asking).await {
        Ok(()) => "ok".to_owned(),
        Err(ttrpc::Error::RpcStatus(status)) => format!("{:?} {}", status.code(), status.message()),
        Err(e) => format!("{e}"),
    }
}

/// Makes all calls but those named, and compares with the lines `call: answer`; an answer may be longer.
async fn all(node: &TestNode, shim: &Shim, state: &str, exec: &str, but: &[&str], wanted: &str) {
    let wanted: Vec<(&str, &str)> = wanted.lines().filter_map(|l| l.trim().split_once(": ")).collect();
    for call in CALLS.iter().filter(|call| !but.contains(call)) {
        let answer = ask(node, shim, call, "m1", exec).await;
        let line =
            wanted.iter().find(|(name, _)| name == call).or_else(|| wanted.iter().find(|w| w.0 == "*"));
        let (_, begins) = line.unwrap_or_else(|| panic!("{state}: {call} is not in the table: {answer}"));
        assert!(answer.starts_with(begins), "{state}: {call}: {answer}");
    }
}

/// A pod whose container `m1` is not created yet.
async fn pod() -> (TestNode, Shim) {
    let node = TestNode::new().await;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    node.bundle("m1", &Bundle::sh("sleep 1000").member("s1"));
    (node, shim)
}

#[tokio::test]
async fn every_call_in_every_state_of_a_container() {
    let (node, shim) = pod().await;
    let unknown = "checkpoint: UNIMPLEMENTED Checkpoint: the state of a confidential guest cannot be taken out\n\
        *: NOT_FOUND container m1: no such container in this pod";
    all(&node, &shim, "unknown", "", &["create"], unknown).await;
    shim.create("m1", &node.path("bundles/m1"), NO_STREAMS).await.expect("create");
    let created = "checkpoint: UNIMPLEMENTED\nresize: FAILED_PRECONDITION container m1: has no terminal to resize\n\
        create: ALREADY_EXISTS container m1: exists already in this pod\n\
        pause in vain: FAILED_PRECONDITION container m1 is not started and cannot be paused\n\
        resume in vain: FAILED_PRECONDITION container m1 is not started and cannot be resumed\n\
        *: ok";
    all(&node, &shim, "created", "", &["exec", "start in vain", "delete in vain"], created).await;
    shim.start("m1", "").await.expect("start");
    let running = "checkpoint: UNIMPLEMENTED\nresize: FAILED_PRECONDITION\ncreate: ALREADY_EXISTS\n\
        start in vain: FAILED_PRECONDITION container m1 is running and cannot be started\n\
        delete in vain: FAILED_PRECONDITION container m1 is running and cannot be deleted\n\
        resume in vain: FAILED_PRECONDITION container m1 is running and cannot be resumed\n\
        *: ok";
    all(&node, &shim, "running", "", &["pause in vain", "exec"], running).await;
    shim.pause("m1").await.expect("pause");
    assert_eq!(shim.state("m1", "").await.expect("state").status.value(), 4, "paused");
    let paused = "checkpoint: UNIMPLEMENTED\nresize: FAILED_PRECONDITION\ncreate: ALREADY_EXISTS\n\
        start in vain: FAILED_PRECONDITION container m1 is paused and cannot be started\n\
        delete in vain: FAILED_PRECONDITION container m1 is paused and cannot be deleted\n\
        pause in vain: FAILED_PRECONDITION container m1 is paused and cannot be paused\n\
        exec: FAILED_PRECONDITION exec e1 of container m1: container m1 is paused: resume it first\n\
        *: ok";
    all(&node, &shim, "paused", "", &["resume in vain"], paused).await;
    shim.resume("m1").await.expect("resume");
    shim.kill("m1", "", 9).await.expect("kill");
    assert_eq!(shim.wait("m1", "").await, Ok(137));
    let stopped = "checkpoint: UNIMPLEMENTED\nstate: ok\npids: ok\nclose_io: ok\nresize: FAILED_PRECONDITION\n\
        create: ALREADY_EXISTS\n\
        start in vain: FAILED_PRECONDITION container m1 has finished and cannot be started\n\
        pause in vain: FAILED_PRECONDITION container m1 has finished and cannot be paused\n\
        resume in vain: FAILED_PRECONDITION container m1 has finished and cannot be resumed\n\
        exec: FAILED_PRECONDITION exec e1 of container m1: container m1 is not running\n\
        stats: NOT_FOUND process already finished: container m1 has finished and has no statistics\n\
        update: NOT_FOUND process already finished: container m1 has finished and cannot be updated\n\
        kill: NOT_FOUND process already finished: container m1 has finished and cannot be signalled\n\
        kill 0: NOT_FOUND process already finished: container m1 has finished and cannot be signalled";
    all(&node, &shim, "stopped", "", &["delete in vain"], stopped).await;
    assert_eq!(shim.delete("m1", "").await, Ok(137));
    all(&node, &shim, "deleted", "", &["create"], unknown).await;
    node.end(&shim, "s1").await;
}

#[tokio::test]
async fn every_call_in_every_state_of_an_exec() {
    let (node, shim) = pod().await;
    shim.create("m1", &node.path("bundles/m1"), NO_STREAMS).await.expect("create");
    shim.start("m1", "").await.expect("start");
    // Calls without an exec id are about the container.
    let others =
        ["pids", "stats", "update", "checkpoint", "resize", "create", "pause in vain", "resume in vain"];
    let but = |more: &[&'static str]| [&others[..], more].concat();
    let unknown = "*: NOT_FOUND exec e1 of container m1: no such process";
    all(&node, &shim, "unknown", "e1", &but(&["exec"]), unknown).await;
    shim.exec("m1", "e1", Bundle::process(&["/bin/sleep", "1000"]), NO_STREAMS).await.expect("exec");
    let added = "exec: ALREADY_EXISTS exec e1 of container m1: exists already\n\
        kill: FAILED_PRECONDITION exec e1 of container m1 is not started and cannot be signalled\n\
        kill 0: FAILED_PRECONDITION exec e1 of container m1 is not started and cannot be signalled\n*: ok";
    all(&node, &shim, "added", "e1", &but(&["start in vain", "delete in vain"]), added).await;
    shim.pause("m1").await.expect("pause");
    let frozen = ask(&node, &shim, "start in vain", "m1", "e1").await;
    assert_eq!(
        frozen,
        "FAILED_PRECONDITION exec e1 of container m1: container m1 is paused: resume it first"
    );
    shim.resume("m1").await.expect("resume");
    shim.start("m1", "e1").await.expect("start");
    let running = "start in vain: FAILED_PRECONDITION exec e1 of container m1 is running and cannot be started\n\
        delete in vain: FAILED_PRECONDITION exec e1 of container m1 is running and cannot be deleted\n\
        exec: ALREADY_EXISTS\n*: ok";
    all(&node, &shim, "running", "e1", &but(&[]), running).await;
    shim.kill("m1", "e1", 9).await.expect("kill");
    assert_eq!(shim.wait("m1", "e1").await, Ok(137));
    let stopped = "state: ok\nclose_io: ok\nexec: ALREADY_EXISTS\n\
        start in vain: FAILED_PRECONDITION exec e1 of container m1 has finished and cannot be started\n\
        kill: NOT_FOUND process already finished: exec e1 of container m1 has finished\n\
        kill 0: NOT_FOUND process already finished: exec e1 of container m1 has finished";
    all(&node, &shim, "stopped", "e1", &but(&["delete in vain"]), stopped).await;
    assert_eq!(shim.delete("m1", "e1").await, Ok(137));
    all(&node, &shim, "deleted", "e1", &but(&["exec"]), unknown).await;
    node.end(&shim, "s1").await;
}

#[tokio::test]
async fn a_paused_container_does_not_run_and_its_events_report_it() {
    let node = TestNode::new().await;
    let file = node.path("count");
    let script = format!("while :; do echo x >> {}; sleep 0.01; done", file.display());
    let shim = node.running("c1", &Bundle::sh(&script)).await;
    let size = || std::fs::metadata(&file).map_or(0, |m| m.len());
    eventually("it runs", 5, || size() > 0).await;
    shim.pause("c1").await.expect("pause");
    let before = size();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(size(), before, "it does not run");
    shim.resume("c1").await.expect("resume");
    eventually("it goes on", 5, || size() > before).await;
    // KILL ends it also when it is paused.
    shim.pause("c1").await.expect("pause");
    shim.kill("c1", "", 9).await.expect("kill");
    assert_eq!(within("its end", 5, shim.wait("c1", "")).await, Ok(137));
    eventually("events", 5, || node.events.seen().len() == 6).await;
    assert_eq!(
        node.events.lines(),
        ["create c1", "start c1", "paused c1", "resumed c1", "paused c1", "exit c1 137"]
    );
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_pause_that_fails_leaves_a_running_container() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    node.script(&json!([{"call": "PauseContainer", "skip": true, "error": {"code": 7, "text": "PauseContainerRequest is blocked by policy: "}}]));
    let answer = ask(&node, &shim, "pause in vain", "c1", "").await;
    assert!(
        answer.starts_with(
            "PERMISSION_DENIED pause container c1: agent PauseContainer: the guest's policy denies it"
        ),
        "{answer}"
    );
    node.script(&json!([]));
    for _ in 0..100 {
        if shim.pause("c1").await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    shim.resume("c1").await.expect("it was paused");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_container_that_ends_while_it_is_paused_has_finished() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 0.5; exit 3")).await;
    node.script(&json!([{"call": "PauseContainer", "skip": true, "delay_ms": 1500}]));
    let (paused, status) = tokio::join!(shim.pause("c1"), shim.wait("c1", ""));
    assert_eq!(status, Ok(3));
    assert_eq!(code(&paused), Some(Code::FAILED_PRECONDITION));
    let text = paused.expect_err("ended").to_string();
    assert!(text.contains("c1 has finished and cannot be paused"), "{text}");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn limits_reach_the_guest_without_those_of_the_host() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let all = json!({"cpu": {"shares": 512, "quota": 50000, "period": 100_000, "cpus": "0-3"},
        "memory": {"limit": 64 << 20}, "pids": {"limit": 5}, "devices": [{"allow": true, "access": "rwm"}]});
    shim.update("c1", &all).await.expect("update");
    let requests = node.requests();
    let sent = requests.iter().rev().find(|r| r["call"] == "UpdateContainer").expect("sent");
    let sent = &sent["request"]["resources"];
    assert_eq!(
        (&sent["CPU"]["Quota"], &sent["Memory"]["Limit"]),
        (&json!("50000"), &json!("67108864")),
        "{sent}"
    );
    assert!(sent["Pids"].is_null() && sent["CPU"]["Cpus"].as_str().unwrap_or("").is_empty(), "{sent}");
    let wide = shim.update("c1", &json!({"memory": {"limit": 257 << 20}})).await.expect_err("too much");
    assert!(
        wide.to_string().contains("update container c1: memory limit of 257 MiB: the VM has 256 MiB"),
        "{wide}"
    );
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn statistics_of_a_sandbox_are_the_vms_on_the_host() {
    let (node, shim) = pod().await;
    shim.create("m1", &node.path("bundles/m1"), NO_STREAMS).await.expect("create");
    let (kind, sandbox) = shim.stats("s1").await.expect("stats");
    let (_, member) = shim.stats("m1").await.expect("stats");
    assert!(kind.starts_with("io.containerd.cgroups.v") && !sandbox.is_empty() && !member.is_empty());
    let asked: Vec<_> = node
        .requests()
        .iter()
        .filter(|r| r["call"] == "StatsContainer")
        .map(|r| r["request"]["container_id"].clone())
        .collect();
    assert_eq!(asked.len(), 1, "the sandbox's are not the guest's: {asked:?}");
    if kind == "io.containerd.cgroups.v1.Metrics" {
        use containerd_shim_protos::cgroups::metrics::Metrics;
        use containerd_shim_protos::protobuf::Message;
        let metrics = Metrics::parse_from_bytes(&sandbox).expect("metrics");
        assert!(metrics.cpu.usage.total > 0, "the double used some: {metrics}");
        assert!(metrics.pids.current >= 1);
    }
    node.end(&shim, "s1").await;
}

#[tokio::test]
async fn a_signal_for_all_reaches_the_execs_too() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("trap '' USR1; while :; do sleep 0.1; done")).await;
    shim.exec("c1", "e1", Bundle::process(&["/bin/sleep", "1000"]), NO_STREAMS).await.expect("exec");
    shim.start("c1", "e1").await.expect("start");
    tokio::time::sleep(Duration::from_millis(200)).await;
    shim.kill("c1", "", 10).await.expect("kill");
    assert_eq!(shim.state("c1", "e1").await.expect("state").status.value(), 2, "the exec goes on");
    shim.kill_all("c1", 10).await.expect("kill");
    assert_eq!(within("its end", 5, shim.wait("c1", "e1")).await, Ok(138));
    shim.kill_all("c1", 9).await.expect("kill");
    assert_eq!(within("its end", 5, shim.wait("c1", "")).await, Ok(137));
    assert_eq!(harness::code(&shim.kill_all("c1", 9).await), Some(Code::NOT_FOUND));
    node.end(&shim, "c1").await;
}
