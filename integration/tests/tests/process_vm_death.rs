//! QEMU is killed under a running pod: each process has exactly one exit event, and every later call an answer.

use std::time::{Duration, Instant};

use harness::{Bundle, Code, NO_STREAMS, Shim, TestNode, code, rounds, within};
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

/// Three containers with five execs, to their deletion, or to the first error. `started`: what has a start's answer.
async fn whole_life(
    node: &TestNode,
    shim: &Shim,
    started: &mut Vec<(&'static str, &'static str)>,
) -> ttrpc::Result<()> {
    const EXECS: [(&str, &str); 5] = [("m1", "e1"), ("m1", "e2"), ("m2", "e1"), ("m2", "e2"), ("m3", "e1")];
    for id in ["s1", "m1", "m2", "m3"] {
        let bundle = Bundle::sh("sleep 1000");
        let dir = match id {
            "s1" => node.path("bundles/s1"), // the shim was started in it
            _ => node.bundle(id, &bundle.member("s1")),
        };
        within("a create", 10, shim.create(id, &dir, NO_STREAMS)).await?;
        within("a start", 10, shim.start(id, "")).await?;
        started.push((id, ""));
    }
    for (id, exec) in EXECS {
        let process = Bundle::process(&["/bin/sleep", "1000"]);
        within("an exec", 10, shim.exec(id, exec, process, NO_STREAMS)).await?;
        within("a start", 10, shim.start(id, exec)).await?;
        started.push((id, exec));
    }
    for (id, exec) in EXECS.into_iter().chain([("m1", ""), ("m2", ""), ("m3", ""), ("s1", "")]) {
        within("a kill", 10, shim.kill(id, exec, 9)).await?;
        within("an end", 10, shim.wait(id, exec)).await?;
        within("a delete", 10, shim.delete(id, exec)).await?;
    }
    Ok(())
}

/// QEMU's double of this node, if it runs.
fn qemu(node: &TestNode) -> Option<Pid> {
    let program = node.path("bin/qemu").display().to_string();
    std::fs::read_dir("/proc").expect("proc").flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        command.starts_with(program.as_bytes()).then_some(Pid::from_raw(pid))
    })
}

#[tokio::test]
async fn qemu_killed_at_any_moment_ends_each_started_process_once_and_leaves_nothing() {
    let node = TestNode::new().await;
    let (mut life, mut killed, count) = (Duration::ZERO, 0, rounds(40));
    for n in 0..=count {
        let before = node.events.lines().len();
        let dir = node.bundle("s1", &Bundle::sh("sleep 1000").sandbox());
        let shim = node.shim("s1", &dir).await;
        let (began, mut started) = (Instant::now(), Vec::new());
        // The first one lives, and says how long that is.
        let moment = harness::moment(life, n, count);
        let kill = async {
            tokio::time::sleep(moment).await;
            let found = qemu(&node).filter(|_| n > 0);
            killed += u32::from(found.is_some_and(|pid| kill(pid, Signal::SIGKILL).is_ok()));
        };
        let (lived, ()) = tokio::join!(whole_life(&node, &shim, &mut started), kill);
        if n == 0 {
            lived.expect("a whole life");
            life = began.elapsed();
        }
        for (id, exec) in &started {
            let end = within("an answer", 2, shim.wait(id, exec)).await;
            assert!(
                end == Ok(137) || code(&end) == Some(Code::NOT_FOUND),
                "{moment:?}: {id} {exec}: {end:?}"
            );
        }
        for id in ["m1", "m2", "m3", "s1"] {
            within("a delete", 5, shim.delete(id, "")).await.ok();
        }
        within("the shim's end", 5, shim.shutdown(true)).await.ok();
        let name = |(id, exec): &(&str, &str)| {
            if exec.is_empty() { format!("exit {id} ") } else { format!("exit {id}/{exec} ") }
        };
        let times = |started: &(&str, &str)| {
            let lines = node.events.lines();
            lines.iter().skip(before).filter(|line| line.starts_with(&name(started))).count()
        };
        harness::eventually("the exits", 5, || started.iter().all(|process| times(process) > 0)).await;
        node.assert_clean();
        for process in &started {
            assert_eq!(times(process), 1, "{moment:?}: {}", name(process));
        }
    }
    assert!(killed > count / 2, "only {killed} of {count} were there to be killed");
}
