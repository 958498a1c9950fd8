//! What users of similar shims suffered with left-overs, group B: processes, mounts and names that stay, pods that
//! hang in Terminating. Each pain is a test of its name.
//!
//! Shown elsewhere: B2 is B1. B3, B12, B13, B19 (a start that fails leaves things): `process_crash::
//! any_error_at_any_step_of_create_is_undone_before_it_is_answered`. B5 (churn): `process_restarts`. B6 (only killing
//! the shim helps): `process_guest::every_call_of_a_running_pod_has_an_end` and `process_pains_c`. B9 (a shim stays
//! after its container): `process_life::a_container_from_create_to_shutdown`. B10, B20 (`delete` frees everything and
//! can be repeated): `process_crash`. B11 (a killed QEMU): `process_crash::
//! qemu_killed_under_a_running_pod_ends_each_process_once`. B17 (cgroups stay): the census of every test. B18 (CRI-O):
//! `process_doors::crios_pods_need_no_events`.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use harness::{Bundle, Code, Containerd, NO_STREAMS, Shim, TestNode, code, until, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Children of a process, those that nobody reaped too.
fn children(parent: u32) -> Vec<String> {
    let stats = fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let after = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()?;
        (after == parent).then_some(stat)
    });
    stats.collect()
}

/// What the double is told, and what its pod's error says then.
type Mishap = (fn(&mut Value), &'static str);

#[tokio::test]
async fn b1_a_qemu_that_fails_at_its_start_is_killed_and_reaped() {
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
        let server = fs::read_to_string(node.pod_dir().join("lock")).expect("lock");
        let server = server.trim().parse().expect("pid");
        harness::eventually("all are reaped", 1, || children(server).is_empty()).await;
        eprintln!("{wanted}: told after {:?}", began.elapsed());
        shim.shutdown(true).await.expect("shutdown");
        node.assert_clean();
    }
}

fn ended(node: &Containerd) {
    let pods = || fs::read_dir(node.path("run")).expect("run").count();
    until("no pod is left", 5, || pods() == 0);
    node.ctr_ok(&["container", "rm", "c1"]);
    node.assert_clean();
}

#[test]
fn b4_a_pod_whose_qemu_died_is_removed_without_delay() {
    let node = Containerd::doubled("1.6");
    let run = node.run(&["--detach"], "c1", &["sleep", "1000"]).output().expect("ctr");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let (status, vm) = node.task("c1").expect("a task");
    assert_eq!(status, "RUNNING");
    let began = Instant::now();
    kill(Pid::from_raw(i32::try_from(vm).expect("pid")), Signal::SIGKILL).expect("kill");
    until("it is stopped", 5, || node.task("c1").is_some_and(|(status, _)| status == "STOPPED"));
    let removed = node.ctr(&["task", "rm", "c1"]);
    let said = String::from_utf8_lossy(&removed.stderr).into_owned();
    assert!(said.contains("exit code 137"), "{said}");
    eprintln!("removed {:?} after its VM died", began.elapsed());
    ended(&node);
    assert_eq!(node.told().of("c1"), ["create c1", "start c1", "exit c1 137", "delete c1 137"]);
}

#[test]
fn b7_b15_a_pod_that_cannot_start_leaves_no_shim_and_its_name_is_free() {
    let node = Containerd::doubled("1.6");
    node.doubles().double(|orders| orders["exit"] = json!({"code": 1, "stderr": "not today"}));
    for _ in 0..2 {
        let failed = node.run(&["--rm"], "c1", &["true"]).output().expect("ctr");
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(!failed.status.success() && said.contains("not today"), "{said}");
        node.assert_clean();
    }
    node.doubles().double(|_| ());
    let works = node.run(&["--rm"], "c1", &["sh", "-c", "echo works"]).output().expect("ctr");
    assert_eq!(String::from_utf8_lossy(&works.stdout), "works\n", "{}", node.log());
    node.assert_clean();
}

#[tokio::test]
async fn b8_a_shim_whose_cleanup_fails_ends_all_the_same() {
    let node = TestNode::new().await;
    let file = node.path("failpoint");
    let point = ("KATA_SE_FAILPOINT".to_owned(), file.display().to_string());
    node.environment.lock().expect("environment").push(point);
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    fs::write(&file, "UndoPaid=EIO").expect("failpoint");
    shim.kill("c1", "", 9).await.expect("kill");
    shim.wait("c1", "").await.expect("wait");
    let e = shim.delete("c1", "").await.expect_err("cannot be cleaned up").to_string();
    assert!(e.contains("delete container c1: clean up: "), "{e}");
    let (server, _) = shim.pid("c1").await;
    within("an answer", 5, shim.shutdown(true)).await.expect("shutdown");
    let words = || fs::read(format!("/proc/{server}/cmdline")).unwrap_or_default();
    harness::eventually("the shim has gone", 5, || words().is_empty()).await;
    // What could not be freed is still owed, and freed by whoever comes next.
    fs::write(&file, "").expect("failpoint");
    node.delete("c1");
    node.assert_clean();
}

#[test]
fn b14_a_create_that_containerd_gave_up_ends_with_its_shim() {
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
    let pods = || fs::read_dir(node.path("run")).expect("run").count();
    until("no pod is left", 20, || pods() == 0);
    eprintln!("nothing is left {:?} after the start", began.elapsed());
    node.ctr(&["container", "rm", "c1"]);
    node.assert_clean();
}

/// Everything a caller may ask of a container that ended with its VM.
async fn is_told(shim: &Shim, id: &str) {
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
async fn b16_after_the_vms_end_every_question_has_an_answer_in_any_order() {
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
        is_told(&shim, "m1").await;
        shim.shutdown(false).await.expect("shutdown");
        node.assert_clean();
    }
}
