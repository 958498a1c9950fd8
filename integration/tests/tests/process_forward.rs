//! Port forwarding that cannot work: on a node without support for it, and to a guest that does not answer.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use harness::{Bundle, PodNetns, TestNode, eventually, within};

/// Concurrent connections, and descriptors of one (`src/limits.rs`).
const BOUND: usize = 64;

const WARNING: &str = "port forwarding does not reach the pod";

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("fd").count()
}

/// No data and no end of file.
fn is_open(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("set");
    matches!(stream.read(&mut [0]), Err(e) if e.kind() == ErrorKind::WouldBlock)
}

#[tokio::test]
async fn a_node_that_cannot_forward_logs_it_once_and_runs_its_pods() {
    let netns = PodNetns::new();
    netns.localhost("del");
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000").network(&netns.path())).await;
    let mut log = String::new();
    eventually("the warning", 5, || {
        log += &node.log();
        log.contains(WARNING)
    })
    .await;
    assert_eq!(shim.run_exec("c1", "e", &["/bin/true"]).await, 0);
    netns.localhost("add");
    assert_eq!(netns.connect(80).expect_err("no listener").kind(), ErrorKind::ConnectionRefused);
    log += &node.log();
    assert_eq!(log.matches(WARNING).count(), 1, "{log}");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn connections_are_bounded_and_end_with_the_vm() {
    let netns = PodNetns::new();
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000").network(&netns.path())).await;
    let (pid, qemu) = shim.pid("c1").await;
    let before = descriptors(pid);
    // The guest's double has no network: connections to it are not answered.
    let mut first = None;
    eventually("localhost is taken", 5, || {
        first = netns.connect(80).ok();
        first.is_some()
    })
    .await;
    let mut all: Vec<TcpStream> = first.into_iter().collect();
    all.extend((0..BOUND + 10).map(|_| netns.connect(80).expect("connect")));
    eventually("they are being carried", 3, || descriptors(pid) >= before + 2 * BOUND).await;
    assert_eq!(descriptors(pid), before + 2 * BOUND, "the others wait");
    assert_eq!(shim.run_exec("c1", "e", &["/bin/true"]).await, 0, "calls go on");
    assert!(all.iter().all(is_open));
    let qemu = Pid::from_raw(i32::try_from(qemu).expect("pid"));
    kill(qemu, Signal::SIGKILL).expect("kill the VM");
    within("its end", 10, shim.wait("c1", "")).await.expect("end");
    eventually("connections end with the VM", 5, || !all.iter().any(is_open)).await;
    assert!(netns.connect(80).is_err(), "no connections are accepted");
    node.end(&shim, "c1").await;
}
