//! What a pod gets from its host: files and folders copied into the guest, emptyDirs in the guest's
//! memory, and one-line refusals of everything else.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use harness::{Bundle, KubeletVolume, Mounted, NO_STREAMS, TestNode, eventually};
use serde_json::{Value, json};

const SHARED: &str = "/run/kata-containers/shared/containers/";

fn with_mounts(mounts: &[Value]) -> Bundle {
    let mut bundle = Bundle::sh("true").sandbox();
    bundle.config["mounts"].as_array_mut().expect("list").extend_from_slice(mounts);
    bundle
}

fn bind(destination: &str, source: &Path) -> Value {
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

/// What a folder holds, in bytes, and how many files and folders there are.
fn size(folder: &Path) -> (u64, usize) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.fold((0, 0), |(bytes, count), entry| {
        let meta = entry.metadata().expect("metadata");
        let (more, below) = if meta.is_dir() { size(&entry.path()) } else { (meta.len(), 0) };
        (bytes + more, count + below + 1)
    })
}

#[tokio::test]
async fn many_starts_in_a_pod_leave_nothing_of_their_volumes_in_the_guest() {
    let node = TestNode::new().await;
    fs::create_dir_all(node.path("data/deep")).expect("folder");
    for name in ["data/one", "data/deep/two", "hosts"] {
        fs::write(node.path(name), vec![b'x'; 100_000]).expect("write");
    }
    let shim = node.running("pod", &Bundle::sh("sleep 1000").sandbox()).await;
    let mounts = [bind("/data", &node.path("data")), bind("/etc/hosts", &node.path("hosts"))];
    let mut bundle = Bundle::sh("true").member("pod");
    bundle.config["mounts"].as_array_mut().expect("list").extend_from_slice(&mounts);
    let shared = node.path("guest").join(SHARED.trim_start_matches('/'));
    for round in 0..10 {
        let (id, fails) = (format!("c{round}"), round % 3 == 2);
        // Also of a container that the guest did not make, whether or not all of it was copied.
        let call = if round == 2 { "CopyFile" } else { "CreateContainer" };
        let rule = json!([{"call": call, "nth": 3 - 2 * u32::from(round != 2), "error": {"code": 13, "text": "no"}}]);
        node.script(&if fails { rule } else { json!([]) });
        let dir = node.bundle(&id, &bundle);
        let made = shim.create(&id, &dir, NO_STREAMS).await;
        assert_eq!(made.is_err(), fails, "{made:?}");
        if !fails {
            assert_eq!(size(&shared).0, 300_000);
            shim.start(&id, "").await.expect("start");
            shim.wait(&id, "").await.expect("wait");
            shim.delete(&id, "").await.expect("delete");
        }
        assert_eq!(size(&shared), (0, 2 * (round + 1)), "empty files in the place of the volumes");
    }
    // A guest that does not do it costs its memory and nothing else.
    node.script(&json!([]));
    let dir = node.bundle("last", &bundle);
    shim.create("last", &dir, NO_STREAMS).await.expect("create");
    node.script(
        &json!([{"call": "CopyFile", "skip": true, "error": {"code": 7, "text": "blocked by policy"}}]),
    );
    shim.delete("last", "").await.expect("delete");
    assert_eq!(size(&shared).0, 300_000);
    assert!(node.log().contains("volumes of last stay in the guest"));
    node.script(&json!([]));
    node.end(&shim, "pod").await;
}

