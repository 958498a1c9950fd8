//! The life cycle of containers, as containerd relies on it: pids, exit codes, states, events in order, and
//! errors with the codes callers look for.

use harness::{Bundle, Code, NO_STREAMS, TestNode, code, eventually, within};

#[tokio::test]
async fn a_container_from_create_to_shutdown() {
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("exit 7"));
    let shim = node.shim("c1", &dir).await;
    let pid = shim.create("c1", &dir, NO_STREAMS).await.expect("create");
    assert!(std::fs::exists(format!("/proc/{pid}")).expect("proc"), "the VM's process is a host process");
    assert_eq!(shim.pids("c1").await, Ok(vec![pid]));
    assert_eq!(shim.state("c1", "").await.expect("state").status.value(), 1, "created");
    assert_eq!(shim.start("c1", "").await, Ok(pid));
    assert_eq!(shim.wait("c1", "").await, Ok(7));
    let state = shim.state("c1", "").await.expect("state");
    assert_eq!((state.status.value(), state.exit_status), (3, 7), "stopped");
    assert!(state.exited_at.seconds > 1_600_000_000);
    assert_eq!(shim.wait("c1", "").await, Ok(7), "also later");
    assert_eq!(code(&shim.kill("c1", "", 15).await), Some(Code::NOT_FOUND));
    assert_eq!(shim.delete("c1", "").await, Ok(7));
    assert_eq!(code(&shim.state("c1", "").await), Some(Code::NOT_FOUND));
    shim.shutdown(false).await.expect("shutdown");
    eventually("events", 5, || node.events.seen().len() == 4).await;
    assert_eq!(node.events.lines(), ["create c1", "start c1", "exit c1 7", "delete c1 7"]);
    node.assert_clean();
    let log = node.log();
    let of_configuration = |line: &&str| line.contains("qemu.user") || line.contains("guest.confidential");
    let warnings = log.lines().filter(|line| line.contains(r#""level":"warning""#));
    let others: Vec<_> = warnings.filter(|line| !of_configuration(line)).collect();
    assert!(others.is_empty(), "a normal life is no reason to warn: {others:?}");
}

#[tokio::test]
async fn exit_codes_are_codes_or_128_and_the_signal() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    for (script, status) in
        [("exit 0", 0), ("exit 1", 1), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143)]
    {
        let exec = format!("e{status}");
        assert_eq!(shim.run_exec("c1", &exec, &["/bin/sh", "-c", script]).await, status, "{script}");
    }
    for n in 0..20 {
        assert_eq!(shim.run_exec("c1", &format!("n{n}"), &["/bin/true"]).await, 0);
    }
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_running_exec_can_be_killed_and_all_waiters_get_its_status() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    shim.exec("c1", "e1", Bundle::process(&["/bin/sleep", "1000"]), NO_STREAMS).await.expect("exec");
    assert_eq!(code(&shim.kill("c1", "e1", 9).await), Some(Code::FAILED_PRECONDITION), "not started");
    shim.start("c1", "e1").await.expect("start");
    let (one, two, three, ()) =
        tokio::join!(shim.wait("c1", "e1"), shim.wait("c1", "e1"), shim.wait("c1", "e1"), async {
            shim.kill("c1", "e1", 9).await.expect("kill");
        });
    assert_eq!((one, two, three), (Ok(137), Ok(137), Ok(137)));
    assert_eq!(shim.delete("c1", "e1").await, Ok(137));
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn names_that_are_taken_or_unknown_have_their_codes() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let dir = node.path("bundles/c1");
    assert_eq!(code(&shim.create("c1", &dir, NO_STREAMS).await), Some(Code::ALREADY_EXISTS));
    shim.exec("c1", "e1", Bundle::process(&["/bin/true"]), NO_STREAMS).await.expect("exec");
    let again = shim.exec("c1", "e1", Bundle::process(&["/bin/true"]), NO_STREAMS).await;
    assert_eq!(code(&again), Some(Code::ALREADY_EXISTS));
    assert_eq!(code(&shim.start("c1", "").await), Some(Code::FAILED_PRECONDITION), "running already");
    assert_eq!(code(&shim.delete("c1", "").await), Some(Code::FAILED_PRECONDITION), "running");
    for (id, exec) in [("cx", ""), ("cx", "e1"), ("c1", "ex")] {
        shim.assert_unknown(id, exec).await;
    }
    assert_eq!(code(&shim.pids("cx").await), Some(Code::NOT_FOUND));
    assert_eq!(code(&shim.resize("c1", 1, 1).await), Some(Code::FAILED_PRECONDITION), "no terminal");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn hostile_ids_are_refused_by_character_and_position() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    for id in ["..", "a/b", "a\nb", "-a", "a,b", "a%b", "é1", &"x".repeat(1000)] {
        let e = shim.state(id, "").await.expect_err(id);
        assert_eq!(code(&Err::<(), _>(e.clone())), Some(Code::INVALID_ARGUMENT), "{id}");
        assert_eq!(code(&shim.state("c1", id).await), Some(Code::INVALID_ARGUMENT), "{id}");
        let dir = node.path("bundles/c1");
        let output = node.start_output(id, &dir);
        assert!(!output.status.success() && output.stdout.is_empty());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("container id") && text.lines().count() == 1, "{text}");
    }
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_container_that_was_never_started_can_be_deleted() {
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("exit 7"));
    let shim = node.shim("c1", &dir).await;
    shim.create("c1", &dir, NO_STREAMS).await.expect("create");
    assert_eq!(shim.delete("c1", "").await, Ok(0));
    // As containerd does it: kill, wait, delete.
    shim.create("c1", &dir, NO_STREAMS).await.expect("create");
    shim.kill("c1", "", 9).await.expect("kill");
    assert_eq!(within("its end", 5, shim.wait("c1", "")).await, Ok(137));
    assert_eq!(shim.delete("c1", "").await, Ok(137));
    shim.shutdown(false).await.expect("shutdown");
    node.assert_clean();
    eventually("events", 5, || node.events.seen().len() == 5).await;
    let wanted = ["create c1", "delete c1 0", "create c1", "exit c1 137", "delete c1 137"];
    assert_eq!(node.events.lines(), wanted);
}

