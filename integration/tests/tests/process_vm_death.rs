//! QEMU is killed under a running pod: each process has exactly one exit event, and every later call an answer.

use std::time::{Duration, Instant};

use harness::{Bundle, Code, NO_STREAMS, Shim, TestNode, code, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

#[tokio::test]
async fn qemu_killed_under_a_running_pod_ends_each_process_once() {
    let node = TestNode::new().await;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    for id in ["m1", "m2"] {
        let dir = node.bundle(id, &Bundle::sh("sleep 1000").member("s1"));
        shim.create(id, &dir, NO_STREAMS).await.expect("create");
        shim.start(id, "").await.expect("start");
        shim.exec(id, "e1", Bundle::process(&["/bin/sleep", "1000"]), NO_STREAMS).await.expect("exec");
        shim.start(id, "e1").await.expect("start");
    }
    let dir = node.bundle("m3", &Bundle::sh("sleep 1000").member("s1"));
    shim.create("m3", &dir, NO_STREAMS).await.expect("created, never started");
    let (_, vm) = shim.pid("s1").await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(vm as i32), nix::sys::signal::Signal::SIGKILL)
        .expect("kill");
    let began = Instant::now();
    for (id, exec) in [("s1", ""), ("m1", ""), ("m2", ""), ("m3", ""), ("m1", "e1"), ("m2", "e1")] {
        assert_eq!(within("its end", 5, shim.wait(id, exec)).await, Ok(137), "{id} {exec}");
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    for id in ["m1", "m2", "m3", "s1"] {
        within("delete without an agent", 2, shim.delete(id, "")).await.expect("delete");
    }
    shim.shutdown(false).await.expect("shutdown");
    harness::eventually("all events", 5, || {
        node.events.lines().iter().filter(|l| l.starts_with("delete")).count() == 4
    })
    .await;
    let mut exits: Vec<_> = node.events.lines().into_iter().filter(|l| l.starts_with("exit")).collect();
    exits.sort();
    assert_eq!(
        exits,
        ["exit m1 137", "exit m1/e1 137", "exit m2 137", "exit m2/e1 137", "exit m3 137", "exit s1 137"]
    );
    node.assert_clean();
}

/// Every call about a container that ended with its VM.
async fn answers_are_those_of_an_ended_container(shim: &Shim, id: &str) {
    let ask = |what: &str| format!("{what} {id}");
    let second = 1;
    let state = within(&ask("state"), second, shim.state(id, "")).await.expect("state");
    assert_eq!((state.status.value(), state.exit_status), (3, 137), "{id}");
    assert_eq!(
        within(&ask("pids"), second, shim.pids(id)).await,
        Ok(vec![]),
        "no process of a VM that is gone"
    );
    assert_eq!(within(&ask("connect"), second, shim.pids_of(id)).await.map(|(_, vm)| vm), Ok(0));
    for answer in [
        within(&ask("kill"), second, shim.kill(id, "", 9)).await,
        within(&ask("kill"), second, shim.kill(id, "", 15)).await,
        within(&ask("stats"), second, shim.stats(id)).await.map(|_| ()),
    ] {
        assert_eq!(code(&answer), Some(Code::NOT_FOUND), "{id}: {answer:?}");
    }
    assert_eq!(within(&ask("wait"), second, shim.wait(id, "")).await, Ok(137));
    assert_eq!(within(&ask("delete"), second, shim.delete(id, "")).await, Ok(137));
}

#[tokio::test]
async fn every_call_has_an_answer_after_the_vms_end_in_any_order() {
    let node = TestNode::new().await;
    for sandbox_first in [true, false] {
        let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
        let dir = node.bundle("m1", &Bundle::sh("sleep 1000").member("s1"));
        shim.create("m1", &dir, NO_STREAMS).await.expect("create");
        shim.start("m1", "").await.expect("start");
        if sandbox_first {
            shim.kill("s1", "", 9).await.expect("kill");
            shim.wait("s1", "").await.expect("wait");
            shim.delete("s1", "").await.expect("the VM ends with its sandbox");
            shim.wait("m1", "").await.expect("wait");
        } else {
            let (_, vm) = shim.pid("s1").await;
            kill(Pid::from_raw(i32::try_from(vm).expect("pid")), Signal::SIGKILL).expect("kill");
            shim.wait("m1", "").await.expect("wait");
            shim.wait("s1", "").await.expect("wait");
            let dead = shim.pids_of("m1").await.expect("connect");
            assert!(dead.1 == vm || dead.1 == 0);
            shim.delete("s1", "").await.expect("delete");
        }
        answers_are_those_of_an_ended_container(&shim, "m1").await;
        shim.shutdown(false).await.expect("shutdown");
        node.assert_clean();
    }
}

#[tokio::test]
async fn a_vm_that_qemu_stops_for_a_failed_disk_ends_at_once_and_says_which() {
    let node = TestNode::new().await;
    let data = json!({"device": "", "node-name": "hot-1", "operation": "write", "action": "report",
        "nospace": true, "reason": "No space left on device"});
    let mut failed = json!({"event": "BLOCK_IO_ERROR", "data": data});
    node.double(|orders| orders["after_plug"] = json!([failed]));
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    shim.state("s1", "").await.expect("an error that the guest is told of does not end it");
    shim.shutdown(true).await.expect("shutdown");

    failed["data"]["action"] = "stop".into();
    node.double(|orders| orders["after_plug"] = json!([failed, {"event": "STOP"}]));
    let began = Instant::now();
    let text = node.refused(&Bundle::sh("sleep 1000")).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let wanted = "a disk of the VM failed on the host: I/O error of disk hot-1: write: No space left on device \
                  (its storage is full); QEMU's action: stop; QEMU ended with signal 9: look at the storage";
    assert!(text.contains(wanted), "{text}");
    node.assert_clean();
}
