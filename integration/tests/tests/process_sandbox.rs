//! containerd's Sandbox API: a pod whose VM exists without a sandbox container.

use std::time::{Duration, Instant};

use harness::{
    Bundle, Code, NO_STREAMS, PodConfig, PodNetns, Sandbox, Shim, TestNode, code, eventually, within,
};
use kata_se::test_api::Step;
use serde_json::{Value, json};

/// A container of the pod `s1`, created and started.
async fn member(node: &TestNode, shim: &Shim, id: &str) {
    let dir = node.bundle(id, &Bundle::sh("sleep 1000").member("s1"));
    shim.create(id, &dir, NO_STREAMS).await.expect("create");
    shim.start(id, "").await.expect("start");
}

fn request(node: &TestNode, call: &str) -> Value {
    let requests = node.requests();
    let found = requests.iter().find(|request| request["call"] == call);
    found.unwrap_or_else(|| panic!("no {call} in {requests:?}")).clone()
}

/// SIGKILL for a process of the host.
fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
}

#[tokio::test]
async fn a_pod_without_a_sandbox_container_from_create_to_shutdown() {
    let netns = PodNetns::new();
    let node = TestNode::new().await;
    let (shim, sandbox) = node.sandbox("s1").await;
    let config = PodConfig::default()
        .hostname("web-0")
        .nameserver("10.0.0.10")
        .sysctl("net.core.somaxconn", "9")
        .cgroup_parent("/kata-se-tests/pod1");
    sandbox.create(&config, &netns.path()).await.expect("create");
    assert_eq!(sandbox.status(false).await.expect("status").state, "SANDBOX_NOTREADY", "not started");
    // A restarted containerd calls this, and cleans up the shim if it returns an error.
    assert_eq!(shim.pids_of("s1").await.expect("known without any container").1, 0);
    let pid = sandbox.start().await.expect("start");
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process of the host");
    assert!(cgroup.contains("/kata-se-tests/pod1/kata-se-"), "{cgroup}");
    assert_eq!(sandbox.platform().await, Ok(("linux".to_owned(), "s390x".to_owned())));
    assert_eq!(sandbox.ping().await, Ok(()));
    let status = sandbox.status(true).await.expect("status");
    assert_eq!((status.sandbox_id.as_str(), status.state.as_str(), status.pid), ("s1", "SANDBOX_READY", pid));
    assert!(status.created_at.seconds > 1_600_000_000 && status.exited_at.is_none(), "{status:?}");
    let info: Value = serde_json::from_str(&status.info["info"]).expect("JSON");
    assert_eq!((&info["pid"], &info["vm"]["memory_mib"]), (&json!(pid), &json!(256)), "{info}");
    assert!(sandbox.metrics().await.expect("metrics").0.starts_with("io.containerd.cgroups.v"));

    let made = request(&node, "CreateSandbox")["request"].to_string();
    assert!(made.contains("web-0") && made.contains("nameserver 10.0.0.10"), "{made}");
    request(&node, "UpdateInterface");

    // Containers name their sandbox; no shim is started for them.
    member(&node, &shim, "m1").await;
    // A caller without CRI's annotations names it by the shim that it calls.
    let dir = node.bundle("m2", &Bundle::sh("exit 3"));
    assert_eq!(shim.create("m2", &dir, NO_STREAMS).await, Ok(pid));
    shim.start("m2", "").await.expect("start");
    assert_eq!(shim.wait("m2", "").await, Ok(3));
    assert_eq!(shim.run_exec("m1", "e1", &["/bin/sh", "-c", "exit 7"]).await, 7);
    let specs: Vec<_> = node.requests().into_iter().filter(|r| r["call"] == "CreateContainer").collect();
    assert_eq!(specs.len(), 2);
    for spec in specs {
        let spec = spec.to_string();
        assert!(spec.contains("pod_container") && spec.contains("net.core.somaxconn"), "{spec}");
    }
    assert_eq!(shim.delete("m2", "").await, Ok(3));
    shim.kill("m1", "", 9).await.expect("kill");
    assert_eq!(shim.wait("m1", "").await, Ok(137));
    shim.delete("m1", "").await.expect("delete");
    shim.shutdown(false).await.expect("containers' own Shutdown");
    assert_eq!(sandbox.ping().await, Ok(()), "the pod lives without containers, too");

    sandbox.stop().await.expect("stop");
    let status = sandbox.status(true).await.expect("status");
    assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_NOTREADY", 0));
    assert!(status.exited_at.seconds >= status.created_at.seconds, "{status:?}");
    assert_eq!(sandbox.wait().await, Ok(0));
    sandbox.stop().await.expect("again");
    sandbox.shutdown().await.expect("shutdown");
    node.assert_clean();
    eventually("events", 5, || node.events.seen().len() == 11).await;
    let lines = node.events.lines();
    assert!(lines.iter().all(|line| !line.contains("s1")), "no task event about the sandbox: {lines:?}");
}

