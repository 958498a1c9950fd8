//! Containers in a real guest, through containerd and `ctr`: what a user sees of them.

use std::io::{Read, Write};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use harness::{Containerd, Shim, until};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

#[test]
fn one_container_from_create_to_a_clean_node() {
    let node = Containerd::new();
    let script = "uname -m; echo problem >&2; exit 3";
    let output = node.run(&["--rm"], "c1", &["sh", "-c", script]).output().expect("ctr");
    assert_eq!((text(&output.stdout).as_str(), code(&output)), ("s390x\n", Some(3)), "{}", node.log());
    assert_eq!(text(&output.stderr), "problem\n");
    node.assert_clean();
}

#[test]
fn exit_codes_signals_and_execs_of_one_guest() {
    let node = Containerd::new();
    let mut running = node.running(&["--rm"], "c1", "trap 'exit 9' TERM; while :; do sleep 0.1; done");
    for (name, script, wanted) in
        [("e0", "exit 0", 0), ("e1", "exit 1", 1), ("e2", "kill -9 $$", 137), ("e3", "kill -15 $$", 143)]
    {
        let output = node.exec("c1", name, &["sh", "-c", script]);
        assert_eq!(code(&output), Some(wanted), "{script}: {}", text(&output.stderr));
    }
    let apart = node.exec("c1", "e4", &["sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((text(&apart.stdout), text(&apart.stderr)), ("out\n".to_owned(), "err\n".to_owned()));

    let began = Instant::now();
    let missing = node.exec("c1", "e5", &["/no/such/program"]);
    assert!(text(&missing.stderr).contains("/no/such/program"), "{}", text(&missing.stderr));
    assert!(!missing.status.success() && began.elapsed() < Duration::from_secs(5));

    for round in 0..20 {
        let output = node.exec("c1", &format!("r{round}"), &["echo", "round"]);
        assert_eq!((text(&output.stdout).as_str(), code(&output)), ("round\n", Some(0)), "{round}");
    }

    // An exec is killed; the container continues.
    let mut sleeping = node.command(&["task", "exec", "--exec-id", "s", "c1", "sleep", "1000"]);
    let mut sleeping = sleeping.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("ctr");
    until("the exec runs", 10, || {
        node.ctr(&["task", "kill", "--exec-id", "s", "--signal", "KILL", "c1"]).status.success()
    });
    assert_eq!(sleeping.wait().expect("wait").code(), Some(137));

    node.ctr_ok(&["task", "kill", "c1"]);
    assert_eq!(running.wait().expect("wait").code(), Some(9), "its own answer to TERM");
    node.assert_clean();
}

#[test]
fn a_container_that_ignores_sigterm_ends_by_sigkill() {
    let node = Containerd::new();
    let mut running = node.running(&["--rm"], "c1", "trap '' TERM; while :; do sleep 0.1; done");
    node.ctr_ok(&["task", "kill", "c1"]);
    assert_eq!(code(&node.exec("c1", "e1", &["true"])), Some(0), "it is still there");
    node.ctr_ok(&["task", "kill", "--signal", "KILL", "c1"]);
    assert_eq!(running.wait().expect("wait").code(), Some(137));
    node.assert_clean();
}

#[test]
fn streams_carry_every_byte_both_ways() {
    let node = Containerd::new();
    // 64 MiB of output. Both sides compute the digest.
    let script = "dd if=/dev/urandom of=/tmp/x bs=1M count=4 2>/dev/null; \
                  for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do cat /tmp/x; done; \
                  sha256sum /tmp/x >&2";
    let output = node.run(&["--rm"], "out", &["sh", "-c", script]).output().expect("ctr");
    assert_eq!((output.stdout.len(), code(&output)), (64 << 20, Some(0)), "{}", text(&output.stderr));
    let block = &output.stdout[..4 << 20];
    assert!(output.stdout.chunks(4 << 20).all(|chunk| chunk == block), "every block is the same");
    assert_eq!(text(&output.stderr).split(' ').next(), Some(digest(block).as_str()));

    // Input by lines, to the end of file.
    let mut command = node.run(&["--rm"], "in", &["sh", "-c", "sha256sum; echo read to its end"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ctr");
    let data: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    child.stdin.take().expect("stdin").write_all(&data).expect("write");
    let output = child.wait_with_output().expect("ctr");
    let (sum, rest) = (digest(&data), text(&output.stdout));
    assert_eq!(rest, format!("{sum}  -\nread to its end\n"));
    node.assert_clean();
}

#[test]
fn the_output_of_a_container_that_exits_at_once_is_complete() {
    let node = Containerd::new();
    let output =
        node.run(&["--rm"], "c1", &["sh", "-c", "yes | head -c 100000; echo end"]).output().expect("ctr");
    assert_eq!((output.stdout.len(), code(&output)), (100_004, Some(0)));
    assert!(output.stdout.ends_with(b"end\n"));
    let missing = node.run(&["--rm"], "c2", &["/no/such"]).output().expect("ctr");
    assert!(!missing.status.success());
    assert!(text(&missing.stderr).contains("/no/such"), "{}", text(&missing.stderr));
    node.assert_clean();
}

#[test]
fn a_terminal_has_the_requested_size() {
    let node = Containerd::new();
    let mut command = node.run(&["--rm", "-t"], "c1", &["sh"]);
    // `script` gives ctr a terminal whose size stty sets first.
    let line = format!(
        "stty rows 31 cols 97; {} {}",
        command.get_program().to_string_lossy(),
        command.get_args().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
    );
    command = std::process::Command::new("script");
    command.args(["-q", "-e", "-c", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("script");
    let mut input = child.stdin.take().expect("stdin");
    let mut shown = Vec::new();
    let mut output = child.stdout.take().expect("stdout");
    let mut wait_for = |wanted: &str| {
        let mut byte = [0; 1024];
        while !text(&shown).contains(wanted) {
            let count = output.read(&mut byte).expect("read");
            assert!(count > 0, "{wanted:?} never came: {}", text(&shown));
            shown.extend_from_slice(&byte[..count]);
        }
    };
    wait_for("# ");
    input
        .write_all(b"until stty size | grep 97; do sleep 0.1; done; test -t 0 && echo do''ne\n")
        .expect("write");
    wait_for("31 97");
    wait_for("done");
    // The user enlarges the window.
    let address = format!("unix://{}", node.pod_dir().join("s").display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let shim = Shim::connect(&address, &node.path("run")).await;
        shim.resize("c1", 111, 33).await.expect("resize");
    });
    input.write_all(b"stty size\n").expect("write");
    wait_for("33 111");
    input.write_all(b"exit 4\n").expect("write");
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).expect("read");
    assert_eq!(child.wait().expect("wait").code(), Some(4));
    node.assert_clean();
}

fn digest(data: &[u8]) -> String {
    let mut child = std::process::Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sha256sum");
    child.stdin.take().expect("stdin").write_all(data).expect("write");
    let output = child.wait_with_output().expect("sha256sum");
    text(&output.stdout).split(' ').next().expect("sum").to_owned()
}
