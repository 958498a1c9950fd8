//! What users of similar shims suffered with exec and streams, group D: each pain is a test of its name.
//!
//! Shown elsewhere: D2 is D1 seen by other clients. D3, D4 (lost and cut output): `process_stdio`, all of it.
//! D6 (end of input): `process_stdio::input_goes_through_to_its_end`. D13 (OOMKilled, a poller that floods):
//! `process_oom`.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use harness::{Bundle, NO_STREAMS, TestNode, eventually, reader, within};
use serde_json::json;

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

#[tokio::test]
async fn d1_an_exec_without_stdin_does_not_end_too_early() {
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
async fn d5_a_missing_program_in_exec_is_answered_within_200_ms() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let mut took = Vec::new();
    for (n, program) in ["/no/such/program", "no-such-program"].into_iter().cycle().take(20).enumerate() {
        let name = format!("e{n}");
        let began = Instant::now();
        shim.exec("c1", &name, Bundle::process(&[program]), NO_STREAMS).await.expect("exec");
        let e = within("an answer", 2, shim.start("c1", &name)).await.expect_err("missing").to_string();
        took.push(began.elapsed());
        assert!(e.contains(program), "{e}");
        shim.delete("c1", &name).await.expect("delete");
    }
    took.sort();
    eprintln!("a missing program is answered after {:?}, at most {:?}", took[10], took[19]);
    assert!(took[10] < Duration::from_millis(200), "{took:?}");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn d7_fifos_that_nobody_opens_hold_nothing_back() {
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
async fn d8_a_background_child_holding_stdout_does_not_hold_its_exec() {
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
async fn d8_a_background_child_that_came_first_is_freed_by_killing_the_exec() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    // A read that begins after the process' end is not told of it by the agent, and asking for the end
    // would throw away what is unread: so the exec waits for its background child, until it is killed.
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
async fn d9_a_shim_with_open_fifos_ends_at_once() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let (input, out) = (shim.fifo("e1", "in"), shim.fifo("e1", "out"));
    shim.script("c1", "e1", "head -c 150000 /dev/zero; cat", [text(&input), text(&out), ""]).await;
    let (pid, _) = shim.pid("c1").await;
    let began = Instant::now();
    shim.shutdown(true).await.expect("shutdown");
    // One that nobody reaps has no command line any more.
    let words = || std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    eventually("the shim has gone", 5, || words().is_empty()).await;
    eprintln!("gone {:?} after Shutdown was asked", began.elapsed());
    node.assert_clean();
}

#[tokio::test]
async fn d10_a_reader_that_goes_away_does_not_kill_the_workload() {
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
    tokio::time::sleep(Duration::from_millis(200)).await; // nobody reads
    let rest = reader(out);
    assert_eq!(within("its end", 10, shim.wait("c1", "e1")).await, Ok(0), "no SIGPIPE");
    let wanted: String = (0..40).map(|n| format!("{n}\n")).collect();
    assert_eq!([first, rest.join().expect("join")].concat(), wanted.as_bytes());
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn d11_execs_go_on_while_containerd_takes_no_events() {
    let mut node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    eventually("the first events", 5, || node.events.seen().len() == 2).await;
    node.events.down().await;
    // It is there, takes what is sent, and never answers.
    let mute = std::os::unix::net::UnixListener::bind(node.path("events.sock")).expect("bind");
    let began = Instant::now();
    for n in 0..30 {
        assert_eq!(within("an exec", 5, shim.run_exec("c1", &format!("e{n}"), &["/bin/true"])).await, 0);
    }
    eprintln!("30 execs in {:?} beside a containerd that takes no events", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    drop(mute);
    node.events.up().await;
    eventually("all events", 20, || node.events.seen().len() == 2 + 30 * 3).await;
    let lines = node.events.lines();
    for (n, told) in lines[2..].chunks(3).enumerate() {
        assert_eq!(
            told,
            [format!("exec-added c1/e{n}"), format!("exec-started c1/e{n}"), format!("exit c1/e{n} 0")]
        );
    }
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn d12_exit_events_of_execs_come_before_that_of_their_init() {
    let node = TestNode::new().await;
    // By its own end, by KILL, and with the VM.
    for way in ["exit", "kill", "vm"] {
        for round in 0..5 {
            let id = format!("{way}{round}");
            let go = node.path(&id);
            let script = format!("while ! [ -e {} ]; do sleep 0.02; done; exit 7", go.display());
            let shim = node.running(&id, &Bundle::sh(&script)).await;
            let mut held = Vec::new();
            for n in 0..3 {
                let (name, out) = (format!("e{n}"), shim.fifo(&format!("{id}-{n}"), "out"));
                // Nobody reads what they write.
                held.push(std::fs::OpenOptions::new().read(true).write(true).open(&out).expect("open"));
                let process = Bundle::process(&["/bin/sh", "-c", "echo some output; sleep 1000"]);
                shim.exec(&id, &name, process, ["", text(&out), ""]).await.expect("exec");
                shim.start(&id, &name).await.expect("start");
            }
            let status = match way {
                "exit" => {
                    std::fs::File::create(&go).expect("go").write_all(b"").expect("go");
                    7
                }
                "kill" => shim.kill(&id, "", 9).await.map(|()| 137).expect("kill"),
                _ => {
                    let vm = nix::unistd::Pid::from_raw(i32::try_from(shim.pid(&id).await.1).expect("pid"));
                    nix::sys::signal::kill(vm, nix::sys::signal::Signal::SIGKILL).map(|()| 137).expect("kill")
                }
            };
            assert_eq!(within("its end", 5, shim.wait(&id, "")).await, Ok(status));
            let exits = || -> Vec<String> {
                let lines = node.events.lines().into_iter();
                lines.filter(|l| l.starts_with(&format!("exit {id}"))).collect()
            };
            eventually("all exits", 5, || exits().len() == 4).await;
            assert_eq!(exits().last(), Some(&format!("exit {id} {status}")), "{:?}", exits());
            shim.delete(&id, "").await.expect("delete");
            shim.shutdown(false).await.expect("shutdown");
        }
    }
    node.assert_clean();
}