#[tokio::test]
async fn each_call_at_the_wrong_time_has_its_code() {
    let node = TestNode::new().await;
    let (shim, sandbox) = node.sandbox("s1").await;
    let config = PodConfig::default();
    assert_unknown(&sandbox).await;
    assert_eq!(code(&sandbox.called("s2").create(&config, "").await), Some(Code::INVALID_ARGUMENT));
    assert_eq!(code(&sandbox.called("../s").create(&config, "").await), Some(Code::INVALID_ARGUMENT));
    sandbox.create(&config, "").await.expect("create");
    assert_eq!(code(&sandbox.create(&config, "").await), Some(Code::ALREADY_EXISTS));
    assert_eq!(code(&sandbox.ping().await), Some(Code::FAILED_PRECONDITION), "not started");
    assert_eq!(code(&sandbox.metrics().await), Some(Code::NOT_FOUND), "no figures yet");
    let dir = node.bundle("m1", &Bundle::sh("true").member("s1"));
    let early = shim.create("m1", &dir, NO_STREAMS).await;
    assert_eq!(code(&early), Some(Code::FAILED_PRECONDITION), "a container before its pod");
    sandbox.start().await.expect("start");
    assert_unknown(&sandbox.called("s2")).await;
    let again = sandbox.start().await.expect_err("started").to_string();
    assert!(again.contains("sandbox s1: was started already"), "{again}");
    let dir = node.bundle("s1", &Bundle::sh("true").sandbox());
    let e = shim.create("s1", &dir, NO_STREAMS).await.expect_err("two ways").to_string();
    assert!(e.contains("was made by the Sandbox API and has no container of its own"), "{e}");
    sandbox.stop().await.expect("stop");
    let e = sandbox.start().await.expect_err("stopped").to_string();
    assert!(e.contains("sandbox s1: was stopped: create a new one"), "{e}");
    assert_eq!(code(&sandbox.ping().await), Some(Code::FAILED_PRECONDITION), "stopped");
    sandbox.shutdown().await.expect("shutdown");
    node.assert_clean();
}

/// The shim knows no sandbox by this id.
async fn assert_unknown(sandbox: &Sandbox) {
    let unknown = Some(Code::NOT_FOUND);
    assert_eq!(code(&sandbox.start().await), unknown, "start");
    assert_eq!(code(&sandbox.platform().await), unknown, "platform");
    assert_eq!(code(&sandbox.stop().await), unknown, "stop");
    assert_eq!(code(&sandbox.wait().await), unknown, "wait");
    assert_eq!(code(&sandbox.status(false).await), unknown, "status");
    assert_eq!(code(&sandbox.ping().await), unknown, "ping");
    assert_eq!(code(&sandbox.metrics().await), unknown, "metrics");
    if sandbox.id != "s1" {
        assert_eq!(code(&sandbox.shutdown().await), unknown, "shutdown");
    }
}

#[tokio::test]
async fn a_pod_that_began_with_a_sandbox_container_is_no_sandbox_of_the_api() {
    let node = TestNode::new().await;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    let sandbox = Sandbox::connect(&shim.address, "s1", &node.path("bundles/s1")).await;
    let created = sandbox.create(&PodConfig::default(), "").await;
    assert_eq!(code(&created), Some(Code::FAILED_PRECONDITION));
    assert_unknown(&sandbox).await;
    assert_eq!(code(&sandbox.shutdown().await), Some(Code::NOT_FOUND), "its containers go on");
    node.end(&shim, "s1").await;
}