#[tokio::test]
async fn a_sandbox_can_be_started_again_right_after_its_end() {
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("exit 7"));
    for _ in 0..20 {
        // Shutdown is answered before the old shim has exited.
        let shim = node.shim("c1", &dir).await;
        shim.shutdown(true).await.expect("shutdown");
    }
    node.assert_clean();
}

#[tokio::test]
async fn shutdown_waits_for_the_last_container_unless_it_is_now() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    shim.shutdown(false).await.expect("answered");
    assert_eq!(shim.state("c1", "").await.expect("still there").status.value(), 2);
    shim.shutdown(true).await.expect("now");
    node.assert_clean();
}

#[tokio::test]
async fn a_pod_of_three_containers_is_one_shim_and_one_vm() {
    let node = TestNode::new().await;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    let (_, vm) = shim.pid("s1").await;
    for id in ["m1", "m2"] {
        let dir = node.bundle(id, &Bundle::sh("sleep 1000").member("s1"));
        let member = node.shim(id, &dir).await;
        assert_eq!(member.address, shim.address);
        assert_eq!(member.create(id, &dir, NO_STREAMS).await, Ok(vm));
        member.start(id, "").await.expect("start");
    }
    let specs = node.requests();
    let types: Vec<_> = specs
        .iter()
        .filter(|r| r["call"] == "CreateContainer")
        .map(|r| r.to_string())
        .map(|text| {
            if text.contains("pod_sandbox") {
                "sandbox"
            } else if text.contains("pod_container") {
                "member"
            } else {
                "?"
            }
        })
        .collect();
    assert_eq!(types, ["sandbox", "member", "member"]);
    shim.kill("m1", "", 9).await.expect("kill");
    assert_eq!(shim.wait("m1", "").await, Ok(137));
    shim.delete("m1", "").await.expect("delete");
    assert_eq!(shim.state("m2", "").await.expect("state").status.value(), 2, "the others go on");
    // The sandbox ends, and with it what is left in it.
    shim.kill("s1", "", 9).await.expect("kill");
    shim.wait("s1", "").await.expect("wait");
    shim.delete("s1", "").await.expect("delete");
    assert_eq!(within("m2's end", 5, shim.wait("m2", "")).await, Ok(137));
    shim.delete("m2", "").await.expect("delete");
    shim.shutdown(false).await.expect("shutdown");
    node.assert_clean();
    let dir = node.bundle("m3", &Bundle::sh("true").member("s1"));
    let output = node.start_output("m3", &dir);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("its sandbox s1 has no running shim"), "{text}");
}
