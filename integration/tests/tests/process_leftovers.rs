//! A pod that fails, dies or is abandoned leaves no process, no shim and no name that is taken.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use harness::{Bundle, Containerd, NO_STREAMS, TestNode, until, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Children of a process, zombies included.
fn children(parent: u32) -> Vec<String> {
    let stats = fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let after = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()?;
        (after == parent).then_some(stat)
    });
    stats.collect()
}

/// The double's orders, and the text that the pod's error then contains.
type Mishap = (fn(&mut Value), &'static str);

#[tokio::test]
async fn a_qemu_that_fails_at_its_start_is_killed_and_reaped() {
    let node = TestNode::new().await;
    fs::create_dir(node.path("config.d")).expect("folder");
    fs::write(node.path("config.d/limits.toml"), "[agent]\nconnect_timeout_s = 1\n").expect("drop-in");
    let dir = node.bundle("c1", &Bundle::sh("true"));
    let mishaps: [Mishap; 4] = [
        (|o| o["exit"] = json!({"code": 1, "stderr": "no"}), "exit code 1"),
        (|o| o["refuse"] = "qmp_capabilities".into(), "qmp_capabilities refused"),
        (|o| o["refuse"] = "cont".into(), "cont refused"),
        (|o| o["no_agent"] = true.into(), "did not answer"),
    ];
    for (mishap, wanted) in mishaps {
        node.double(mishap);
        let shim = node.shim("c1", &dir).await;
        let began = Instant::now();
        let e =
            within("an error", 20, shim.create("c1", &dir, NO_STREAMS)).await.expect_err(wanted).to_string();
        assert!(e.contains(wanted), "{e}");
        let server = node.shim_pid().await;
        harness::eventually("all are reaped", 1, || children(server).is_empty()).await;
        eprintln!("{wanted}: reported after {:?}", began.elapsed());
        shim.shutdown(true).await.expect("shutdown");
        node.assert_clean();
    }
}

fn ended(node: &Containerd) {
    let pods = || harness::pods(&node.path("run")).len();
    until("no pod is left", 5, || pods() == 0);
    node.ctr_ok(&["container", "rm", "c1"]);
    node.assert_clean();
}

#[test]
fn a_pod_whose_qemu_died_is_removed_without_delay() {
    let node = Containerd::doubled("1.6");
    let run = node.run(&["--detach"], "c1", &["sleep", "1000"]).output().expect("ctr");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let (status, vm) = node.task("c1").expect("a task");
    assert_eq!(status, "RUNNING");
    let began = Instant::now();
    kill(Pid::from_raw(i32::try_from(vm).expect("pid")), Signal::SIGKILL).expect("kill");
    until("it is stopped", 5, || node.task("c1").is_some_and(|(status, _)| status == "STOPPED"));
    let removed = node.ctr(&["task", "rm", "c1"]);
    let message = String::from_utf8_lossy(&removed.stderr).into_owned();
    assert!(message.contains("exit code 137"), "{message}");
    eprintln!("removed {:?} after its VM died", began.elapsed());
    ended(&node);
    assert_eq!(node.delivered().of("c1"), ["create c1", "start c1", "exit c1 137", "delete c1 137"]);
}

#[test]
fn a_pod_that_cannot_start_leaves_no_shim_and_its_name_is_free() {
    let node = Containerd::doubled("1.6");
    node.doubles().double(|orders| orders["exit"] = json!({"code": 1, "stderr": "not today"}));
    for _ in 0..2 {
        let failed = node.run(&["--rm"], "c1", &["true"]).output().expect("ctr");
        let message = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(!failed.status.success() && message.contains("not today"), "{message}");
        node.assert_clean();
    }
    node.doubles().double(|_| ());
    let works = node.run(&["--rm"], "c1", &["sh", "-c", "echo works"]).output().expect("ctr");
    assert_eq!(String::from_utf8_lossy(&works.stdout), "works\n", "{}", node.log());
    node.assert_clean();
}

#[test]
fn a_create_that_containerd_gave_up_ends_with_its_shim() {
    let node = Containerd::doubled("1.6");
    let hang = |call: &str| json!({"call": call, "skip": true, "hang": true});
    node.doubles().script(&json!([hang("CreateContainer"), hang("DestroySandbox")]));
    node.doubles().double(|orders| orders["ignore_quit"] = true.into());
    let began = Instant::now();
    let words =
        ["--timeout", "2s", "run", "--platform", "linux/s390x", "--runtime", "io.containerd.kata-se.v2"];
    let mut run = node.command(&[&words[..], &[harness::IMAGE, "c1", "sleep", "1000"]].concat());
    let given_up = run.stdout(Stdio::null()).output().expect("ctr");
    assert!(!given_up.status.success() && began.elapsed() < Duration::from_secs(15));
    let pods = || harness::pods(&node.path("run")).len();
    until("no pod is left", 20, || pods() == 0);
    eprintln!("nothing is left {:?} after the start", began.elapsed());
    node.ctr(&["container", "rm", "c1"]);
    node.assert_clean();
}
