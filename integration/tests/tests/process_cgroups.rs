//! The shim runs in its pod's cgroup, or outside where the operator configures it so, and removes what it created.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use harness::{Bundle, TestNode};

/// The cgroups of a process, one line for each hierarchy.
fn cgroups(pid: u32) -> BTreeSet<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
    text.lines().map(str::to_owned).collect()
}

/// Those below the cgroup of this node's pods.
fn in_pod(pid: u32) -> Vec<String> {
    cgroups(pid).into_iter().filter(|line| line.contains(":/kata-se-tests/")).collect()
}

/// The top folders of the mounted hierarchies.
fn hierarchies() -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    if top.join("cgroup.procs").is_file() {
        return vec![top.to_path_buf()];
    }
    let folders = fs::read_dir(top).expect("hierarchies").flatten().map(|entry| entry.path());
    folders.filter(|dir| dir.join("cgroup.procs").is_file() && !dir.ends_with("unified")).collect()
}

/// The folders of its cgroups below the node's.
fn places(pid: u32) -> Vec<PathBuf> {
    let paths: BTreeSet<String> =
        in_pod(pid).iter().map(|line| line.rsplit_once(":/").expect("path").1.to_owned()).collect();
    let all = hierarchies()
        .into_iter()
        .flat_map(|top| paths.iter().map(move |path| top.join(path)).collect::<Vec<_>>());
    all.filter(|dir| dir.is_dir()).collect()
}

#[tokio::test]
async fn the_shim_is_accounted_to_its_pod_and_leaves_its_cgroup_before_the_end() {
    let node = TestNode::new().await;
    let here = cgroups(std::process::id());
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    let (shim_pid, vm) = shim.pid("s1").await;
    let (shims, vms) = (in_pod(shim_pid), in_pod(vm));
    assert!(!shims.is_empty() && shims.len() == vms.len(), "{shims:?} {vms:?}");
    for (own, pods) in shims.iter().zip(&vms) {
        assert_eq!(*own, format!("{pods}-shim"), "beside the pod's");
    }
    // What the shim starts is in the pod's cgroup; what existed before stays where it was.
    assert_eq!(cgroups(std::process::id()), here);
    assert!(!node.log().contains("accounted"), "{}", node.log());
    let made: Vec<PathBuf> = places(shim_pid).into_iter().chain(places(vm)).collect();
    assert!(made.len() >= 2, "{made:?}");
    shim.kill("s1", "", 9).await.expect("kill");
    shim.wait("s1", "").await.expect("wait");
    shim.delete("s1", "").await.expect("delete");
    assert_eq!(cgroups(shim_pid), here, "it is back where it came from, alive");
    assert!(made.iter().all(|dir| !dir.exists()), "{made:?}");
    shim.shutdown(true).await.expect("shutdown");
    node.assert_clean();
}

#[tokio::test]
async fn the_configuration_can_keep_the_shim_outside() {
    let node = TestNode::new().await;
    fs::create_dir(node.path("config.d")).expect("folder");
    fs::write(node.path("config.d/host.toml"), "[host]\nshim_in_pod_cgroup = false\n").expect("drop-in");
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let (shim_pid, vm) = shim.pid("c1").await;
    assert_eq!(cgroups(shim_pid), cgroups(std::process::id()));
    assert!(!in_pod(vm).is_empty());
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_killed_shims_cgroup_is_removed_by_delete_and_a_log_writer_in_it_lives_on() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let (shim_pid, _) = shim.pid("c1").await;
    let places = places(shim_pid);
    assert!(!places.is_empty());
    // Like a program that writes logs: started by the shim, and not to be killed with it.
    let mut writer = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    for dir in &places {
        fs::write(dir.join("cgroup.procs"), writer.id().to_string()).expect("move");
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim_pid as i32), nix::sys::signal::Signal::SIGKILL)
        .expect("kill");
    node.delete("c1");
    assert!(places.iter().all(|dir| !dir.exists()), "{places:?}");
    assert!(writer.try_wait().expect("wait").is_none(), "it still runs");
    assert!(in_pod(writer.id()).is_empty(), "{:?}", in_pod(writer.id()));
    writer.kill().expect("kill");
    writer.wait().expect("wait");
    node.assert_clean();
}

#[tokio::test]
async fn a_pods_cgroup_that_others_made_stays_in_every_hierarchy_where_it_was() {
    let node = TestNode::new().await;
    // Only in one hierarchy, as the kubelet does where it does not use a controller.
    let kept = hierarchies().into_iter().next().expect("a hierarchy").join("kata-se-tests");
    fs::create_dir(&kept).expect("cgroup");
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let (_, vm) = shim.pid("c1").await;
    assert!(!in_pod(vm).is_empty());
    shim.kill("c1", "", 9).await.expect("kill");
    shim.wait("c1", "").await.expect("wait");
    shim.delete("c1", "").await.expect("delete");
    shim.shutdown(true).await.expect("shutdown");
    assert!(kept.is_dir(), "not ours");
    fs::remove_dir(&kept).expect("remove");
    node.assert_clean();
}
