//! Execs and their streams: absent, slow and vanishing readers, missing programs and background children.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::{Bundle, NO_STREAMS, TestNode, eventually, reader, within};
use serde_json::json;

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

#[tokio::test]
async fn an_exec_without_stdin_does_not_end_too_early() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    // No stdin at all, and one that its client closes at once.
    for named in [false, true] {
        let name = format!("e{named}");
        let (input, out) = (shim.fifo(&name, "in"), shim.fifo(&name, "out"));
        let reading = reader(out.clone());
        let stdin = if named { text(&input) } else { "" };
        shim.script("c1", &name, "echo one; sleep 0.3; echo two; sleep 0.3; exit 3", [stdin, text(&out), ""])
            .await;
        if named {
            drop(std::fs::OpenOptions::new().write(true).open(&input).expect("open"));
        }
        assert_eq!(within("its end", 5, shim.wait("c1", &name)).await, Ok(3));
        assert_eq!(reading.join().expect("join"), b"one\ntwo\n");
    }
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn an_exec_of_a_missing_program_fails_within_200_ms_and_names_it() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let mut took = Vec::new();
    for (n, program) in ["/no/such/program", "no-such-program"].into_iter().cycle().take(20).enumerate() {
        let name = format!("e{n}");
        let began = Instant::now();
        shim.exec("c1", &name, Bundle::process(&[program]), NO_STREAMS).await.expect("exec");
        let e = within("an answer", 2, shim.start("c1", &name)).await.expect_err("missing").to_string();
        took.push(began.elapsed());
        assert!(e.contains(&format!("start exec {name} of container c1")) && e.contains(program), "{e}");
        shim.delete("c1", &name).await.expect("delete");
    }
    took.sort();
    eprintln!("a missing program is answered after {:?}, at most {:?}", took[10], took[19]);
    assert!(took[10] < Duration::from_millis(200), "{took:?}");
    assert!(!node.events.lines().iter().any(|l| l.starts_with("exit")), "{:?}", node.events);
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn fifos_without_a_reader_block_nothing() {
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("echo hello; sleep 1000"));
    let shim = node.shim("c1", &dir).await;
    let fifos = ["in", "out", "err"].map(|stream| shim.fifo("c1", stream));
    let streams = [text(&fifos[0]), text(&fifos[1]), text(&fifos[2])];
    within("create", 5, shim.create("c1", &dir, streams)).await.expect("create");
    within("start", 1, shim.start("c1", "")).await.expect("start");
    within("state", 1, shim.state("c1", "")).await.expect("state");
    assert_eq!(within("an exec", 2, shim.run_exec("c1", "e1", &["/bin/true"])).await, 0);
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_background_child_holding_stdout_does_not_hold_its_exec() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let out = shim.fifo("e1", "out");
    let reading = reader(out.clone());
    shim.script("c1", "e1", "sleep 1000 & echo done; sleep 0.2; exit 4", ["", text(&out), ""]).await;
    assert_eq!(within("its end", 5, shim.wait("c1", "e1")).await, Ok(4));
    assert_eq!(reading.join().expect("join"), b"done\n");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn an_exec_held_by_a_background_child_ends_when_it_is_killed() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    // The agent does not end a read that begins after the process has ended, and asking for the exit status
    // would discard what is unread: so the exec waits for its background child, until it is killed.
    node.script(&json!([{"call": "ReadStdout", "request": {"exec_id": "e1"}, "nth": 1, "delay_ms": 500}]));
    let out = shim.fifo("e1", "out");
    let reading = reader(out.clone());
    shim.script("c1", "e1", "sleep 1000 & echo done; exit 4", ["", text(&out), ""]).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(shim.state("c1", "e1").await.expect("state").status.value(), 2, "its child holds it");
    shim.kill("c1", "e1", 9).await.ok();
    assert_eq!(within("its end", 5, shim.wait("c1", "e1")).await, Ok(4));
    assert_eq!(reading.join().expect("join"), b"done\n");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_shim_with_open_fifos_exits_at_once() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let (input, out) = (shim.fifo("e1", "in"), shim.fifo("e1", "out"));
    shim.script("c1", "e1", "head -c 150000 /dev/zero; cat", [text(&input), text(&out), ""]).await;
    let (pid, _) = shim.pid("c1").await;
    let began = Instant::now();
    shim.shutdown(true).await.expect("shutdown");
    // A zombie has no command line.
    let words = || std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    eventually("the shim has gone", 5, || words().is_empty()).await;
    eprintln!("gone {:?} after Shutdown was asked", began.elapsed());
    node.assert_clean();
}

#[tokio::test]
async fn a_reader_that_goes_away_does_not_kill_the_workload() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let out = shim.fifo("e1", "out");
    shim.script(
        "c1",
        "e1",
        "n=0; while [ $n -lt 40 ]; do echo $n; n=$((n+1)); sleep 0.02; done",
        ["", text(&out), ""],
    )
    .await;
    let path = out.clone();
    let first = tokio::task::spawn_blocking(move || {
        let mut some = [0; 16];
        let count = std::fs::File::open(path).expect("open").read(&mut some).expect("read");
        some[..count].to_vec()
    });
    let first = within("some output", 5, first).await.expect("join");
    tokio::time::sleep(Duration::from_millis(200)).await; // no reader
    let rest = reader(out);
    assert_eq!(within("its end", 10, shim.wait("c1", "e1")).await, Ok(0), "no SIGPIPE");
    let wanted: String = (0..40).map(|n| format!("{n}\n")).collect();
    assert_eq!([first, rest.join().expect("join")].concat(), wanted.as_bytes());
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_kill_during_the_start_of_an_exec_ends_it() {
    let node = TestNode::new().await;
    let shim = std::sync::Arc::new(node.running("c1", &Bundle::sh("sleep 1000")).await);
    node.script(&json!([{"call": "ExecProcess", "delay_ms": 1000}]));
    shim.exec("c1", "e1", Bundle::process(&["/bin/sleep", "1000"]), NO_STREAMS).await.expect("exec");
    let starting = {
        let shim = std::sync::Arc::clone(&shim);
        tokio::spawn(async move { shim.start("c1", "e1").await })
    };
    eventually("the guest is asked", 5, || node.requests().iter().any(|r| r["call"] == "ExecProcess")).await;
    within("an answer", 5, shim.kill("c1", "e1", 9)).await.expect("kill");
    assert!(starting.await.expect("join").is_ok());
    assert_eq!(within("its end", 5, shim.wait("c1", "e1")).await, Ok(137));
    node.end(&shim, "c1").await;
}
