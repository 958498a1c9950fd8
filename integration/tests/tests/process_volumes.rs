//! What a pod gets from its host: files and folders copied into the guest, emptyDirs in the guest's
//! memory, and one-line refusals of everything else.

use std::fs;
use std::os::unix::fs::symlink;

use harness::{Bundle, Mounted, TestNode};
use serde_json::{Value, json};

const SHARED: &str = "/run/kata-containers/shared/containers/";

fn with_mounts(mounts: &[Value]) -> Bundle {
    let mut bundle = Bundle::sh("true").sandbox();
    bundle.config["mounts"].as_array_mut().expect("list").extend_from_slice(mounts);
    bundle
}

fn bind(destination: &str, source: &std::path::Path) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate"]})
}

fn of<'a>(requests: &'a [Value], method: &str) -> Vec<&'a Value> {
    requests.iter().filter(|r| r["call"] == method).map(|r| &r["request"]).collect()
}

#[tokio::test]
async fn files_of_the_pod_are_copied_before_its_container_is_made() {
    let node = TestNode::new().await;
    let at = |name: &str| node.path(name);
    fs::write(at("resolv"), "nameserver 10.0.0.1\nsearch a.b\n").expect("write");
    let large: Vec<u8> = (0..2_500_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    fs::create_dir_all(at("config/..1")).expect("folder");
    fs::write(at("config/..1/key"), &large).expect("write");
    symlink("..1", at("config/..data")).expect("link");
    symlink("..data/key", at("config/key")).expect("link");
    let bundle = with_mounts(&[bind("/etc/resolv.conf", &at("resolv")), bind("/etc/config", &at("config"))]);
    let shim = node.running("c1", &bundle).await;

    let requests = node.requests();
    let [sandbox] = of(&requests, "CreateSandbox")[..] else { panic!("{requests:?}") };
    assert_eq!(sandbox["dns"], json!(["nameserver 10.0.0.1", "search a.b", ""]));
    let methods: Vec<&str> = requests.iter().filter_map(|r| r["call"].as_str()).collect();
    let last = methods.iter().rposition(|m| *m == "CopyFile").expect("copied");
    assert!(methods.iter().position(|m| *m == "CreateContainer") > Some(last), "{methods:?}");
    let [made] = of(&requests, "CreateContainer")[..] else { panic!("{requests:?}") };
    let sources: Vec<&str> = made["OCI"]["Mounts"]
        .as_array()
        .expect("mounts")
        .iter()
        .filter_map(|m| m["source"].as_str())
        .filter(|source| source.starts_with(SHARED))
        .collect();
    let [resolver, config] = sources[..] else { panic!("{sources:?}") };
    assert!(resolver.ends_with("-resolv.conf") && config.ends_with("-config"), "{sources:?}");
    // The guest is a plain process: its files are in a folder of this node.
    let guest = |path: &str| node.path("guest").join(path.trim_start_matches('/'));
    assert_eq!(fs::read(guest(resolver)).expect("copied"), b"nameserver 10.0.0.1\nsearch a.b\n");
    assert!(fs::read(guest(config).join("key")).expect("through both links") == large);
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn what_a_virtual_machine_cannot_share_is_refused_in_one_line() {
    let node = TestNode::new().await;
    let without = |namespace: &str| {
        let mut bundle = Bundle::sh("true").sandbox();
        let list = bundle.config["linux"]["namespaces"].as_array_mut().expect("list");
        list.retain(|n| n["type"] != namespace);
        bundle
    };
    let mut device = Bundle::sh("true").sandbox();
    device.config["linux"]["devices"] = json!([{"path": "/dev/sg0", "type": "c", "major": 21, "minor": 0, "fileMode": 384, "uid": 0, "gid": 0}]);
    let mut shared = bind("/data", &node.path("bundles"));
    shared["options"] = json!(["rbind", "rshared"]);
    let fifo = node.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    for (bundle, wanted) in [
        (without("network"), "hostNetwork: a guest has its own kernel"),
        (without("pid"), "hostPID: a guest has its own kernel"),
        (without("ipc"), "hostIPC: a guest has its own kernel"),
        (device, "device /dev/sg0: a device of the host cannot be passed"),
        (with_mounts(&[shared]), "mount /data: mounts made in the guest cannot be propagated to the host"),
        (with_mounts(&[bind("/run/pipe", &fifo)]), "fifo is a fifo of the host"),
        (with_mounts(&[bind("/data", &node.path("none"))]), "none: No such file or directory"),
    ] {
        let text = node.refused(&bundle).await;
        assert!(text.contains(wanted), "{text}");
        assert!(!text.contains("QEMU"), "refused before anything is started: {text}");
    }
    assert!(node.requests().is_empty(), "no guest was started");
}

#[tokio::test]
async fn huge_pages_are_refused_as_a_limit_and_as_a_volume() {
    let folder = tempfile::tempdir().expect("folder");
    // As the kubelet does for an emptyDir with the medium HugePages.
    let pages = fs::read_to_string("/proc/filesystems").expect("/proc").contains("hugetlbfs").then(|| {
        let at = folder.path().join("pods/1234/volumes/kubernetes.io~empty-dir/hugepage");
        Mounted::new("hugetlbfs", at, None)
    });
    let node = TestNode::new().await;
    let mut limited = Bundle::sh("true").sandbox();
    limited.config["linux"]["resources"]["hugepageLimits"] =
        json!([{"pageSize": "1MB", "limit": 67_108_864}]);
    let text = node.refused(&limited).await;
    assert!(text.contains("huge pages (1MB): a secure VM's memory has none"), "{text}");
    if let Some(pages) = &pages {
        let text = node.refused(&with_mounts(&[bind("/dev/hugepages", pages.path())])).await;
        assert!(text.contains("hugepage is a folder of huge pages of the host"), "{text}");
    }
    assert!(node.requests().is_empty(), "no guest was started");
}

#[tokio::test]
async fn a_folder_with_another_file_system_in_it_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let inner = Mounted::new("tmpfs", folder.path().join("data/inner"), None);
    let node = TestNode::new().await;
    let data = inner.path().parent().expect("folder");
    let mut recursive = bind("/data", data);
    recursive["options"] = json!(["rbind", "rro"]);
    let mut alone = bind("/data", data);
    alone["options"] = json!(["bind", "ro"]);
    for mount in [recursive, alone] {
        let text = node.refused(&with_mounts(&[mount])).await;
        assert!(text.contains("inner: another file system is mounted there, which is not copied"), "{text}");
    }
}

#[tokio::test]
async fn a_volume_that_is_too_large_is_refused_and_its_pod_undone() {
    let node = TestNode::new().await;
    fs::create_dir(node.path("large")).expect("folder");
    fs::File::create(node.path("large/disk")).and_then(|f| f.set_len(1 << 40)).expect("sparse");
    let text = node.refused(&with_mounts(&[bind("/data", &node.path("large"))])).await;
    assert!(text.contains("larger than can be copied into a guest (64 MiB for all volumes"), "{text}");
}
