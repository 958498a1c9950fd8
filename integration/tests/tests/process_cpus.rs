//! QEMU and its helpers run on the CPUs that the pod's containers may use, and on no others.

use std::collections::BTreeSet;

use harness::{Bundle, Code, NO_STREAMS, Shim, TestNode, cgroup_of, code, eventually};
use serde_json::json;

fn on(mut bundle: Bundle, cpus: &str) -> Bundle {
    bundle.config["linux"]["resources"]["cpu"] = json!({ "cpus": cpus });
    bundle
}

/// The CPUs of every thread of a process.
fn cpus(pid: u32) -> BTreeSet<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("tasks").flatten();
    let of = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.expect("list").trim().to_owned()
    };
    tasks.map(of).collect()
}

/// All processes in the pod's cgroup: the double, the vsock device, and on this node the guest's.
fn processes(vm: u32) -> Vec<u32> {
    let procs = cgroup_of(vm, "pids").join("cgroup.procs");
    let list = std::fs::read_to_string(procs).expect("processes");
    list.lines().map(|line| line.parse().expect("pid")).collect()
}

/// All CPUs of this machine that this process may use.
fn all() -> String {
    let own = cpus(std::process::id()).pop_first().expect("own");
    assert!(own.starts_with("0-"), "these tests need CPUs 0 and 1, there are {own}");
    own
}

async fn member(node: &TestNode, shim: &Shim, id: &str, cpus: &str) {
    let dir = node.bundle(id, &on(Bundle::sh("sleep 1000").member("s1"), cpus));
    shim.create(id, &dir, NO_STREAMS).await.expect("create");
}

#[tokio::test]
async fn the_vm_runs_on_the_cpus_of_the_pods_containers() {
    let node = TestNode::new().await;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    let (shim_pid, vm) = shim.pid("s1").await;
    assert_eq!(cpus(vm), BTreeSet::from([all()]), "no container names any");
    member(&node, &shim, "m1", "1").await;
    assert_eq!(cpus(vm), BTreeSet::from(["1".to_owned()]));
    member(&node, &shim, "m2", "0").await;
    assert_eq!(cpus(vm), BTreeSet::from(["0-1".to_owned()]));
    // The kubelet's CPU manager moves containers by Update.
    shim.update("m1", &json!({"cpu": {"shares": 512, "cpus": "0"}})).await.expect("update");
    assert_eq!(cpus(vm), BTreeSet::from(["0".to_owned()]));
    shim.update("m1", &json!({"cpu": {"shares": 1024}})).await.expect("update");
    assert_eq!(cpus(vm), BTreeSet::from(["0".to_owned()]), "an update without CPUs leaves them");
    let bad = shim.update("m1", &json!({"cpu": {"cpus": "1-0"}})).await;
    assert_eq!(code(&bad), Some(Code::INVALID_ARGUMENT), "{bad:?}");
    for id in ["m1", "m2"] {
        shim.delete(id, "").await.expect("delete");
    }
    assert_eq!(cpus(vm), BTreeSet::from([all()]), "no container names any more");
    assert_eq!(cpus(shim_pid), BTreeSet::from([all()]), "the shim has its own");
    assert!(!node.log().contains("CPUs"), "{}", node.log());
    node.end(&shim, "s1").await;
}

#[tokio::test]
async fn a_vm_is_started_on_its_cpus_with_all_its_threads_and_helpers() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &on(Bundle::sh("sleep 1000"), "1")).await;
    let (_, vm) = shim.pid("c1").await;
    let list = processes(vm);
    assert!(list.len() > 1 && list.contains(&vm), "{list:?}");
    for pid in list {
        assert_eq!(cpus(pid), BTreeSet::from(["1".to_owned()]), "process {pid}");
    }
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn missing_cpus_are_one_warning() {
    let node = TestNode::new().await;
    for (named, runs_on) in [("1,1000-1001", "1".to_owned()), ("1000-1001", all())] {
        let shim = node.running("c1", &on(Bundle::sh("sleep 1000"), named)).await;
        let (_, vm) = shim.pid("c1").await;
        assert_eq!(cpus(vm), BTreeSet::from([runs_on.clone()]));
        let mut log = String::new();
        let wanted = format!(
            "CPUs 1000-1001 of the pod are not there or not allowed for its cgroup: QEMU runs on {runs_on}"
        );
        eventually("the warning", 5, || {
            log += &node.log();
            log.contains(&wanted)
        })
        .await;
        assert_eq!(log.matches("CPUs 1000-1001").count(), 1, "{log}");
        node.end(&shim, "c1").await;
    }
}

#[tokio::test]
async fn an_invalid_cpu_list_is_refused_by_name() {
    let node = TestNode::new().await;
    let e = node.refused(&on(Bundle::sh("true"), "0-99999999999")).await;
    assert!(
        e.contains("resources.cpu.cpus: list of CPUs") && e.contains("expected numbers and ranges"),
        "{e}"
    );
}
