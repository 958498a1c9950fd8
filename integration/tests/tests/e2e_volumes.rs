//! Volumes in a real guest: files and folders of the host as copies, and the pod's empty folders on
//! a disk that the guest encrypts, shared by its containers.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use harness::{Containerd, MEMBER, SANDBOX};

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

#[test]
fn files_are_copied_and_empty_folders_are_shared_by_the_pod() {
    let node = Containerd::new();
    let folder = node.path("config");
    fs::create_dir_all(folder.join("..1")).expect("folder");
    fs::write(folder.join("..1/key"), "value\n").expect("write");
    fs::set_permissions(folder.join("..1/key"), fs::Permissions::from_mode(0o640)).expect("chmod");
    std::os::unix::fs::chown(folder.join("..1/key"), Some(7), Some(8)).expect("chown");
    symlink("..1", folder.join("..data")).expect("link");
    symlink("..data/key", folder.join("key")).expect("link");
    // As the kubelet does it for a pod with an fsGroup: the folder hands its group down.
    for name in ["", "..1"] {
        std::os::unix::fs::chown(folder.join(name), Some(0), Some(9)).expect("chown");
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o2751)).expect("chmod");
    }
    let hosts = node.path("hosts");
    fs::write(&hosts, "10.0.0.1 friend\n").expect("write");
    let empty = node.path("pods/u/volumes/kubernetes.io~empty-dir/cache");
    fs::create_dir_all(&empty).expect("folder");
    let mount = |source: &std::path::Path, at: &str, mode: &str| {
        format!("type=bind,src={},dst={at},options=rbind:{mode}", source.display())
    };
    let (config, hosts) = (mount(&folder, "/etc/config", "ro"), mount(&hosts, "/etc/hosts", "rw"));
    let cache = mount(&empty, "/cache", "rw");
    let volumes = ["--mount", config.as_str(), "--mount", hosts.as_str(), "--mount", cache.as_str()];

    let mut sandbox = node.running(&SANDBOX, "pod", FOREVER);
    let mut one = node.running(&[&MEMBER[..], &volumes].concat(), "one", FOREVER);
    let script = "cat /etc/config/key /etc/hosts; stat -c '%a %u %g' /etc/config/..1/key /etc/config/..1 /etc/config; \
                  echo mine >> /etc/hosts; cat /etc/hosts; touch /etc/config/x; echo kept > /cache/note";
    let output = node.exec("one", "e1", &["sh", "-c", script]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "value\n10.0.0.1 friend\n640 7 8\n2751 0 9\n2751 0 9\n10.0.0.1 friend\nmine\n"
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("/etc/config/x: Read-only file system"));
    assert_eq!(fs::read_to_string(node.path("hosts")).expect("hosts"), "10.0.0.1 friend\n", "it was a copy");

    let mut two = node.run(&[&MEMBER[..], &["--mount", &cache]].concat(), "two", &["cat", "/cache/note"]);
    let output = two.output().expect("ctr");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "kept\n", "{}", node.log());
    let names = fs::read_dir(&empty).expect("list").map(|entry| entry.expect("entry").file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["disk.img"], "nothing else of it reaches the host");
    node.remove("two");
    for (id, child) in [("one", &mut one), ("pod", &mut sandbox)] {
        node.ctr_ok(&["task", "kill", id]);
        child.wait().expect("ctr");
        node.remove(id);
    }
}
