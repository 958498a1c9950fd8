//! What keeps a pod from starting, or hangs under it, is told in one line that names it; and the node
//! is as it was.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::time::Duration;

use harness::{Bundle, Code, Stage, code, eventually, within};
use serde_json::json;

const NONE: [&str; 3] = ["", "", ""];

/// Creates a pod that cannot start: the error, and a clean node.
async fn refused(stage: &Stage, bundle: &Bundle) -> String {
    let dir = stage.bundle("c1", bundle);
    let shim = stage.shim("c1", &dir).await;
    let e = within("an error", 20, shim.create("c1", &dir, NONE)).await.expect_err("cannot start");
    shim.shutdown(true).await.expect("shutdown");
    stage.assert_clean();
    let text = e.to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[tokio::test]
async fn whatever_is_missing_is_named() {
    let stage = Stage::new().await;
    let plain = Bundle::sh("true");
    let says = |text: String, wanted: &[&str]| {
        for part in wanted {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    };
    std::fs::rename(stage.path("kernel"), stage.path("kernel.away")).expect("rename");
    says(
        refused(&stage, &plain).await,
        &["guest.kernel = ", "/kernel: No such file", "check the configuration"],
    );
    std::fs::rename(stage.path("kernel.away"), stage.path("kernel")).expect("rename");

    stage.config("[qemu]\n");
    says(refused(&stage, &plain).await, &["/config.toml:", "duplicate"]);
    stage.config("[guest.x]\n");
    says(refused(&stage, &plain).await, &["/config.toml:", "unknown key", "did you mean"]);
    std::fs::remove_file(stage.path("config.toml")).expect("remove");
    says(refused(&stage, &plain).await, &["configuration", "/config.toml: No such file"]);
    stage.config("");

    let missing = "/run/netns/kst-no-such";
    says(refused(&stage, &plain.clone().network(missing)).await, &["pod network", missing, "there is none"]);
    let hosts = format!("/proc/{}/ns/net", std::process::id());
    says(
        refused(&stage, &plain.clone().network(&hosts)).await,
        &["the host's own network", "hostNetwork is not possible"],
    );

    std::fs::rename(stage.path("bin/qemu"), stage.path("bin/qemu.away")).expect("rename");
    says(refused(&stage, &plain).await, &["bin/qemu: No such file"]);
    std::fs::rename(stage.path("bin/qemu.away"), stage.path("bin/qemu")).expect("rename");

    // What cannot run at all is refused before a shim is left running.
    let output = stage.start_output("c2", &stage.bundle("c2", &Bundle::new(&[])));
    says(String::from_utf8_lossy(&output.stderr).into_owned(), &["config.json: process.args is empty"]);
}

#[tokio::test]
async fn a_qemu_that_ends_says_its_last_words() {
    let stage = Stage::new().await;
    let plain = Bundle::sh("true");
    stage.double(|o| o["exit"] = json!({"code": 1, "stderr": "could not set up host cpu"}));
    let text = refused(&stage, &plain).await;
    assert!(
        text.contains("QEMU ended with exit code 1") && text.contains("could not set up host cpu"),
        "{text}"
    );
    stage.double(|o| {
        o["die_at_cont"] = 6.into();
        o["console"] = "Kernel panic: no init\n".into();
    });
    let text = refused(&stage, &plain).await;
    assert!(text.contains("killed by signal 6") && text.contains("Kernel panic: no init"), "{text}");
    stage.double(|o| o["greet"] = false.into());
    let began = std::time::Instant::now();
    let text = refused(&stage, &plain).await;
    assert!(text.contains("no greeting from QEMU within 10 s"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(16));
}

#[tokio::test]
async fn an_agent_that_never_answers_is_waited_for_as_long_as_configured() {
    let stage = Stage::new().await;
    stage.double(|o| {
        o["no_agent"] = true.into();
        o["console"] = "waiting for something\n".into();
    });
    let began = std::time::Instant::now();
    let text = refused(&stage, &Bundle::sh("true")).await;
    assert!(text.contains("the guest agent did not answer") && text.contains("within 10 s"), "{text}");
    assert!(text.contains("agent.connect_timeout_s") && text.contains("waiting for something"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(18), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_full_disk_for_the_layers_is_named() {
    let stage = Stage::new().await;
    let layers = stage.path("layers");
    std::fs::create_dir(&layers).expect("mkdir");
    let small = "size=64k,mode=700";
    nix::mount::mount(Some("none"), &layers, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(small))
        .expect("mount");
    let dir = stage.bundle("c1", &Bundle::sh("true"));
    std::fs::write(dir.join("rootfs/big"), vec![7; 1 << 20]).expect("big");
    let shim = stage.shim("c1", &dir).await;
    let e = shim.create("c1", &dir, NONE).await.expect_err("full").to_string();
    shim.shutdown(true).await.expect("shutdown");
    nix::mount::umount(&layers).expect("umount");
    assert!(e.contains("pack image layers into") && e.contains("No space left"), "{e}");
}

/// Every call that a pod's life makes, in a guest that never answers it.
#[tokio::test]
async fn every_call_of_the_agent_has_an_end() {
    let stage = Stage::new().await;
    for call in ["CreateSandbox", "GetGuestDetails", "CreateContainer"] {
        stage.script(&json!([{"call": call, "hang": true}]));
        let began = std::time::Instant::now();
        let text = refused(&stage, &Bundle::sh("true")).await;
        assert!(text.contains(&format!("agent {call}: no answer within 5 s")), "{text}");
        assert!(began.elapsed() < Duration::from_secs(13), "{call}: {:?}", began.elapsed());
    }
    stage.script(&json!([]));
    let shim = stage.running("c2", &Bundle::sh("sleep 1000")).await;
    let deadline = |result: ttrpc::Result<()>, call: &str| {
        assert_eq!(code(&result), Some(Code::DEADLINE_EXCEEDED), "{call}: {result:?}");
    };
    stage.script(&json!([{"call": "ExecProcess", "hang": true}]));
    shim.exec("c2", "e1", Bundle::process(&["/bin/true"]), NONE).await.expect("exec");
    deadline(within("ExecProcess", 8, shim.start("c2", "e1")).await.map(|_| ()), "ExecProcess");
    shim.delete("c2", "e1").await.expect("delete");
    stage.script(&json!([{"call": "SignalProcess", "skip": true, "hang": true}]));
    deadline(within("SignalProcess", 12, shim.kill("c2", "", 15)).await, "SignalProcess");
    stage.script(&json!([]));
    shim.kill("c2", "", 9).await.expect("kill");
    assert_eq!(within("its end", 10, shim.wait("c2", "")).await, Ok(137));
    stage.script(&json!([{"call": "DestroySandbox", "hang": true}]));
    within("delete", 20, shim.delete("c2", "")).await.expect("delete");
    shim.shutdown(false).await.expect("shutdown");
    stage.assert_clean();
}

#[tokio::test]
async fn a_start_that_hangs_fails_and_leaves_a_container_that_can_be_deleted() {
    let stage = Stage::new().await;
    stage.script(&json!([{"call": "StartContainer", "hang": true}]));
    let dir = stage.bundle("c1", &Bundle::sh("sleep 1000"));
    let shim = stage.shim("c1", &dir).await;
    shim.create("c1", &dir, NONE).await.expect("create");
    let started = within("an error", 8, shim.start("c1", "")).await;
    assert_eq!(code(&started), Some(Code::DEADLINE_EXCEEDED), "{started:?}");
    assert!(started.expect_err("hung").to_string().contains("agent StartContainer: no answer within 5 s"));
    stage.end(&shim, "c1").await;
}

#[tokio::test]
async fn one_slow_container_does_not_slow_the_pod() {
    let stage = Stage::new().await;
    stage.config("");
    let shim = stage.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    stage.script(&json!([{"call": "CreateContainer", "request": {"containerId": "m1"}, "hang": true},
        {"call": "CreateContainer", "hang": true}]));
    let dir = stage.bundle("m1", &Bundle::sh("true").member("s1"));
    let slow = shim.clone();
    let creating = tokio::spawn(async move { slow.create("m1", &dir, NONE).await });
    eventually("the call hangs", 5, || {
        stage.requests().iter().filter(|r| r["call"] == "CreateContainer").count() == 2
    })
    .await;
    for _ in 0..50 {
        let began = std::time::Instant::now();
        shim.state("s1", "").await.expect("state");
        assert!(began.elapsed() < Duration::from_millis(50), "{:?}", began.elapsed());
    }
    assert_eq!(shim.run_exec("s1", "e1", &["/bin/true"]).await, 0);
    assert!(creating.await.expect("join").is_err());
    stage.end(&shim, "s1").await;
}

#[tokio::test]
async fn lies_of_a_guest_are_harmless() {
    let stage = Stage::new().await;
    stage.script(&json!([
        {"call": "WaitProcess", "nth": 1, "answer": {"status": -7}},
        {"call": "WaitProcess", "nth": 2, "answer": {"status": 70000}},
    ]));
    let shim = stage.running("c1", &Bundle::sh("sleep 1000")).await;
    for exec in ["e1", "e2"] {
        shim.exec("c1", exec, Bundle::process(&["/bin/true"]), NONE).await.expect("exec");
        shim.start("c1", exec).await.expect("start");
        let status = within("an end", 20, shim.wait("c1", exec)).await.expect("wait");
        assert!(status <= 255, "{status}");
    }
    stage.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_connection_lost_while_waiting_loses_no_exit_code() {
    let stage = Stage::new().await;
    let shim = stage.running("c1", &Bundle::sh("sleep 1000")).await;
    stage.script(&json!([{"call": "StatsContainer", "close": true}, {"call": "SignalProcess", "nth": 1, "close": true}]));
    shim.exec("c1", "e1", Bundle::process(&["/bin/sh", "-c", "sleep 2; exit 6"]), NONE).await.expect("exec");
    shim.start("c1", "e1").await.expect("start");
    let lost = shim.kill("c1", "", 18).await;
    assert_eq!(code(&lost), Some(Code::UNAVAILABLE), "not repeated: {lost:?}");
    assert_eq!(within("its end", 10, shim.wait("c1", "e1")).await, Ok(6));
    stage.end(&shim, "c1").await;
}
