//! What users of similar shims suffered with daemons, group C: a shim that hangs takes the node down, a
//! daemon's restart loses what happened. Each pain is a test of its name.
//!
//! Shown elsewhere: C3 is C1. C6 to C9, C13, C14 (dialects, both task services, the address file): `process_doors`
//! and `e2e_node::every_containerd_runs_it`. C10, C11 (sandbox API): not served yet. C12 (exit events while
//! containerd restarts): `process_restarts`, `process_doors::events_are_not_needed_and_wait_for_a_containerd_that_is_away`.
//! Limits of every single call: `process_guest`.

use std::time::{Duration, Instant};

use harness::{Bundle, Code, Containerd, NO_STREAMS, Shim, TestNode, code, eventually, until, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).expect("pid"))
}

/// Calls are given up after a second, and so is an agent that seems dead.
async fn node_with_short_limits() -> TestNode {
    let node = TestNode::new().await;
    std::fs::create_dir(node.path("config.d")).expect("folder");
    let limits = "[agent]\ncall_timeout_s = 1\nhealth_timeout_s = 1\n";
    std::fs::write(node.path("config.d/limits.toml"), limits).expect("drop-in");
    node
}

/// A pod with two members, the second not yet started.
async fn pod(node: &TestNode) -> Shim {
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    for id in ["m1", "m2"] {
        let dir = node.bundle(id, &Bundle::sh("sleep 1000").member("s1"));
        shim.create(id, &dir, NO_STREAMS).await.expect("create");
    }
    shim.start("m1", "").await.expect("start");
    shim
}

/// All containers end as killed, QEMU is reaped, the pod is deleted at once.
async fn dies(node: &TestNode, shim: &Shim, vm: u32, since: Instant, within_ms: u64) {
    for id in ["m1", "m2", "s1"] {
        assert_eq!(within("its end", 20, shim.wait(id, "")).await, Ok(137), "{id}");
    }
    eprintln!("the pod was declared dead after {:?}", since.elapsed());
    assert!(since.elapsed() < Duration::from_millis(within_ms), "{:?}", since.elapsed());
    let folder = format!("/proc/{vm}");
    eventually("QEMU is reaped", 5, || std::fs::metadata(&folder).is_err()).await;
    for id in ["m1", "m2", "s1"] {
        within("delete", 2, shim.delete(id, "")).await.expect("delete");
    }
    shim.shutdown(false).await.expect("shutdown");
    node.assert_clean();
}

