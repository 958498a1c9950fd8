//! What keeps a pod from starting is reported in one line that names it, and the node is clean
//! afterwards.

use std::time::Duration;

use harness::{Bundle, Mounted, NO_STREAMS, TestNode, peak_memory};
use serde_json::json;

#[tokio::test]
async fn whatever_is_missing_is_named() {
    let node = TestNode::new().await;
    let plain = Bundle::sh("true");
    let says = |text: String, wanted: &[&str]| {
        for part in wanted {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    };
    std::fs::rename(node.path("kernel"), node.path("kernel.away")).expect("rename");
    says(
        node.refused(&plain).await,
        &["guest.kernel = ", "/kernel: No such file", "check the configuration"],
    );
    std::fs::rename(node.path("kernel.away"), node.path("kernel")).expect("rename");

    node.config("[qemu]\n");
    says(node.refused(&plain).await, &["/config.toml:", "duplicate"]);
    node.config("[guest.x]\n");
    says(node.refused(&plain).await, &["/config.toml:", "unknown key", "the keys of [guest] are"]);
    std::fs::remove_file(node.path("config.toml")).expect("remove");
    says(node.refused(&plain).await, &["configuration", "/config.toml: No such file"]);
    node.config("");

    let missing = "/run/netns/kst-no-such";
    says(node.refused(&plain.clone().network(missing)).await, &["pod network", missing, "does not exist"]);
    let hosts = format!("/proc/{}/ns/net", std::process::id());
    says(
        node.refused(&plain.clone().network(&hosts)).await,
        &["cannot share the host's network", "remove hostNetwork"],
    );

    std::fs::rename(node.path("bin/qemu"), node.path("bin/qemu.away")).expect("rename");
    says(node.refused(&plain).await, &["bin/qemu: No such file"]);
    std::fs::rename(node.path("bin/qemu.away"), node.path("bin/qemu")).expect("rename");

    // What cannot run at all is refused by `start`; no shim is left running.
    let output = node.start_output("c2", &node.bundle("c2", &Bundle::new(&[])));
    says(String::from_utf8_lossy(&output.stderr).into_owned(), &["config.json: process.args is empty"]);
}

#[tokio::test]
async fn the_last_output_of_a_qemu_that_exits_is_in_the_error() {
    let node = TestNode::new().await;
    let plain = Bundle::sh("true");
    node.double(|o| o["exit"] = json!({"code": 1, "stderr": "could not set up host cpu"}));
    let text = node.refused(&plain).await;
    assert!(
        text.contains("QEMU ended with exit code 1") && text.contains("could not set up host cpu"),
        "{text}"
    );
    node.double(|o| {
        o["die_at_cont"] = 6.into();
        o["console"] = "Kernel panic: no init\n".into();
    });
    let text = node.refused(&plain).await;
    assert!(text.contains("killed by signal 6") && text.contains("Kernel panic: no init"), "{text}");
    node.double(|o| o["greet"] = false.into());
    let began = std::time::Instant::now();
    let text = node.refused(&plain).await;
    assert!(text.contains("no greeting from QEMU within 10 s"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(16));
}

#[tokio::test]
async fn an_agent_that_never_answers_is_waited_for_as_long_as_configured() {
    let node = TestNode::new().await;
    node.double(|o| {
        o["no_agent"] = true.into();
        o["console"] = "waiting for something\n".into();
    });
    let began = std::time::Instant::now();
    let text = node.refused(&Bundle::sh("true")).await;
    assert!(text.contains("the guest agent did not answer") && text.contains("within 10 s"), "{text}");
    assert!(text.contains("agent.connect_timeout_s") && text.contains("waiting for something"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(18), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_full_disk_for_the_layers_is_named() {
    let node = TestNode::new().await;
    let small = Mounted::new("tmpfs", node.path("layers"), Some("size=2m,mode=700"));
    let dir = node.bundle("c1", &Bundle::sh("true"));
    std::fs::write(dir.join("rootfs/big"), vec![7; 1 << 20]).expect("big");
    let shim = node.shim("c1", &dir).await;
    let e = shim.create("c1", &dir, NO_STREAMS).await.expect_err("full").to_string();
    shim.shutdown(true).await.expect("shutdown");
    drop(small);
    assert!(e.contains("root file system: image layers: they need up to 3 MiB, and "), "{e}");
    assert!(e.contains("/layers has 1 MiB, beside 0 MiB that are kept free: free some of the disk"), "{e}");
}

#[tokio::test]
async fn an_oversized_specification_is_refused_at_once_and_the_shim_does_not_grow() {
    let node = TestNode::new().await;
    // The promise is that of the release; the development build is not optimized.
    let most = if harness::is_release() { 100 } else { 500 };
    let bundle = Bundle::sh("true");
    let with = |key: &str, value: serde_json::Value| {
        let mut config = bundle.config.clone();
        *config.pointer_mut(key).expect(key) = value;
        config.to_string()
    };
    let mounts = |count| json!(vec![json!({"destination": "/m"}); count]);
    for (text, wanted) in [
        (" ".repeat(100 << 20), "larger than 4194304 bytes"),
        (with("/process/env", json!(["A".repeat(10 << 20)])), "larger than 4194304 bytes"),
        (with("/process/env", json!(["A".repeat(3 << 20)])), "arguments and environment have 31457"),
        (with("/process/args", json!(vec!["a"; 500_000])), "arguments and environment have 50000"),
        (with("/mounts", mounts(100_000)), "100000 mounts"),
        (format!("{{\"x\":{}", "[".repeat(4_000_000)), "EOF while parsing a list"),
        (format!("{{\"annotations\":{{\"{}", "a".repeat(4_000_000)), "EOF while parsing a string"),
    ] {
        let dir = node.bundle("c1", &bundle);
        let shim = node.shim("c1", &dir).await;
        let server = node.shim_pid().await;
        let before = peak_memory(server);
        std::fs::write(dir.join("config.json"), text).expect("write");
        let began = std::time::Instant::now();
        let e = shim.create("c1", &dir, NO_STREAMS).await.expect_err(wanted).to_string();
        let (took, grown) = (began.elapsed(), peak_memory(server) - before);
        eprintln!("{wanted}: {took:?}, {grown} KiB");
        assert!(e.contains(wanted) && e.len() < 4096, "{wanted}: {e}");
        assert!(took < Duration::from_millis(most) && grown < 32 << 10, "{wanted}: {took:?}, {grown} KiB");
        shim.shutdown(true).await.expect("shutdown");
        node.assert_clean();
    }
}
