//! Calls that are given up, or are not answered: nothing of them is left on the host, in QEMU or in the guest.

use std::time::Duration;

use harness::{
    Bundle, Census, Code, NO_STREAMS, PodConfig, PodNetns, Shim, TestNode, code, eventually, moment, rounds,
    within,
};
use serde_json::json;

/// Moments at which a call is cancelled, over the time that the whole call takes.
fn moments(count: u32) -> impl Iterator<Item = Duration> {
    (0..count).map(move |nth| moment(Duration::from_millis(80), nth, count))
}

/// A pod's own files, which stay as long as its shim.
fn is_the_shims(line: &str) -> bool {
    let files = ["/pack", "/journal", "/log", "/state.json", "/hosts", "/hostname", "/resolv.conf"];
    line.ends_with("/rooms") || files.iter().any(|name| line.contains(name))
}

#[tokio::test]
async fn a_create_cancelled_at_any_moment_leaves_nothing_when_it_is_answered() {
    let netns = PodNetns::new();
    let node = TestNode::new().await;
    let dir = node.bundle("s1", &Bundle::sh("sleep 1000").sandbox().network(&netns.path()));
    let shim = node.shim("s1", &dir).await;
    let served = Census::take(&node.path(""), &node.path("run"));
    let mut cancelled = 0;
    for moment in moments(rounds(60)) {
        let cancel = async {
            tokio::time::sleep(moment).await;
            shim.delete("s1", "").await
        };
        let (created, deleted) = tokio::join!(shim.create("s1", &dir, NO_STREAMS), cancel);
        if let (Ok(_), Err(e)) = (&created, &deleted) {
            assert!(e.to_string().contains("no such container"), "it came before the Create: {e}");
            shim.delete("s1", "").await.expect("delete");
        }
        cancelled += u32::from(created.is_err());
        let left: Vec<_> = served.difference().into_iter().filter(|line| !is_the_shims(line)).collect();
        assert!(left.is_empty(), "after {moment:?}: {left:?}");
    }
    assert!(cancelled > 0, "none was in time");
    shim.shutdown(true).await.expect("shutdown");
    node.assert_clean();
    assert!(!node.log().contains("killed by signal 9"), "what we end is no failure of QEMU: {}", node.log());
}

#[tokio::test]
async fn a_sandbox_start_cancelled_at_any_moment_leaves_nothing_when_it_is_answered() {
    let netns = PodNetns::new();
    let node = TestNode::new().await;
    for moment in moments(rounds(20)) {
        let (_, sandbox) = node.sandbox("s1").await;
        sandbox.create(&PodConfig::default(), &netns.path()).await.expect("create");
        let served = Census::take(&node.path(""), &node.path("run"));
        let cancel = async {
            tokio::time::sleep(moment).await;
            sandbox.stop().await
        };
        let (_, stopped) = tokio::join!(sandbox.start(), cancel);
        assert_eq!(stopped, Ok(()), "after {moment:?}");
        let left: Vec<_> = served.difference().into_iter().filter(|line| !is_the_shims(line)).collect();
        assert!(left.is_empty(), "after {moment:?}: {left:?}");
        sandbox.shutdown().await.expect("shutdown");
        node.assert_clean();
    }
}

/// Open descriptors; QEMU has one for each disk, at least.
fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").count()
}

