//! A pod that fails or whose shim is killed at any step leaves the node as it was.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use harness::{
    Bundle, Code, NO_STREAMS, PodNetns, Shim, TestNode, cgroup_top, code, eventually, rounds, within,
};
use kata_se::test_api::Step;

/// Steps of a pod's end or of a process; all others are steps of Create.
const LATER: [Step; 8] = [
    Step::ContainerStarted,
    Step::ExecMade,
    Step::ExecStarted,
    Step::ContainerRemoved,
    Step::SandboxDestroyed,
    Step::VmStopped,
    Step::CleanupStepDone,
    Step::CleanupDone,
];

/// Sets what every shim and every `delete` of the node does at a step; empty: nothing.
fn failpoint(node: &TestNode, what: &str) {
    std::fs::write(node.path("failpoint"), what).expect("failpoint");
}

async fn node_with_failpoint() -> TestNode {
    let node = TestNode::new().await;
    let file = node.path("failpoint").display().to_string();
    node.environment.lock().expect("environment").push(("KATA_SE_FAILPOINT".to_owned(), file));
    node
}

/// A whole life, as far as it gets: a sandbox with network, a container with an emptyDir, an
/// exec, the end.
async fn whole_life(node: &TestNode, netns: &PodNetns) -> ttrpc::Result<()> {
    let dir = node.bundle("s1", &Bundle::sh("sleep 1000").sandbox().network(&netns.path()));
    let output = node.start_output("s1", &dir);
    if !output.status.success() {
        return Err(ttrpc::Error::Others(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let address = String::from_utf8(output.stdout).expect("address");
    let shim = Shim::try_connect(&address, &node.path("stdio")).await?;
    shim.create("s1", &dir, NO_STREAMS).await?;
    shim.start("s1", "").await?;
    let volume = node.empty_dir("cache");
    let member = node.bundle("m1", &Bundle::sh("sleep 1000").member("s1").empty_dir("/cache", &volume));
    shim.create("m1", &member, NO_STREAMS).await?;
    shim.start("m1", "").await?;
    shim.exec("m1", "e1", Bundle::process(&["/bin/true"]), NO_STREAMS).await?;
    shim.start("m1", "e1").await?;
    shim.wait("m1", "e1").await?;
    shim.kill("m1", "", 9).await?;
    shim.wait("m1", "").await?;
    shim.delete("m1", "").await?;
    shim.kill("s1", "", 9).await?;
    shim.wait("s1", "").await?;
    shim.delete("s1", "").await?;
    shim.shutdown(false).await
}

#[tokio::test]
async fn every_step_is_reached() {
    // The crash tests below would prove nothing about a step that is never reached.
    let node = node_with_failpoint().await;
    let netns = PodNetns::new();
    for step in Step::ALL {
        failpoint(&node, &format!("{}=EIO", step.name()));
        let result = within("an end", 60, whole_life(&node, &netns)).await;
        let message = result.err().map(|e| e.to_string()).unwrap_or_default() + &node.log();
        assert!(
            message.contains(&format!("failpoint {}", step.name())),
            "{}: never reached: {message}",
            step.name()
        );
        failpoint(&node, "");
        node.delete("m1");
        node.delete("s1");
    }
}

#[tokio::test]
async fn a_shim_killed_at_any_step_leaves_nothing_after_delete() {
    let node = node_with_failpoint().await;
    let netns = PodNetns::new();
    let clean = harness::Census::take(&node.path(""), &node.path("run"));
    for round in 1..=3 {
        for step in Step::ALL {
            // In later rounds at the second container's step, or at the next cleanup, where there is one.
            failpoint(&node, &format!("{}=kill#{round}", step.name()));
            within("an end", 60, whole_life(&node, &netns)).await.ok();
            failpoint(&node, "");
            let began = Instant::now();
            node.delete("m1");
            node.delete("s1");
            assert!(
                began.elapsed() < Duration::from_secs(5),
                "{}: delete took {:?}",
                step.name(),
                began.elapsed()
            );
            clean.assert_clean();
            node.delete("s1"); // again: no change, no error
            clean.assert_clean();
        }
    }
}

/// Kills the shim of the only pod, if it is there; its lock names it.
fn kill_shim(node: &TestNode) -> Option<()> {
    let pod = std::fs::read_dir(node.path("run")).ok()?.flatten().find(|e| e.path().join("lock").exists())?;
    let pid = std::fs::read_to_string(pod.path().join("lock")).ok()?.trim().parse().ok()?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).ok()
}

/// Kills a `delete` after this time.
async fn kill_delete(node: &TestNode, id: &str, moment: Duration) {
    let mut delete = node.delete_command(id);
    delete.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    let mut delete = delete.spawn().expect("delete");
    tokio::time::sleep(moment).await;
    delete.kill().ok();
    delete.wait().expect("wait");
}

/// Every step has its own test; here the kill comes between them, and into whatever the kernel is doing.
#[tokio::test]
async fn a_shim_killed_at_any_moment_leaves_nothing_even_if_its_delete_is_killed_too() {
    let node = TestNode::new().await;
    let netns = PodNetns::new();
    let clean = harness::Census::take(&node.path(""), &node.path("run"));
    let began = Instant::now();
    whole_life(&node, &netns).await.expect("a whole life");
    let (life, count) = (began.elapsed(), rounds(40));
    let mut killed = 0;
    for n in 0..count {
        let moment = harness::moment(life, n, count);
        let kill = async {
            tokio::time::sleep(moment).await;
            kill_shim(&node)
        };
        let (_, hit) = tokio::join!(within("an end", 60, whole_life(&node, &netns)), kill);
        killed += u32::from(hit.is_some());
        kill_delete(&node, "s1", harness::moment(Duration::from_millis(40), n * 31, count)).await;
        let began = Instant::now();
        node.delete("m1");
        node.delete("s1");
        assert!(began.elapsed() < Duration::from_secs(5), "{moment:?}: delete took {:?}", began.elapsed());
        let left = clean.difference();
        assert!(left.is_empty(), "after {moment:?} of {life:?}: {left:?}");
    }
    assert!(killed > count / 2, "only {killed} of {count} shims were there to be killed");
}

/// The lines of the shims' log about a panic.
fn bugs(node: &TestNode) -> Vec<String> {
    node.log_with_bugs()
        .lines()
        .filter(|line| line.contains("a bug in the shim: panic at"))
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn a_panic_at_any_step_ends_the_pod_and_the_shim() {
    let node = node_with_failpoint().await;
    let netns = PodNetns::new();
    let clean = harness::Census::take(&node.path(""), &node.path("run"));
    for step in Step::ALL {
        failpoint(&node, &format!("{}=panic#1", step.name()));
        within("an end", 30, whole_life(&node, &netns)).await.expect_err(step.name());
        let ended = || harness::pods(&node.path("run")).is_empty();
        eventually(&format!("the pod's end after {}", step.name()), 20, ended).await;
        clean.assert_clean();
        let bugs = bugs(&node);
        assert!(
            matches!(bugs.as_slice(), [bug] if bug.contains("failpoint.rs")),
            "{}: {bugs:?}",
            step.name()
        );
        failpoint(&node, "");
        node.delete("m1");
        node.delete("s1");
    }
}

#[tokio::test]
async fn a_panic_of_one_call_ends_every_process_and_answers_all_waiters() {
    let node = node_with_failpoint().await;
    failpoint(&node, "");
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    for id in ["m1", "m2"] {
        let dir = node.bundle(id, &Bundle::sh("sleep 1000").member("s1"));
        shim.create(id, &dir, NO_STREAMS).await.expect("create");
    }
    shim.start("m1", "").await.expect("start");
    let dir = node.bundle("m3", &Bundle::sh("sleep 1000").member("s1"));
    failpoint(&node, "ContainerMade=panic#1");
    let asking = async {
        // Its phase is stuck: this Delete waits for a Create that is no more.
        let created = shim.create("m3", &dir, NO_STREAMS).await;
        (created, shim.delete("m3", "").await)
    };
    let waits = async { tokio::join!(shim.wait("s1", ""), shim.wait("m1", ""), shim.wait("m2", "")) };
    let (waits, (created, deleted)) = within("answers", 10, async { tokio::join!(waits, asking) }).await;
    assert_eq!(waits, (Ok(137), Ok(137), Ok(137)));
    assert_eq!((code(&created), code(&deleted)), (Some(Code::INTERNAL), Some(Code::NOT_FOUND)));
    let exits = || node.events.lines().iter().filter(|line| line.starts_with("exit ")).count();
    eventually("exits", 5, || exits() == 3).await;
    eventually("the pod's end", 10, || harness::pods(&node.path("run")).is_empty()).await;
    node.assert_clean();
    assert_eq!(bugs(&node).len(), 1);
}

#[tokio::test]
async fn any_error_at_any_step_of_create_is_undone_before_it_is_answered() {
    let node = node_with_failpoint().await;
    let netns = PodNetns::new();
    let clean = harness::Census::take(&node.path(""), &node.path("run"));
    for step in Step::ALL.iter().filter(|s| !LATER.contains(s)) {
        for error in ["EIO", "ENOSPC", "EMFILE", "ETIMEDOUT"] {
            let point = format!("{}={error}", step.name());
            let bundle = Bundle::sh("sleep 1000").sandbox().network(&netns.path());
            let dir = node.bundle("s1", &bundle.empty_dir("/cache", &node.empty_dir("cache")));
            let shim = node.shim("s1", &dir).await;
            let served = harness::Census::take(&node.path(""), &node.path("run"));
            failpoint(&node, &point);
            let e = shim.create("s1", &dir, NO_STREAMS).await.expect_err(&point).to_string();
            assert!(e.contains("create container s1") && e.contains("failpoint"), "{e}");
            let own = |line: &String| {
                let folders = line.ends_with("/rooms") || line.contains("/pack");
                folders || ["/journal", "/log", "/state.json"].iter().any(|name| line.contains(name))
            };
            let left: Vec<_> = served.difference().into_iter().filter(|line| !own(line)).collect();
            assert!(left.is_empty(), "{point}: {left:?}");
            failpoint(&node, "");
            shim.create("s1", &dir, NO_STREAMS).await.expect("the same id at once");
            shim.shutdown(true).await.expect("shutdown");
            clean.assert_clean();
        }
    }
}

#[tokio::test]
async fn delete_killed_at_any_undo_is_finished_by_the_next_one() {
    let node = node_with_failpoint().await;
    let netns = PodNetns::new();
    let clean = harness::Census::take(&node.path(""), &node.path("run"));
    for nth in 1.. {
        let bundle = Bundle::sh("sleep 1000").sandbox().network(&netns.path());
        let shim = node.running("s1", &bundle).await;
        let (pid, _) = shim.pid("s1").await;
        let pid = nix::unistd::Pid::from_raw(pid as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
        failpoint(&node, &format!("{}=kill#{nth}", Step::CleanupStepDone.name()));
        let killed = !node.delete_output("s1").status.success();
        failpoint(&node, "");
        node.delete("s1");
        clean.assert_clean();
        if !killed {
            assert!(nth > 5, "only {nth} undos");
            return;
        }
    }
}

#[tokio::test]
async fn a_create_that_failed_can_be_repeated_at_once() {
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("exit 5"));
    let shim = node.shim("c1", &dir).await;
    node.double(|orders| orders["refuse"] = "blockdev-add".into());
    let e = shim.create("c1", &dir, NO_STREAMS).await.expect_err("refused").to_string();
    assert!(e.contains("blockdev-add refused"), "{e}");
    node.double(|_| ());
    shim.create("c1", &dir, NO_STREAMS).await.expect("the same id, the same shim");
    shim.start("c1", "").await.expect("start");
    assert_eq!(shim.wait("c1", "").await, Ok(5));
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn delete_works_without_a_shim_twice_and_at_once() {
    let node = TestNode::new().await;
    node.bundle("never", &Bundle::sh("true"));
    node.delete("never");
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let (pid, _) = shim.pid("c1").await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL)
        .expect("kill");
    // Its configuration and QEMU may be gone too.
    std::fs::remove_file(node.path("config.toml")).expect("remove");
    std::fs::remove_file(node.path("bin/qemu")).expect("remove");
    let both = [node.delete_command("c1"), node.delete_command("c1")]
        .map(|mut command| std::thread::spawn(move || command.output().expect("the shim")));
    for one in both {
        let output = one.join().expect("join");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    node.assert_clean();
}

#[tokio::test]
async fn delete_of_a_member_leaves_the_living_pod_alone_and_of_the_sandbox_ends_it() {
    let node = TestNode::new().await;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    let dir = node.bundle("m1", &Bundle::sh("sleep 1000").member("s1"));
    shim.create("m1", &dir, NO_STREAMS).await.expect("create");
    shim.start("m1", "").await.expect("start");
    node.delete("m1");
    assert_eq!(shim.state("m1", "").await.expect("state").status.value(), 2, "untouched");
    // A shim that runs but hangs: stopped.
    let (pid, _) = shim.pid("s1").await;
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("stop");
    let began = Instant::now();
    node.delete("s1");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    node.assert_clean();
}

#[tokio::test]
async fn a_create_that_its_client_gave_up_is_ended_by_delete() {
    let node = TestNode::new().await;
    node.script(&serde_json::json!([{"call": "CreateContainer", "hang": true}]));
    let dir = node.bundle("c1", &Bundle::sh("true"));
    let shim = node.shim("c1", &dir).await;
    let given_up = shim.create_for("c1", &dir, NO_STREAMS, false, Duration::from_millis(1500)).await;
    assert!(given_up.is_err(), "{given_up:?}");
    let deleted = within("the cancelled create", 10, shim.delete("c1", "")).await;
    assert_eq!(code(&deleted), Some(Code::NOT_FOUND));
    shim.shutdown(false).await.expect("shutdown");
    node.assert_clean();
}

#[tokio::test]
async fn a_start_killed_at_any_moment_leaves_a_shim_that_delete_finds_at_once() {
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("true"));
    let count = rounds(40);
    for n in 0..count {
        let moment = Duration::from_millis(20) * n / count;
        let mut start = node.start_command("c1", &dir);
        start.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        let mut start = start.spawn().expect("start");
        tokio::time::sleep(moment).await;
        start.kill().expect("kill");
        start.wait().expect("wait");
        // In all pairs: nothing else is killed, the shim, `delete`, or both.
        if n & 1 != 0 {
            kill_shim(&node);
        }
        if n & 2 != 0 {
            kill_delete(&node, "c1", harness::moment(Duration::from_millis(10), n, count)).await;
        }
        let began = Instant::now();
        node.delete("c1");
        assert!(began.elapsed() < Duration::from_secs(5), "{moment:?}: {:?}", began.elapsed());
        node.assert_clean();
    }
}

#[tokio::test]
async fn a_start_that_cannot_write_the_address_leaves_no_shim() {
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("true"));
    std::fs::create_dir(dir.join("address")).expect("in its place");
    let output = node.start_output("c1", &dir);
    let text =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && text.contains("/address"), "{text}");
    node.assert_clean();
}

#[tokio::test]
async fn a_start_that_cannot_clean_up_leaves_the_journal_to_delete() {
    let node = node_with_failpoint().await;
    let netns = PodNetns::new();
    let clean = harness::Census::take(&node.path(""), &node.path("run"));
    failpoint(&node, &format!("{}=kill", Step::QemuSpawned.name()));
    within("an end", 60, whole_life(&node, &netns)).await.ok();
    failpoint(&node, &format!("{}=EIO", Step::CleanupStepDone.name()));
    let dir = node.bundle("s1", &Bundle::sh("true").sandbox());
    assert!(!node.start_output("s1", &dir).status.success());
    failpoint(&node, "");
    assert!(!clean.difference().is_empty(), "something is left");
    node.delete("s1");
    clean.assert_clean();
}

/// Leaks one thing of each kind until it is dropped.
struct Leak {
    dir: tempfile::TempDir,
    process: std::process::Child,
    _socket: std::os::unix::net::UnixListener,
}

fn leaked_cgroup() -> PathBuf {
    cgroup_top("pids").join("kata-se-leak")
}

impl Leak {
    fn new(dir: tempfile::TempDir) -> Self {
        use std::process::{Command, Stdio};
        let at = |name: &str| dir.path().join(name);
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000; true"]).arg(at("named")).process_group(0);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sh");
        let socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("socket");
        let leak = Self { process, _socket: socket, dir };
        std::fs::write(leak.dir.path().join("run/file"), b"").expect("file");
        std::fs::create_dir(leaked_cgroup()).expect("cgroup");
        leak.sh("mkdir mounted && mount -t tmpfs none mounted");
        leak.sh("ip tuntap add dev ksleak mode tap && tc qdisc add dev ksleak ingress");
        leak
    }

    fn sh(&self, command: &str) {
        let status =
            std::process::Command::new("sh").args(["-c", command]).current_dir(self.dir.path()).status();
        assert!(std::thread::panicking() || status.expect("sh").success(), "{command}");
    }
}

impl Drop for Leak {
    fn drop(&mut self) {
        self.sh("ip link del ksleak; umount mounted; true");
        std::fs::remove_dir(leaked_cgroup()).ok();
        let group = nix::unistd::Pid::from_raw(self.process.id() as i32);
        nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).ok();
        self.process.wait().ok();
    }
}

#[test]
fn a_leak_of_any_kind_is_caught() {
    let dir = tempfile::Builder::new().prefix("kst").tempdir().expect("folder");
    std::fs::create_dir(dir.path().join("run")).expect("run");
    let census = harness::Census::take(dir.path(), &dir.path().join("run"));
    let leak = Leak::new(dir);
    let found = census.difference().join("\n");
    drop(leak);
    for wanted in ["process", "file", "socket", "cgroup", "mount", "link ksleak", "qdisc"] {
        assert!(found.contains(&format!("+ {wanted}")), "{wanted} in:\n{found}");
    }
    assert!(census.difference().is_empty());
}
