//! A guest that hangs is declared dead in time, and blocks neither its callers nor containerd.

use std::time::{Duration, Instant};

use harness::{Bundle, Code, Containerd, NO_STREAMS, Shim, TestNode, code, eventually, until, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).expect("pid"))
}

/// A node on which calls, and the agent's health check, time out after a second.
async fn node_with_short_limits() -> TestNode {
    let node = TestNode::new().await;
    std::fs::create_dir(node.path("config.d")).expect("folder");
    let limits = "[agent]\ncall_timeout_s = 1\nhealth_timeout_s = 1\n";
    std::fs::write(node.path("config.d/limits.toml"), limits).expect("drop-in");
    node
}

/// A pod with two containers beside the sandbox, the second not yet started.
async fn pod(node: &TestNode) -> Shim {
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    for id in ["m1", "m2"] {
        let dir = node.bundle(id, &Bundle::sh("sleep 1000").member("s1"));
        shim.create(id, &dir, NO_STREAMS).await.expect("create");
    }
    shim.start("m1", "").await.expect("start");
    shim
}

/// All containers end as killed, QEMU is reaped, and the pod can be deleted at once.
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
fn a_leftover_shim_whose_guest_hangs_does_not_keep_containerd_from_starting() {
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
    // It calls Delete for a container it does not know, and waits for the answer.
    let began = Instant::now();
    node.up();
    eprintln!("containerd started {:?} after it was asked, beside a shim whose guest hangs", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    let pods = || harness::pods(&node.path("run")).len();
    until("nothing is left", 10, || pods() == 0);
    node.ctr(&["container", "rm", "c1"]);
    node.assert_clean();
}

#[tokio::test]
async fn a_kill_does_not_wait_for_a_guest_that_hangs() {
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
async fn a_stopped_guest_is_declared_dead() {
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
    let message = "killing the VM: the guest agent did not answer a health check within 1 s";
    assert!(log.contains(message), "{log}");
}

#[tokio::test]
async fn a_connection_that_falls_silent_or_is_lost_ends_the_pod() {
    // Half an answer and nothing after it; and a closed connection, with no new one accepted.
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
async fn one_unanswered_call_does_not_end_a_pod() {
    let node = node_with_short_limits().await;
    let shim = pod(&node).await;
    node.script(&json!([{"call": "StatsContainer", "hang": true}]));
    for _ in 0..2 {
        assert_eq!(code(&shim.stats("m1").await), Some(Code::DEADLINE_EXCEEDED));
    }
    let asked = || node.requests().iter().filter(|r| r["call"] == "Check").count();
    eventually("the agent is asked whether it is well", 5, || asked() >= 3).await;
    assert_eq!(shim.run_exec("m1", "e1", &["/bin/true"]).await, 0);
    // No health check while nothing is suspicious.
    let before = asked();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(asked(), before, "an idle shim is idle");
    shim.shutdown(true).await.expect("shutdown");
    node.assert_clean();
}