#[tokio::test]
async fn containers_that_fail_in_the_guest_leave_no_disk() {
    let node = TestNode::new().await;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    let (server, qemu) = shim.pid("s1").await;
    let guest = || {
        let entries = std::fs::read_dir(node.path("guest/run/kata-containers")).expect("guest");
        entries.map(|entry| entry.expect("entry").file_name()).collect::<std::collections::BTreeSet<_>>()
    };
    let before = (descriptors(qemu), guest());
    let of_shim = descriptors(server);
    node.script(&json!([{"call": "CreateContainer", "error": {"code": 13, "text": "no"}}]));
    for n in 0..100 {
        let id = format!("m{n}");
        let dir = node.bundle(&id, &Bundle::sh("sleep 1000").member("s1"));
        let e = shim.create(&id, &dir, NO_STREAMS).await.expect_err("refused").to_string();
        assert!(e.contains("agent CreateContainer: no"), "{e}");
    }
    assert_eq!((descriptors(qemu), guest()), before);
    eventually("the shim's descriptors", 5, || descriptors(server) <= of_shim).await;
    let removed = node.requests().iter().filter(|request| request["call"] == "RemoveContainer").count();
    assert_eq!(removed, 100, "the guest may have half of it");
    // One that hangs is cancelled.
    node.script(&json!([{"call": "CreateContainer", "hang": true}]));
    let dir = node.bundle("m100", &Bundle::sh("sleep 1000").member("s1"));
    let cancel = async {
        let asked = || node.requests().iter().filter(|r| r["call"] == "CreateContainer").count() > 101;
        eventually("the guest is asked", 10, asked).await;
        shim.delete("m100", "").await
    };
    let (created, deleted) = tokio::join!(shim.create("m100", &dir, NO_STREAMS), cancel);
    assert_eq!((code(&created), code(&deleted)), (Some(Code::CANCELLED), Some(Code::NOT_FOUND)));
    assert_eq!((descriptors(qemu), guest()), before);
    node.script(&json!([]));
    let dir = node.bundle("m101", &Bundle::sh("sleep 1000").member("s1"));
    shim.create("m101", &dir, NO_STREAMS).await.expect("the next one");
    node.end(&shim, "s1").await;
}

#[tokio::test]
async fn a_container_that_hangs_in_the_guest_does_not_hold_up_others_of_its_image() {
    let node = TestNode::new().await;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    node.script(&json!([{"call": "CreateContainer", "nth": 1, "hang": true}]));
    let [first, second] = ["m1", "m2"].map(|id| node.bundle(id, &Bundle::sh("sleep 1000").member("s1")));
    let others = async {
        let asked = || node.requests().iter().filter(|r| r["call"] == "CreateContainer").count() > 1;
        eventually("the guest is asked", 10, asked).await;
        within("another create", 3, shim.create("m2", &second, NO_STREAMS)).await
    };
    let (first, second) = tokio::join!(shim.create("m1", &first, NO_STREAMS), others);
    assert_eq!(code(&first), Some(Code::DEADLINE_EXCEEDED));
    second.expect("create");
    node.end(&shim, "s1").await;
}

/// Whether a process of the guest runs `sleep` with this argument.
fn sleeps(seconds: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let wanted = format!("sleep\0{seconds}\0");
    processes.into_iter().any(|process| {
        std::fs::read_to_string(process.path().join("cmdline")).is_ok_and(|line| line == wanted)
    })
}

#[tokio::test]
async fn a_process_whose_start_was_not_answered_does_not_run_on_in_the_guest() {
    let node = TestNode::new().await;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    let dir = node.bundle("m1", &Bundle::sh("sleep 1000").member("s1"));
    shim.create("m1", &dir, NO_STREAMS).await.expect("create");
    shim.start("m1", "").await.expect("start");
    node.script(&json!([{"call": "ExecProcess", "hang": true}, {"call": "StartContainer", "hang": true}]));
    shim.exec("m1", "e1", Bundle::process(&["/bin/sleep", "4711"]), NO_STREAMS).await.expect("exec");
    let started = shim.start("m1", "e1").await;
    assert_eq!(code(&started), Some(Code::DEADLINE_EXCEEDED));
    eventually("the exec is gone", 10, || !sleeps("4711")).await;
    let dir = node.bundle("m2", &Bundle::sh("exec sleep 4712").member("s1"));
    shim.create("m2", &dir, NO_STREAMS).await.expect("create");
    let started = shim.start("m2", "").await;
    assert_eq!(code(&started), Some(Code::DEADLINE_EXCEEDED));
    eventually("the container's process is gone", 10, || !sleeps("4712")).await;
    shim.delete("m2", "").await.expect("delete");
    node.end(&shim, "s1").await;
}