#[tokio::test]
async fn a_refused_pod_has_its_reason_and_its_shim_can_exit() {
    let node = TestNode::new().await;
    for (config, wanted) in [
        (PodConfig::default().host_network(), "hostNetwork"),
        (PodConfig::default().nameserver("10.0.0.1\nsearch x"), "is not one word"),
    ] {
        let (_, sandbox) = node.sandbox("s1").await;
        let e = sandbox.create(&config, "").await.expect_err(wanted).to_string();
        assert!(e.contains(wanted) && e.contains("sandbox s1"), "{e}");
        sandbox.shutdown().await.expect("shutdown");
        node.assert_clean();
    }
    // What the pod's author may not choose is found when the node's configuration is read.
    let (_, sandbox) = node.sandbox("s1").await;
    let config = PodConfig::default().annotation("io.katacontainers.config.hypervisor.kernel", "/x");
    sandbox.create(&config, "").await.expect("create");
    let e = sandbox.start().await.expect_err("kernel").to_string();
    assert!(e.contains("start sandbox s1: annotation io.katacontainers.config.hypervisor.kernel"), "{e}");
    sandbox.shutdown().await.expect("shutdown");
    node.assert_clean();
}

#[tokio::test]
async fn the_vms_death_ends_the_wait_and_each_container() {
    let node = TestNode::new().await;
    let (shim, sandbox) = node.running_sandbox("s1").await;
    member(&node, &shim, "m1").await;
    let dir = node.bundle("m2", &Bundle::sh("true").member("s1"));
    shim.create("m2", &dir, NO_STREAMS).await.expect("created, never started");
    let pid = sandbox.status(false).await.expect("status").pid;
    let began = Instant::now();
    let (one, two, ()) = tokio::join!(sandbox.wait(), sandbox.wait(), async { kill(pid) });
    assert_eq!((one, two), (Ok(137), Ok(137)));
    for id in ["m1", "m2"] {
        assert_eq!(within("its end", 5, shim.wait(id, "")).await, Ok(137), "{id}");
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let status = sandbox.status(true).await.expect("status");
    assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_NOTREADY", 0));
    assert!(status.info["info"].contains("QEMU was killed by signal 9"), "{status:?}");
    assert_eq!(code(&sandbox.ping().await), Some(Code::FAILED_PRECONDITION));
    within("stop without a VM", 2, sandbox.stop()).await.expect("stop");
    assert_eq!(sandbox.wait().await, Ok(137), "the first end counts");
    for id in ["m1", "m2"] {
        within("delete without an agent", 2, shim.delete(id, "")).await.expect("delete");
    }
    sandbox.shutdown().await.expect("shutdown");
    node.assert_clean();
    eventually("events", 5, || node.events.lines().iter().any(|l| l == "delete m2 137")).await;
    let exits = node.events.lines().into_iter().filter(|l| l.starts_with("exit")).count();
    assert_eq!(exits, 2, "{:?}", node.events);
}

#[tokio::test]
async fn a_stop_ends_what_still_runs_and_may_come_from_two_sides() {
    let node = TestNode::new().await;
    let (shim, sandbox) = node.running_sandbox("s1").await;
    member(&node, &shim, "m1").await;
    let (one, two, waited) = tokio::join!(sandbox.stop(), sandbox.stop(), sandbox.wait());
    assert_eq!((one, two, waited), (Ok(()), Ok(()), Ok(0)));
    assert_eq!(within("its end", 5, shim.wait("m1", "")).await, Ok(137));
    shim.delete("m1", "").await.expect("delete");
    sandbox.shutdown().await.expect("shutdown");
    node.assert_clean();
}

#[tokio::test]
async fn a_shutdown_ends_everything_and_answers_all_waiters() {
    let node = TestNode::new().await;
    let (shim, sandbox) = node.running_sandbox("s1").await;
    member(&node, &shim, "m1").await;
    let (shutdown, waited) = tokio::join!(sandbox.shutdown(), sandbox.wait());
    assert_eq!((shutdown, waited), (Ok(()), Ok(0)));
    node.assert_clean();
    // Also one that was never started.
    let (_, sandbox) = node.sandbox("s2").await;
    sandbox.create(&PodConfig::default(), "").await.expect("create");
    let (shutdown, waited) = tokio::join!(sandbox.shutdown(), sandbox.wait());
    assert_eq!((shutdown, waited), (Ok(()), Ok(0)));
    node.assert_clean();
}

/// containerd's client may lose the answer when the connection is closed right after it.
#[tokio::test]
async fn the_last_answer_is_not_followed_by_the_end_of_its_connection() {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    let node = TestNode::new().await;
    let (shim, sandbox) = node.running_sandbox("s1").await;
    let mut idle = UnixStream::connect(shim.address.trim_start_matches("unix://")).expect("connect");
    idle.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
    sandbox.shutdown().await.expect("shutdown");
    let read = idle.read(&mut [0]).expect_err("still open");
    assert_eq!(read.kind(), std::io::ErrorKind::WouldBlock);
    drop((shim, sandbox, idle));
    node.assert_clean();
}

#[tokio::test]
async fn a_start_in_progress_is_ended_by_stop() {
    let node = TestNode::new().await;
    node.script(&json!([{"call": "CreateSandbox", "hang": true}]));
    let (_, sandbox) = node.sandbox("s1").await;
    sandbox.create(&PodConfig::default(), "").await.expect("create");
    let stop = async {
        let asked = || node.requests().iter().any(|request| request["call"] == "CreateSandbox");
        eventually("the guest is asked", 10, asked).await;
        sandbox.stop().await
    };
    let (started, stopped) = tokio::join!(sandbox.start(), stop);
    assert_eq!(stopped, Ok(()));
    let e = started.expect_err("cancelled").to_string();
    assert!(e.contains("start sandbox s1: cancelled"), "{e}");
    sandbox.shutdown().await.expect("shutdown");
    node.assert_clean();
}

#[tokio::test]
async fn a_start_that_failed_can_be_repeated_at_once() {
    let node = TestNode::new().await;
    node.script(&json!([{"call": "CreateSandbox", "nth": 1, "error": {"code": 13, "text": "not today"}}]));
    let (shim, sandbox) = node.sandbox("s1").await;
    sandbox.create(&PodConfig::default(), "").await.expect("create");
    let e = sandbox.start().await.expect_err("refused").to_string();
    assert!(e.contains("start sandbox s1: ") && e.contains("not today"), "{e}");
    node.script(&json!([]));
    sandbox.start().await.expect("the same sandbox, the same shim");
    member(&node, &shim, "m1").await;
    sandbox.shutdown().await.expect("shutdown");
    node.assert_clean();
}

#[tokio::test]
async fn a_first_container_that_fails_leaves_its_pod_alone() {
    let node = TestNode::new().await;
    let (shim, sandbox) = node.running_sandbox("s1").await;
    let mut bundle = Bundle::sh("true").member("s1");
    bundle.config["mounts"] =
        json!([{"destination": "/d", "type": "bind", "source": "/dev/null", "options": ["rbind"]}]);
    let dir = node.bundle("m1", &bundle);
    let e = shim.create("m1", &dir, NO_STREAMS).await.expect_err("device").to_string();
    assert!(e.contains("mount /d: /dev/null is a character device"), "{e}");
    // What containerd does next.
    assert_eq!(code(&shim.delete("m1", "").await), Some(Code::NOT_FOUND));
    shim.shutdown(false).await.expect("answered");
    member(&node, &shim, "m2").await;
    sandbox.shutdown().await.expect("shutdown");
    node.assert_clean();
}

#[tokio::test]
async fn files_that_a_pause_container_would_bring_are_there() {
    let node = TestNode::new().await;
    let (shim, sandbox) = node.sandbox("s1").await;
    sandbox.create(&PodConfig::default().nameserver("10.0.0.10"), "").await.expect("create");
    sandbox.start().await.expect("start");
    let mut bundle = Bundle::sh("sleep 1000").member("s1");
    let own = json!({"destination": "/etc/hosts", "type": "bind", "source": node.path("kernel"), "options": ["rbind"]});
    bundle.config["mounts"].as_array_mut().expect("mounts").push(own);
    let dir = node.bundle("m1", &bundle);
    shim.create("m1", &dir, NO_STREAMS).await.expect("create");
    let copied: Vec<_> = node.requests().into_iter().filter(|r| r["call"] == "CopyFile").collect();
    let of = |name: &str| copied.iter().filter(|r| r.to_string().contains(name)).count();
    assert_eq!((of("-hostname"), of("-hosts"), of("-resolv.conf"), copied.len()), (1, 1, 1, 3), "{copied:?}");
    let spec = request(&node, "CreateContainer").to_string();
    assert_eq!(spec.matches("\"/etc/hosts\"").count(), 1, "its own stays: {spec}");
    sandbox.shutdown().await.expect("shutdown");
    node.assert_clean();
}

/// A sandbox's runtime options are passed to `start` only.
#[tokio::test]
async fn the_configuration_is_the_one_that_the_runtime_options_name() {
    use containerd_shim_protos::protobuf::Message;
    use containerd_shim_protos::protobuf::well_known_types::any::Any;
    let node = TestNode::new().await;
    let named = node.path("named.toml").display().to_string();
    let text = std::fs::read_to_string(node.path("config.toml")).expect("configuration");
    std::fs::write(&named, text.replace("memory_mib = 256", "memory_mib = 320")).expect("configuration");
    let value = [&[0x12, u8::try_from(named.len()).expect("short")], named.as_bytes()].concat();
    let options = Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Default::default() };
    let dir = node.sandbox_bundle("s1");
    let output = node.start_with_input("s1", &dir, &options.write_to_bytes().expect("encode"));
    let address = String::from_utf8(output.stdout).expect("address");
    let sandbox = Sandbox::connect(&address, "s1", &dir).await;
    sandbox.create(&PodConfig::default(), "").await.expect("create");
    sandbox.start().await.expect("start");
    let info = sandbox.status(true).await.expect("status").info["info"].clone();
    assert!(info.contains("\"memory_mib\":320"), "{info}");
    sandbox.shutdown().await.expect("shutdown");
    node.assert_clean();
}

