//! What `kubectl exec`, `attach`, `port-forward` and `logs` rely on: ExecSync, the streaming server, and
//! the log that containerd writes.

use std::fs;
use std::time::{Duration, Instant};

use cri::api::{AttachRequest, ExecRequest, PortForwardRequest, ReopenContainerLogRequest};
use cri::{Channel, Code, Container, Node, Stream};
use harness::until;

cri::on_each_version! {
    in_short:
    exec_sync_returns_streams_and_exit_code,
    exec_sync_ends_at_its_timeout,
    a_streamed_exec_carries_stdin_and_reports_its_exit_code,
    attach_reaches_the_running_container,
    a_log_is_rotated,
    a_port_forward_reaches_the_programs_of_the_pod;
    in_full:
    a_streamed_exec_has_a_terminal_of_the_requested_size,
    attach_shows_the_terminal_of_a_container,
    logs_have_the_kubelets_format;
}

fn exec_sync_returns_streams_and_exit_code(node: &Node) {
    let pod = node.pod("exec");
    let container = pod.idle("c1");
    for (script, stdout, stderr, code) in [
        ("true", "", "", 0),
        ("echo out; echo err >&2", "out\n", "err\n", 0),
        ("printf half; exit 42", "half", "", 42),
        ("kill -9 $$", "", "", 137),
        // Without stdin there is nothing to read, and nothing to wait for.
        ("cat; echo read", "read\n", "", 0),
    ] {
        let done = container.exec(&["sh", "-c", script]);
        assert_eq!(
            (done.stdout.as_str(), done.stderr.as_str(), done.code),
            (stdout, stderr, code),
            "{script}"
        );
    }
    let large = container.exec(&["sh", "-c", "yes 0123456789abcde | head -n 131072"]);
    assert_eq!((large.stdout.len(), large.code), (2 << 20, 0));

    let began = Instant::now();
    let e = container.try_exec(&["/no/such/program"], 10).expect_err("missing");
    assert!(e.message().contains("/no/such/program"), "{}", e.message());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(container.exec(&["echo", "still here"]).stdout, "still here\n");

    container.stop(5);
    container.try_exec(&["true"], 10).expect_err("the container has ended");
    let never = Container { node, id: "0123456789abcdef".into(), log: "".into() };
    assert_eq!(never.try_exec(&["true"], 10).expect_err("unknown").code(), Code::NotFound);
}

