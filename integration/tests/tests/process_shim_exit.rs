//! When a shim exits: on Shutdown, also after a cleanup that failed, and by itself when it is abandoned; not on
//! signals meant for containerd. Its last events are delivered.

use std::fs;
use std::time::Duration;

use harness::{Bundle, Code, TestNode, code, eventually, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::time::timeout;

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).expect("pid"))
}

#[tokio::test]
async fn a_shim_whose_cleanup_fails_exits_all_the_same() {
    let node = TestNode::new().await;
    let file = node.path("failpoint");
    let point = ("KATA_SE_FAILPOINT".to_owned(), file.display().to_string());
    node.environment.lock().expect("environment").push(point);
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    fs::write(&file, "CleanupStepDone=EIO").expect("failpoint");
    shim.kill("c1", "", 9).await.expect("kill");
    shim.wait("c1", "").await.expect("wait");
    let e = shim.delete("c1", "").await.expect_err("cannot be cleaned up").to_string();
    assert!(e.contains("delete container c1: clean up: "), "{e}");
    let (server, _) = shim.pid("c1").await;
    within("an answer", 5, shim.shutdown(true)).await.expect("shutdown");
    let words = || fs::read(format!("/proc/{server}/cmdline")).unwrap_or_default();
    harness::eventually("the shim has gone", 5, || words().is_empty()).await;
    // What could not be freed is still in the journal, and the next `delete` frees it.
    fs::write(&file, "").expect("failpoint");
    node.delete("c1");
    node.assert_clean();
}

#[tokio::test]
async fn signals_that_are_meant_for_containerd_end_no_pod() {
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
async fn a_delete_whose_caller_gave_up_continues_and_can_be_repeated() {
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
async fn a_shutdown_whose_caller_gave_up_ends_the_shim() {
    let node = TestNode::new().await;
    let short = Duration::from_millis(200);
    let gone = || harness::pods(&node.path("run")).is_empty();
    for leaves in [false, true] {
        let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
        node.script(&json!([{"call": "DestroySandbox", "skip": true, "delay_ms": 1000}]));
        if leaves {
            // Its connection is closed with it.
            timeout(short, async { shim.shutdown(true).await }).await.expect_err("given up");
            drop(shim);
        } else {
            shim.shutdown_for(true, short).await.expect_err("given up");
        }
        eventually("the shim's exit", 10, gone).await;
        node.assert_clean();

        let (shim, sandbox) = node.running_sandbox("c1").await;
        node.script(&json!([{"call": "DestroySandbox", "skip": true, "delay_ms": 1000}]));
        if leaves {
            timeout(short, sandbox.shutdown()).await.expect_err("given up");
            drop((shim, sandbox));
        } else {
            sandbox.shutdown_for(short).await.expect_err("given up");
        }
        eventually("the shim's exit", 10, gone).await;
        node.assert_clean();
        node.script(&json!([]));
    }
}

#[tokio::test]
async fn the_last_events_reach_a_containerd_that_waits_for_the_shims_exit() {
    // containerd 2 cleans up when it starts: it calls Delete and Shutdown, waits for the shim's exit, and accepts events
    // after that.
    let mut node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("exit 3")).await;
    assert_eq!(shim.wait("c1", "").await, Ok(3));
    eventually("events", 5, || node.events.seen().len() == 3).await;
    node.events.down().await;
    shim.delete("c1", "").await.expect("delete");
    tokio::time::sleep(Duration::from_secs(1)).await; // until the retry pauses have grown
    shim.shutdown(false).await.expect("shutdown");
    let pods = || harness::pods(&node.path("run")).len();
    eventually("the pod is gone, and its name is free", 1, || pods() == 0).await;
    node.events.up().await;
    let last = || node.events.lines().last().is_some_and(|line| line == "delete c1 3");
    eventually("its last event", 2, last).await;
    node.assert_clean();
}

#[tokio::test]
async fn a_shim_without_containers_exits_by_itself() {
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
async fn a_shim_that_was_never_used_reports_no_container_and_can_be_deleted() {
    // containerd was killed between `start` and Create: when it is back it asks, and cleans up.
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("sleep 1000"));
    let shim = node.shim("c1", &dir).await;
    assert_eq!(code(&shim.pids_of("c1").await), Some(Code::NOT_FOUND));
    node.delete("c1");
    node.assert_clean();
}
