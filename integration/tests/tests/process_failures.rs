//! What keeps a pod from starting, or hangs under it, is told in one line that names it; and the node
//! is as it was.

use std::time::Duration;

use harness::{Bundle, NO_STREAMS, Stage};
use serde_json::json;

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
        stage.refused(&plain).await,
        &["guest.kernel = ", "/kernel: No such file", "check the configuration"],
    );
    std::fs::rename(stage.path("kernel.away"), stage.path("kernel")).expect("rename");

    stage.config("[qemu]\n");
    says(stage.refused(&plain).await, &["/config.toml:", "duplicate"]);
    stage.config("[guest.x]\n");
    says(stage.refused(&plain).await, &["/config.toml:", "unknown key", "the keys of [guest] are"]);
    std::fs::remove_file(stage.path("config.toml")).expect("remove");
    says(stage.refused(&plain).await, &["configuration", "/config.toml: No such file"]);
    stage.config("");

    let missing = "/run/netns/kst-no-such";
    says(stage.refused(&plain.clone().network(missing)).await, &["pod network", missing, "there is none"]);
    let hosts = format!("/proc/{}/ns/net", std::process::id());
    says(
        stage.refused(&plain.clone().network(&hosts)).await,
        &["the host's own network", "hostNetwork is not possible"],
    );

    std::fs::rename(stage.path("bin/qemu"), stage.path("bin/qemu.away")).expect("rename");
    says(stage.refused(&plain).await, &["bin/qemu: No such file"]);
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
    let text = stage.refused(&plain).await;
    assert!(
        text.contains("QEMU ended with exit code 1") && text.contains("could not set up host cpu"),
        "{text}"
    );
    stage.double(|o| {
        o["die_at_cont"] = 6.into();
        o["console"] = "Kernel panic: no init\n".into();
    });
    let text = stage.refused(&plain).await;
    assert!(text.contains("killed by signal 6") && text.contains("Kernel panic: no init"), "{text}");
    stage.double(|o| o["greet"] = false.into());
    let began = std::time::Instant::now();
    let text = stage.refused(&plain).await;
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
    let text = stage.refused(&Bundle::sh("true")).await;
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
    let e = shim.create("c1", &dir, NO_STREAMS).await.expect_err("full").to_string();
    shim.shutdown(true).await.expect("shutdown");
    nix::mount::umount(&layers).expect("umount");
    assert!(e.contains("pack image layers into") && e.contains("No space left"), "{e}");
}