fn exec_sync_ends_at_its_timeout(node: &Node) {
    let pod = node.pod("timeout");
    let container = pod.idle("c1");
    let began = Instant::now();
    let e = container.try_exec(&["sh", "-c", "touch /began; sleep 1000"], 1).expect_err("timeout");
    assert_eq!(e.code(), Code::DeadlineExceeded, "{}", e.message());
    assert!((1..6).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(container.exec(&["ls", "/began"]).code, 0);
    until("what it ran is gone", 10, || !container.sh("ps").contains("sleep 1000"));
    // A timeout that is long enough is not an error.
    let done = container.try_exec(&["sh", "-c", "sleep 1; echo in time"], 20).expect("in time");
    assert_eq!(done.stdout, "in time\n");
}

fn exec(container: &Container, command: &[&str], tty: bool) -> Stream {
    exec_with(container, command, tty, true)
}

fn exec_with(container: &Container, command: &[&str], tty: bool, stdin: bool) -> Stream {
    let request = ExecRequest {
        container_id: container.id.clone(),
        cmd: command.iter().map(|word| (*word).to_owned()).collect(),
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    };
    let url = container.node.exec(request).expect("Exec").url;
    Stream::open(container.node, &url)
}

fn a_streamed_exec_carries_stdin_and_reports_its_exit_code(node: &Node) {
    let pod = node.pod("exec");
    let container = pod.idle("c1");
    let script = "read first; echo got $first; echo problem >&2; head -c 100000 | wc -c; exit 3";
    let mut stream = exec(&container, &["sh", "-c", script], false);
    stream.send(Channel::Stdin, b"hello\n");
    stream.until(Channel::Stdout, "got hello\n");
    stream.until(Channel::Stderr, "problem\n");
    for _ in 0..10 {
        stream.send(Channel::Stdin, &[b'x'; 10_000]);
    }
    let outcome = stream.outcome();
    assert!(outcome.contains("\"Failure\"") && outcome.contains("\"message\":\"3\""), "{outcome}");
    assert_eq!(stream.text(Channel::Stdout), "got hello\n100000\n");

    let mut good = exec(&container, &["echo", "done"], false);
    assert!(good.outcome().contains("\"Success\""), "{}", good.text(Channel::Outcome));
    assert_eq!(good.text(Channel::Stdout), "done\n");

    // Without stdin it does not end after its first output.
    let script = "echo early; cat; sleep 1; echo late";
    let mut without = exec_with(&container, &["sh", "-c", script], false, false);
    assert!(without.outcome().contains("\"Success\""), "{}", without.text(Channel::Outcome));
    assert_eq!(without.text(Channel::Stdout), "early\nlate\n");

    // A lot of output that is read slowly is complete.
    let mut much = exec(&container, &["sh", "-c", "yes 0123456789abcde | head -n 524288"], false);
    std::thread::sleep(Duration::from_secs(1));
    much.outcome();
    assert_eq!(much.text(Channel::Stdout).len(), 8 << 20);

    let mut missing = exec(&container, &["/no/such/program"], false);
    assert!(missing.outcome().contains("/no/such/program"), "{}", missing.text(Channel::Outcome));
}

fn a_streamed_exec_has_a_terminal_of_the_requested_size(node: &Node) {
    let pod = node.pod("terminal");
    let container = pod.idle("c1");
    let mut stream = exec(&container, &["sh"], true);
    stream.resize(97, 31);
    stream.send(
        Channel::Stdin,
        b"test -t 0 && until stty size | grep '31 97'; do sleep 0.1; done; echo fi''rst\n",
    );
    stream.until(Channel::Stdout, "first");
    assert!(stream.text(Channel::Stdout).contains("\n31 97\r\n"), "{}", stream.text(Channel::Stdout));
    stream.resize(111, 33);
    stream.send(Channel::Stdin, b"until stty size | grep '33 111'; do sleep 0.1; done; echo sec''ond\n");
    stream.until(Channel::Stdout, "second");
    // Control-C ends the foreground program, not the shell; control-D ends the shell.
    stream.send(Channel::Stdin, b"sleep 1000\n");
    until("it runs", 10, || container.sh("ps").contains("sleep 1000"));
    stream.send(Channel::Stdin, &[3]);
    stream.send(Channel::Stdin, b"echo on''wards\n");
    // At its prompt the shell would ignore it.
    stream.until(Channel::Stdout, "onwards\r\n/ # ");
    stream.send(Channel::Stdin, &[4]);
    let outcome = stream.outcome();
    assert!(outcome.contains("Success") || outcome.contains("\"message\":\"130\""), "{outcome}");
    assert_eq!(stream.text(Channel::Stderr), "");
}

fn attach(container: &Container, tty: bool) -> Stream {
    let request =
        AttachRequest { container_id: container.id.clone(), stdin: true, tty, stdout: true, stderr: !tty };
    let url = container.node.attach(request).expect("Attach").url;
    Stream::open(container.node, &url)
}

fn attach_reaches_the_running_container(node: &Node) {
    let pod = node.pod("attach");
    let mut config =
        pod.plain("c1", &["sh", "-c", "while read line; do echo got $line; echo err >&2; done; exit 6"]);
    config.stdin = true;
    let container = pod.start(&config);
    let mut stream = attach(&container, false);
    stream.send(Channel::Stdin, b"one\n");
    stream.until(Channel::Stdout, "got one\n");
    stream.until(Channel::Stderr, "err\n");
    drop(stream);
    // A client that detaches ends nothing; the next one finds the container unchanged.
    let mut stream = attach(&container, false);
    stream.send(Channel::Stdin, b"two\n");
    stream.until(Channel::Stdout, "got two\n");
    assert!(!stream.text(Channel::Stdout).contains("one"));
    until("all of it is in the log", 10, || container.logged("stdout") == "got one\ngot two\n");
    drop(stream);
    container.stop(1);

    // With stdinOnce the first client that detaches ends the input.
    config.metadata.as_mut().expect("metadata").name = "once".into();
    config.log_path = "once/0.log".into();
    config.stdin_once = true;
    let once = pod.start(&config);
    let mut stream = attach(&once, false);
    stream.send(Channel::Stdin, b"only\n");
    stream.until(Channel::Stdout, "got only\n");
    drop(stream);
    assert_eq!(once.ended(20).exit_code, 6);
}

fn attach_shows_the_terminal_of_a_container(node: &Node) {
    let pod = node.pod("attach-tty");
    let mut config = pod.plain("c1", &["sh"]);
    (config.stdin, config.tty) = (true, true);
    let container = pod.start(&config);
    let mut stream = attach(&container, true);
    stream.resize(91, 29);
    stream.send(
        Channel::Stdin,
        b"until stty size | grep '29 91'; do sleep 0.1; done; test -t 0 && echo si''zed\n",
    );
    stream.until(Channel::Stdout, "sized");
    stream.send(Channel::Stdin, b"exit 5\n");
    assert_eq!(container.ended(20).exit_code, 5);
    assert!(container.logged("stdout").contains("29 91\n"), "{:?}", container.lines());
    assert_eq!(container.logged("stderr"), "");
}

/// containerd connects to localhost in the pod's network namespace, where the shim accepts the connection.
fn a_port_forward_reaches_the_programs_of_the_pod(node: &Node) {
    let pod = node.pod("forward");
    let script = "mkdir /www; cd /www; echo page > index.html; \
        { head -c 3000000 /dev/zero | tr '\\0' x; echo end; } > big; \
        httpd -p 8080; httpd -p 127.0.0.1:8081; echo up; exec sleep 1000";
    let web = pod.script("web", script);
    web.says("up");
    // Channels 0 and 1: data and error of the only port; both begin with its number.
    let get = |port: i32, path: &str| {
        let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![port] };
        let mut stream = Stream::open(node, &node.port_forward(request).expect("PortForward").url);
        stream.send_on(0, format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
        stream
    };
    let mut big = get(8080, "/big");
    let mut beside = get(8080, "/");
    beside.until_on(0, "\r\n\r\npage\n");
    big.until_on(0, "xend\n");
    assert!(big.text_on(0).ends_with(&format!("\r\n\r\n{}end\n", "x".repeat(3_000_000))), "every byte");
    // A port without a listener, and one with a listener on the guest's localhost only.
    for port in [8082, 8081] {
        get(port, "/").until_on(1, "connection reset by peer");
    }
    assert_eq!(web.sh("wget -q -O - http://127.0.0.1:8081/"), "page\n", "the pod's localhost is its own");
}

fn logs_have_the_kubelets_format(node: &Node) {
    let pod = node.pod("logs");
    let script = "echo first; echo second >&2; printf 'no newline'; head -c 40000 /dev/zero | tr '\\0' x; echo; echo last";
    let container = pod.script("c1", script);
    container.ended(20);
    let lines = container.lines();
    let whole = format!("first\nno newline{}\nlast\n", "x".repeat(40_000));
    assert_eq!(container.logged("stdout"), whole);
    assert_eq!(container.logged("stderr"), "second\n");
    assert!(lines.iter().all(|line| line.text.len() <= 16 << 10), "long lines come in parts");
    let times: Vec<&str> =
        lines.iter().filter(|line| line.stream == "stdout").map(|line| line.time.as_str()).collect();
    assert!(times.is_sorted(), "{times:?}");

    let mut silent = pod.plain("silent", &["echo", "nobody reads this"]);
    silent.log_path.clear();
    assert_eq!(pod.start(&silent).ended(20).exit_code, 0, "a container without a log");
}

fn a_log_is_rotated(node: &Node) {
    let pod = node.pod("rotate");
    let container = pod.script("c1", "n=0; while :; do n=$((n + 1)); echo line $n; sleep 0.05; done");
    container.says("line 3\n");
    let reopen =
        || node.reopen_container_log(ReopenContainerLogRequest { container_id: container.id.clone() });
    let mut old = Vec::new();
    for round in 0..3 {
        let kept = container.log.with_extension(format!("{round}"));
        fs::rename(&container.log, &kept).expect("rotate");
        reopen().expect("ReopenContainerLog");
        until("the new log is written", 10, || container.lines().len() > 3);
        old.push(kept);
    }
    container.stop(0);
    let mut text: String = old.iter().map(|path| fs::read_to_string(path).expect("old log")).collect();
    text += &fs::read_to_string(&container.log).expect("log");
    let numbers: Vec<usize> = text
        .lines()
        .map(|line| line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("number"))
        .collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len()), "no line lost or doubled: {numbers:?}");
    reopen().expect_err("it has ended");
}