#[tokio::test]
async fn a_container_that_the_guest_makes_after_its_create_has_failed_is_removed() {
    let node = TestNode::new().await;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    let in_guest = |id: &str| node.path("guest/run/kata-containers").join(id).exists();
    // One is made at once and not answered, one two seconds after the call's limit of five.
    node.script(&json!([
        {"call": "CreateContainer", "request": {"container_id": "m1"}, "hang": true},
        {"call": "CreateContainer", "request": {"container_id": "m2"}, "before_ms": 7000},
    ]));
    let create = async |id: &str| {
        let dir = node.bundle(id, &Bundle::sh("exec sleep 4713").member("s1"));
        code(&shim.create(id, &dir, NO_STREAMS).await)
    };
    let began = std::time::Instant::now();
    let (first, second) = tokio::join!(create("m1"), create("m2"));
    assert_eq!((first, second), (Some(Code::DEADLINE_EXCEEDED), Some(Code::DEADLINE_EXCEEDED)));
    eventually("both are gone", 15, || began.elapsed().as_secs() >= 9 && !in_guest("m1") && !in_guest("m2"))
        .await;
    assert!(!sleeps("4713"));
    node.end(&shim, "s1").await;
}

/// A container's whole life, with every call that changes something; its processes sleep for 4714 s.
async fn whole_life(node: &TestNode, shim: &Shim, id: &str) -> ttrpc::Result<()> {
    let dir = node.bundle(id, &Bundle::sh("exec sleep 4714").member("s1"));
    shim.create(id, &dir, NO_STREAMS).await?;
    shim.start(id, "").await?;
    shim.exec(id, "e", Bundle::process(&["/bin/sleep", "4714"]), NO_STREAMS).await?;
    shim.start(id, "e").await?;
    shim.update(id, &json!({"cpu": {"shares": 512}})).await?;
    shim.pause(id).await?;
    shim.resume(id).await?;
    shim.kill(id, "e", 9).await?;
    shim.wait(id, "e").await?;
    shim.delete(id, "e").await?;
    shim.kill(id, "", 9).await?;
    shim.wait(id, "").await?;
    shim.delete(id, "").await?;
    Ok(())
}

/// Ends a container whatever its state is.
async fn end_container(shim: &Shim, id: &str) {
    shim.resume(id).await.ok();
    within("a container's end", 10, async {
        loop {
            shim.kill(id, "", 9).await.ok();
            if matches!(code(&shim.delete(id, "").await), None | Some(Code::NOT_FOUND)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_goes_away_at_any_moment_leaves_a_pod_that_works_and_tells_each_exit_once() {
    let node = TestNode::new().await;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    let began = std::time::Instant::now();
    whole_life(&node, &shim, "m0000").await.expect("a whole life");
    let life = began.elapsed();
    let (server, qemu) = shim.pid("s1").await;
    let before = (descriptors(server), descriptors(qemu));
    let (count, mut went_away) = (rounds(40), 0);
    for n in 0..count {
        let id = format!("m{n}");
        let caller = Shim::connect(&shim.address, &node.path("stdio")).await;
        let ended = tokio::time::timeout(moment(life, n, count), whole_life(&node, &caller, &id)).await;
        went_away += u32::from(ended.is_err());
        drop(caller);
        end_container(&shim, &id).await;
        assert_eq!(shim.state("s1", "").await.expect("the pod").status.value(), 2, "running");
    }
    assert!(went_away > count / 2, "only {went_away} of {count} went away");
    eventually("nothing runs on in the guest", 10, || !sleeps("4714")).await;
    eventually("equal descriptors", 5, || {
        let now = (descriptors(server), descriptors(qemu));
        now.0 <= before.0 && now.1 <= before.1
    })
    .await;
    node.end(&shim, "s1").await;
    let lines = node.events.lines();
    for name in lines.iter().filter_map(|line| line.strip_prefix("start ")) {
        let exits = lines.iter().filter(|line| line.starts_with(&format!("exit {name} "))).count();
        assert_eq!(exits, 1, "{name}: {lines:?}");
    }
}