#[test]
fn c1_a_leftover_shim_whose_guest_hangs_does_not_keep_containerd_from_starting() {
    let mut node = Containerd::doubled("1.7");
    let hang = |call: &str| json!({"call": call, "skip": true, "hang": true});
    node.doubles().script(&json!([hang("CreateSandbox"), hang("DestroySandbox")]));
    node.doubles().double(|orders| orders["ignore_quit"] = true.into());
    let mut creating = node.run(&["--detach"], "c1", &["sleep", "1000"]).spawn().expect("ctr");
    until("the guest is asked", 10, || {
        node.doubles().requests().iter().any(|r| r["call"] == "CreateSandbox")
    });
    node.kill();
    assert!(!creating.wait().expect("ctr").success());
    // It asks the shim for the Delete of what it does not know, and waits for the answer.
    let began = Instant::now();
    node.up();
    eprintln!("containerd started {:?} after it was asked, beside a shim whose guest hangs", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    let pods = || std::fs::read_dir(node.path("run")).expect("run").count();
    until("nothing is left", 10, || pods() == 0);
    node.ctr(&["container", "rm", "c1"]);
    node.assert_clean();
}

#[tokio::test]
async fn c2_a_kill_does_not_wait_for_a_guest_that_hangs() {
    for container in ["s1", "m1"] {
        let node = node_with_short_limits().await;
        let shim = pod(&node).await;
        let (_, vm) = shim.pid("s1").await;
        node.script(&json!([{"call": "SignalProcess", "hang": true}, {"call": "Check", "hang": true}]));
        let began = Instant::now();
        let killed = within("an answer", 3, shim.kill(container, "", 9)).await;
        eprintln!("KILL of {container} was answered after {:?}: {killed:?}", began.elapsed());
        dies(&node, &shim, vm, began, 5000).await;
    }
}

#[tokio::test]
async fn c2_a_guest_that_stands_still_is_declared_dead() {
    let node = node_with_short_limits().await;
    let shim = pod(&node).await;
    let (_, vm) = shim.pid("s1").await;
    let agent = std::fs::read_to_string(format!("/proc/{vm}/task/{vm}/children")).expect("children");
    let agents = agent.split_whitespace().filter_map(|word| word.parse().ok());
    for stopped in agents.chain([vm]) {
        kill(pid(stopped), Signal::SIGSTOP).expect("stop");
    }
    let began = Instant::now();
    let stats = within("an answer", 3, shim.stats("m1")).await;
    assert_eq!(code(&stats), Some(Code::DEADLINE_EXCEEDED), "{stats:?}");
    dies(&node, &shim, vm, began, 5000).await;
    let log = node.log();
    let said = "killing the VM: the guest agent did not answer a health check within 1 s";
    assert!(log.contains(said), "{log}");
}

#[tokio::test]
async fn c2_a_connection_that_falls_silent_or_is_lost_ends_the_pod() {
    // Half an answer and nothing after it; and closed, with nobody to answer the next.
    let ways: [(&str, Value); 2] = [
        ("silent", json!([{"call": "StatsContainer", "cut": 5}])),
        ("lost", json!([{"call": "StatsContainer", "close": true}, {"call": "@connect", "close": true}])),
    ];
    for (way, rules) in ways {
        let node = node_with_short_limits().await;
        let shim = pod(&node).await;
        let (_, vm) = shim.pid("s1").await;
        node.script(&rules);
        let began = Instant::now();
        assert!(within("an answer", 5, shim.stats("m1")).await.is_err(), "{way}");
        dies(&node, &shim, vm, began, 5000).await;
    }
}

#[tokio::test]
async fn c2_one_call_that_is_not_answered_is_no_reason_to_end_a_pod() {
    let node = node_with_short_limits().await;
    let shim = pod(&node).await;
    node.script(&json!([{"call": "StatsContainer", "hang": true}]));
    for _ in 0..2 {
        assert_eq!(code(&shim.stats("m1").await), Some(Code::DEADLINE_EXCEEDED));
    }
    let asked = || node.requests().iter().filter(|r| r["call"] == "Check").count();
    eventually("the agent is asked whether it is well", 5, || asked() >= 3).await;
    assert_eq!(shim.run_exec("m1", "e1", &["/bin/true"]).await, 0);
    // No suspicion, no question.
    let before = asked();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(asked(), before, "an idle shim is idle");
    shim.shutdown(true).await.expect("shutdown");
    node.assert_clean();
}

#[tokio::test]
async fn c4_signals_that_are_meant_for_containerd_end_no_pod() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let (server, _) = shim.pid("c1").await;
    let count = || std::fs::read_dir(format!("/proc/{server}/fd")).map_or(0, Iterator::count);
    let before = count();
    use Signal::{SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    for signal in [SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2] {
        kill(pid(server), signal).expect("signal");
        assert_eq!(
            within("state", 2, shim.state("c1", "")).await.expect("state").status.value(),
            2,
            "{signal}"
        );
    }
    assert_eq!(count(), before, "nothing was opened for them");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn c5_a_delete_whose_caller_gave_up_goes_on_and_can_be_asked_again() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("exit 3")).await;
    assert_eq!(shim.wait("c1", "").await, Ok(3));
    node.script(&json!([{"call": "DestroySandbox", "skip": true, "delay_ms": 1000}]));
    assert!(shim.delete_for("c1", "", Duration::from_millis(200)).await.is_err(), "given up");
    let (one, two) = tokio::join!(shim.delete("c1", ""), shim.delete("c1", ""));
    assert_eq!((code(&one), code(&two)), (Some(Code::NOT_FOUND), Some(Code::NOT_FOUND)), "{one:?} {two:?}");
    shim.shutdown(false).await.expect("shutdown");
    node.assert_clean();
    assert_eq!(node.events.lines(), ["create c1", "start c1", "exit c1 3", "delete c1 3"]);
}

#[tokio::test]
async fn c12_the_last_events_reach_a_containerd_that_waits_for_the_shims_end() {
    // containerd 2 cleans up at its start: it asks for Delete and Shutdown, waits for the shim's end, and takes events
    // after that.
    let mut node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("exit 3")).await;
    assert_eq!(shim.wait("c1", "").await, Ok(3));
    eventually("events", 5, || node.events.seen().len() == 3).await;
    node.events.down().await;
    shim.delete("c1", "").await.expect("delete");
    tokio::time::sleep(Duration::from_secs(1)).await; // its pauses have grown
    shim.shutdown(false).await.expect("shutdown");
    let pods = || std::fs::read_dir(node.path("run")).expect("run").count();
    eventually("the pod is gone, and its name is free", 1, || pods() == 0).await;
    node.events.up().await;
    let last = || node.events.lines().last().is_some_and(|line| line == "delete c1 3");
    eventually("its last event", 2, last).await;
    node.assert_clean();
}

#[tokio::test]
async fn c5_a_shim_that_nobody_ends_ends_by_itself() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("exit 3")).await;
    assert_eq!(shim.wait("c1", "").await, Ok(3));
    shim.delete("c1", "").await.expect("delete");
    let (server, _) = shim.pid("c1").await;
    let lives = || std::fs::read(format!("/proc/{server}/cmdline")).is_ok_and(|words| !words.is_empty());
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(lives(), "Shutdown may still come");
    eventually("it goes", 10, || !lives()).await;
    assert_eq!(node.events.lines(), ["create c1", "start c1", "exit c1 3", "delete c1 3"]);
    node.assert_clean();
}

#[tokio::test]
async fn c5_a_shim_that_was_never_used_says_so() {
    // containerd was killed between `start` and Create: after its own start it asks, and cleans up.
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("sleep 1000"));
    let shim = node.shim("c1", &dir).await;
    assert_eq!(code(&shim.pids_of("c1").await), Some(Code::NOT_FOUND));
    node.delete("c1");
    node.assert_clean();
}