/// A pod's whole life, as far as it gets.
async fn whole_life(node: &TestNode, netns: &PodNetns) -> ttrpc::Result<()> {
    let (shim, sandbox) = node.sandbox("s1").await;
    sandbox.create(&PodConfig::default(), &netns.path()).await?;
    sandbox.start().await?;
    let volume = node.empty_dir("cache");
    let dir = node.bundle("m1", &Bundle::sh("sleep 1000").member("s1").empty_dir("/cache", &volume));
    shim.create("m1", &dir, NO_STREAMS).await?;
    shim.start("m1", "").await?;
    shim.kill("m1", "", 9).await?;
    shim.wait("m1", "").await?;
    shim.delete("m1", "").await?;
    sandbox.stop().await?;
    sandbox.shutdown().await
}

#[tokio::test]
async fn a_shim_killed_at_any_step_leaves_nothing_after_delete() {
    let netns = PodNetns::new();
    let node = TestNode::new().await;
    let file = node.path("failpoint");
    let failpoint = |what: &str| std::fs::write(&file, what).expect("failpoint");
    let variable = ("KATA_SE_FAILPOINT".to_owned(), file.display().to_string());
    node.environment.lock().expect("environment").push(variable);
    let clean = harness::Census::take(&node.path(""), &node.path("run"));
    let mut survived = Vec::new();
    for step in Step::ALL {
        failpoint(&format!("{}=kill", step.name()));
        if within("an end", 60, whole_life(&node, &netns)).await.is_ok() {
            survived.push(step.name());
        }
        failpoint("");
        let began = Instant::now();
        node.delete("m1");
        node.delete("s1");
        assert!(began.elapsed() < Duration::from_secs(5), "{}: {:?}", step.name(), began.elapsed());
        clean.assert_clean();
    }
    assert_eq!(survived, ["ExecMade", "ExecStarted"], "this life has no exec, and every other step");
}
