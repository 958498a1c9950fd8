//! What a real guest counts, and what happens when a container of it takes more than its limit.

use std::fs;
use std::process::Stdio;

use harness::{Containerd, MEMBER, SANDBOX, until};
use serde_json::Value;

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// The statistics of a container as `ctr` shows them.
fn metrics(node: &Containerd, id: &str) -> Value {
    let text = node.ctr_ok(&["task", "metrics", "--format", "json", id]);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// A number from the message for cgroup version 1 or 2.
fn figure(metrics: &Value, v1: &str, v2: &str) -> u64 {
    let found = metrics.pointer(v1).or_else(|| metrics.pointer(v2));
    found.and_then(Value::as_u64).unwrap_or_else(|| panic!("{v1} or {v2}: {metrics}"))
}

fn usage(metrics: &Value) -> u64 {
    figure(metrics, "/memory/usage/usage", "/memory/usage")
}

#[test]
fn statistics_are_true_and_an_oom_is_reported_before_the_exit() {
    let node = Containerd::new();
    let mut sandbox = node.running(&SANDBOX, "pod", FOREVER);
    // 20 MiB of memory, and some CPU time.
    let busy = format!("dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null; {FOREVER}");
    let mut one = node.running(&MEMBER, "one", &busy);
    until("20 MiB are counted", 20, || usage(&metrics(&node, "one")) >= 20 << 20);
    let of_one = metrics(&node, "one");
    assert!(usage(&of_one) < 100 << 20, "{of_one}");
    let cpu = |m: &Value| {
        let v2 = || m.pointer("/cpu/usage_usec").and_then(Value::as_u64).map(|us| us * 1000);
        m.pointer("/cpu/usage/total").and_then(Value::as_u64).or_else(v2).unwrap_or_default()
    };
    assert!(cpu(&of_one) > 1_000_000, "it has run: {of_one}");
    assert!(figure(&of_one, "/pids/current", "/pids/current") >= 1, "{of_one}");
    // The sandbox's statistics are the VM's: QEMU including the guest.
    let of_pod = metrics(&node, "pod");
    assert!(usage(&of_pod) > 100 << 20 && cpu(&of_pod) > cpu(&of_one), "{of_pod}");

    // Paused, it uses nothing.
    node.ctr_ok(&["task", "pause", "one"]);
    let (before, after) = (cpu(&metrics(&node, "one")), cpu(&metrics(&node, "one")));
    assert_eq!(before, after, "it does not run");
    node.ctr_ok(&["task", "resume", "one"]);

    let log = node.path("events");
    let mut listener = node.command(&["events"]);
    let listener = listener.stdout(fs::File::create(&log).expect("events"));
    let mut listener = listener.stderr(Stdio::null()).spawn().expect("ctr events");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let limit = (32 << 20).to_string();
    let options = [&MEMBER[..], &["--memory-limit", &limit]].concat();
    let ended = node.run(&options, "hog", &["tail", "/dev/zero"]).output().expect("ctr");
    assert_eq!(ended.status.code(), Some(137), "{}", node.log());
    let seen = || fs::read_to_string(&log).unwrap_or_default();
    until("its exit event", 10, || seen().contains("/tasks/exit"));
    listener.kill().ok();
    listener.wait().expect("ctr events");
    let (oom, exit) = (seen().find("/tasks/oom"), seen().find("/tasks/exit"));
    assert!(oom.is_some() && oom < exit, "{}", seen());

    node.remove("hog");
    for (id, child) in [("one", &mut one), ("pod", &mut sandbox)] {
        node.ctr_ok(&["task", "kill", id]);
        child.wait().expect("ctr");
        node.remove(id);
    }
    node.assert_clean();
}
