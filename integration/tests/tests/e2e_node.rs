//! What happens around a container on its node: other containerds, a containerd that dies, a VM that
//! dies.

use std::fs;
use std::time::Duration;

use harness::{Containerd, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn every_containerd_runs_it() {
    for version in ["1.7", "2"] {
        let node = Containerd::version(version);
        let script = "uname -m; sleep 1000 & wait";
        let mut running = node.running(&["--rm"], "c1", script);
        let output = node.exec("c1", "e1", &["sh", "-c", "uname -m; exit 3"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!((text.as_str(), output.status.code()), ("s390x\n", Some(3)), "containerd {version}");
        node.ctr_ok(&["task", "kill", "--signal", "KILL", "c1"]);
        assert_eq!(running.wait().expect("ctr").code(), Some(137), "containerd {version}");
        node.assert_clean();
    }
}

#[test]
fn a_container_outlives_its_containerd() {
    let mut node = Containerd::new();
    let log = node.path("output");
    let uri = format!("file://{}", log.display());
    let script = "trap 'echo ended; exit 5' TERM; echo begun; while :; do sleep 0.1; done";
    let output =
        node.run(&["--detach", "--log-uri", &uri], "c1", &["sh", "-c", script]).output().expect("ctr");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let says = |wanted: &str| fs::read_to_string(&log).is_ok_and(|text| text == wanted);
    until("its first line", 10, || says("begun\n"));
    node.kill();
    node.up();
    let listed = node.ctr_ok(&["task", "ls"]);
    assert!(listed.contains("RUNNING"), "{listed}");
    let output = node.exec("c1", "e1", &["echo", "still here"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "still here\n");
    node.ctr_ok(&["task", "kill", "c1"]);
    until("its end", 10, || node.ctr_ok(&["task", "ls"]).contains("STOPPED"));
    let removed = node.ctr(&["task", "rm", "c1"]);
    let message = String::from_utf8_lossy(&removed.stderr).into_owned();
    assert!(removed.status.success() && message.contains("exit code 5"), "{message}");
    assert!(says("begun\nended\n"), "{:?}", fs::read_to_string(&log));
    node.ctr_ok(&["container", "rm", "c1"]);
    node.assert_clean();
}

#[test]
fn a_vm_that_is_killed_ends_its_container_at_once() {
    let node = Containerd::new();
    let mut running = node.running(&[], "c1", "while :; do sleep 0.1; done");
    let (_, vm) = node.task("c1").expect("a task");
    kill(Pid::from_raw(vm as i32), Signal::SIGKILL).expect("kill");
    let began = std::time::Instant::now();
    assert_eq!(running.wait().expect("ctr").code(), Some(137));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    node.remove("c1");
    node.assert_clean();
}