#[tokio::test]
async fn files_and_folders_keep_their_owners_and_modes() {
    let node = TestNode::new().await;
    let at = |name: &str| node.path("data").join(name);
    fs::create_dir_all(at("private/inner")).expect("folders");
    fs::create_dir(at("empty")).expect("folder");
    for name in ["top", "private/key", "private/inner/deep"] {
        fs::write(at(name), name).expect("write");
    }
    for (name, mode, uid, gid) in [
        ("top", 0o644, 7, 8),
        ("private/inner/deep", 0o400, 1000, 1001),
        ("private/key", 0o600, 1000, 1001),
        ("private/inner", 0o750, 5, 6),
        ("private", 0o700, 0, 0),
        ("empty", 0o2777, 0, 3),
        ("", 0o751, 0, 9),
    ] {
        chown(at(name), Some(uid), Some(gid)).expect("chown");
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).expect("chmod");
    }
    let mut volume = KubeletVolume::new(node.path("secret"), &[("k", "1")]);
    chown(volume.path(), Some(0), Some(2000)).expect("chown");
    fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o2750)).expect("chmod");
    let mounts = [bind("/data", &node.path("data")), bind("/secret", volume.path())];
    let mut bundle = Bundle::sh("sleep 1000").sandbox();
    bundle.config["mounts"].as_array_mut().expect("list").extend_from_slice(&mounts);
    let shim = node.running("c1", &bundle).await;
    let requests = node.requests();
    let [made] = of(&requests, "CreateContainer")[..] else { panic!("{requests:?}") };
    let copies: Vec<PathBuf> = (made["OCI"]["Mounts"].as_array().expect("mounts").iter())
        .filter_map(|mount| mount["source"].as_str().filter(|source| source.starts_with(SHARED)))
        .map(|source| node.path("guest").join(source.trim_start_matches('/')))
        .collect();
    let all = |folder: &Path| {
        let mut found = vec![];
        owners(folder, Path::new(""), &mut found);
        found
    };
    assert_eq!(all(&copies[0]), all(&node.path("data")));
    assert_eq!(all(&copies[1]), all(volume.path()));
    // And after an update: the folder of the volume is its own again.
    volume.update(&[("k", "2")]);
    eventually("the update", 5, || fs::read(copies[1].join("k")).is_ok_and(|text| text == b"2")).await;
    let owner = |path: &Path| {
        fs::metadata(path).map(|meta| (meta.uid(), meta.gid(), meta.mode() & 0o777)).expect("stat")
    };
    eventually("its owner", 5, || owner(&copies[1]) == owner(volume.path())).await;
    node.end(&shim, "c1").await;
}

/// Path, owner, group and mode of all that is in a folder, links but by their paths. The double has not the right to
/// set the bit that hands a folder's group down (CAP_FSETID): e2e_volumes.rs looks at that.
fn owners(folder: &Path, below: &Path, found: &mut Vec<(PathBuf, u32, u32, u32)>) {
    let meta = fs::symlink_metadata(folder.join(below)).expect("stat");
    if meta.is_symlink() {
        return found.push((below.to_owned(), 0, 0, 0));
    }
    found.push((below.to_owned(), meta.uid(), meta.gid(), meta.mode() & 0o777));
    if meta.is_dir() {
        let mut names: Vec<_> = fs::read_dir(folder.join(below))
            .expect("list")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        names.sort();
        names.iter().for_each(|name| owners(folder, &below.join(name), found));
    }
}

#[tokio::test]
async fn the_bounds_of_volumes_are_keys_and_a_large_file_comes_in_pieces() {
    let node = TestNode::new().await;
    node.config("[volumes]\ncopied_mib = 5\ncopied_files = 3\n");
    fs::create_dir(node.path("data")).expect("folder");
    let large = fs::File::create(node.path("data/large")).expect("file");
    large.set_len(5 << 20).expect("size");
    let mount = [bind("/data", &node.path("data"))];
    let shim = node.running("c1", &with_mounts(&mount)).await;
    let requests = node.requests();
    let pieces = of(&requests, "CopyFile")
        .iter()
        .filter(|r| r["path"].as_str().is_some_and(|p| p.ends_with("large")))
        .count();
    assert_eq!(pieces, 5, "of 1 MiB: a message has at most four");
    node.end(&shim, "c1").await;
    fs::write(node.path("data/one"), "").expect("file");
    fs::write(node.path("data/two"), "").expect("file");
    let text = node.refused(&with_mounts(&mount)).await;
    let wanted = "more files and folders than can be copied into a guest (3 for all volumes of a container, volumes.copied_files)";
    assert!(text.contains(wanted), "{text}");
    fs::remove_file(node.path("data/one")).expect("remove");
    large.set_len((5 << 20) + 1).expect("size");
    let text = node.refused(&with_mounts(&mount)).await;
    assert!(text.contains("guest (5 MiB for all volumes of a container, volumes.copied_mib)"), "{text}");
}

#[tokio::test]
async fn a_volume_that_is_too_large_is_refused_and_its_pod_undone() {
    let node = TestNode::new().await;
    fs::create_dir(node.path("large")).expect("folder");
    fs::File::create(node.path("large/disk")).and_then(|f| f.set_len(1 << 40)).expect("sparse");
    let text = node.refused(&with_mounts(&[bind("/data", &node.path("large"))])).await;
    assert!(text.contains("larger than can be copied into a guest (64 MiB for all volumes of a container, volumes.copied_mib)"), "{text}");
}
