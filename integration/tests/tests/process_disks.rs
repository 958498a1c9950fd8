//! Volumes that are disks of the guest: raw block volumes of the host, and emptyDirs.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use harness::{Bundle, LoopDevice, Mounted, NO_STREAMS, Shim, TestNode, eventually};
use serde_json::{Value, json};

/// As a mount of the host would hold it.
fn hold(device: &Path) -> std::io::Result<File> {
    let exclusive = nix::libc::O_EXCL | nix::libc::O_NONBLOCK;
    OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(device)
}

/// A container with devices and the access to each.
fn with_devices(mut bundle: Bundle, devices: &[(Value, &str)]) -> Bundle {
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    let mut listed = Vec::new();
    for (device, access) in devices {
        let (major, minor) = (&device["major"], &device["minor"]);
        rules.push(json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": access}));
        listed.push(device.clone());
    }
    bundle.config["linux"]["devices"] = listed.into();
    bundle.config["linux"]["resources"]["devices"] = rules.into();
    bundle
}

fn member() -> Bundle {
    Bundle::sh("sleep 1000").member("s1")
}

fn creates(node: &TestNode) -> Vec<Value> {
    node.requests()
        .into_iter()
        .filter(|r| r["call"] == "CreateContainer")
        .map(|r| r["request"].clone())
        .collect()
}

fn devices(request: &Value) -> Vec<(&str, &str, &str)> {
    let all = request["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter()
        .map(|device| {
            let text = |name: &str| device[name].as_str().unwrap_or_default();
            (text("type"), text("id"), text("container_path"))
        })
        .collect()
}

#[tokio::test]
async fn a_raw_block_volume_is_one_disk_of_its_pod_until_its_last_container_is_deleted() {
    let Some(volume) = LoopDevice::new(1 << 20) else { return };
    let node = TestNode::new().await;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    let access = |access| vec![(volume.named("/dev/data"), access)];
    for id in ["m1", "m2"] {
        let dir = node.bundle(id, &with_devices(member(), &access("mrw")));
        shim.create(id, &dir, NO_STREAMS).await.expect("create");
    }
    let requests = creates(&node);
    for request in requests.iter().skip(1) {
        assert_eq!(devices(request), [("scsi", "0:0", "/dev/data")]);
        assert_eq!(request["OCI"]["Linux"]["Devices"][0]["Path"], "/dev/data");
        assert_eq!(request["OCI"]["Linux"]["Resources"].get("Devices").unwrap_or(&json!([])), &json!([]));
    }
    assert!(hold(volume.path()).is_err(), "the guest has it");
    shim.delete("m1", "").await.expect("delete");
    assert!(hold(volume.path()).is_err(), "the other container has it still");
    shim.delete("m2", "").await.expect("delete");
    hold(volume.path()).expect("unplugged");

    // The guest may not have forgotten the address yet.
    let dir = node.bundle("m3", &with_devices(member(), &access("rm")));
    shim.create("m3", &dir, NO_STREAMS).await.expect("create");
    assert_eq!(devices(creates(&node).last().expect("request")), [("scsi", "0:1", "/dev/data")]);
    hold(volume.path()).expect("it is only read");
    shim.delete("m3", "").await.expect("delete");
    node.end(&shim, "s1").await;
}

#[tokio::test]
async fn a_device_that_the_host_has_not_or_uses_is_refused_by_its_name() {
    let Some(volume) = LoopDevice::new(1 << 20) else { return };
    let node = TestNode::new().await;
    let mut none = volume.named("/dev/data");
    none["major"] = 4000.into();
    let text = node.refused(&with_devices(Bundle::sh("true"), &[(none, "rwm")])).await;
    assert!(text.contains("device /dev/data: the host has no block device 4000:"), "{text}");
    let twice = [(volume.named("/dev/data"), "rwm"), (volume.named("/dev/data"), "rwm")];
    let text = node.refused(&with_devices(Bundle::sh("true"), &twice)).await;
    assert!(text.contains("device /dev/data: is named twice"), "{text}");
    assert!(node.requests().is_empty(), "no guest was started");

    let held = hold(volume.path()).expect("free");
    let text = node.refused(&with_devices(Bundle::sh("true"), &[(volume.named("/dev/data"), "rwm")])).await;
    let path = volume.path().display();
    assert!(text.contains(&format!("device /dev/data: {path}: the host uses this device")), "{text}");
    drop(held);
}

#[tokio::test]
async fn a_disk_that_fails_at_any_step_is_named_and_not_kept() {
    let [Some(first), Some(second)] = [LoopDevice::new(1 << 20), LoopDevice::new(1 << 20)] else { return };
    let node = TestNode::new().await;
    let bundle =
        || with_devices(member(), &[(first.named("/dev/a"), "rwm"), (second.named("/dev/b"), "rwm")]);
    let free = || hold(first.path()).is_ok() && hold(second.path()).is_ok();

    // The guest does not find the second one.
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    let text = "Timeout after 3s waiting for uevent ScsiBlockMatcher { search: \"/0:0:0:1/block\" }";
    node.script(&json!([{"call": "CreateContainer", "error": {"code": 13, "text": text}}]));
    let dir = node.bundle("m1", &bundle());
    let e = shim.create("m1", &dir, NO_STREAMS).await.expect_err("not found").to_string();
    let second_by_number =
        if first.named("")["minor"].as_u64() < second.named("")["minor"].as_u64() { "b" } else { "a" };
    assert!(
        e.contains(&format!("device /dev/{second_by_number} (scsi 0:1): did not appear in the guest: ")),
        "{e}"
    );
    assert!(free(), "unplugged");
    node.script(&json!([]));
    shim.create("m1", &dir, NO_STREAMS).await.expect_err("the guest may have half of it");
    let dir = node.bundle("m2", &bundle());
    shim.create("m2", &dir, NO_STREAMS).await.expect("another container");
    let last = creates(&node).pop().expect("request");
    let mut ids: Vec<_> = devices(&last).into_iter().map(|(_, id, _)| id.to_owned()).collect();
    ids.sort();
    assert_eq!(ids, ["0:2", "0:3"], "addresses are not used again");
    node.end(&shim, "s1").await;
    assert!(free());

    // QEMU refuses.
    for command in ["add-fd", "blockdev-add", "remove-fd", "device_add"] {
        node.double(|orders| orders["refuse"] = command.into());
        let dir = node.bundle("c1", &with_devices(Bundle::sh("true"), &[(first.named("/dev/a"), "rwm")]));
        let shim = node.shim("c1", &dir).await;
        let e = shim.create("c1", &dir, NO_STREAMS).await.expect_err("refused").to_string();
        let wanted = format!("device /dev/a: plug disk scsi 0:0: QMP {command}: {command} refused");
        assert!(e.contains(&wanted), "{e}");
        shim.shutdown(true).await.expect("shutdown");
        assert!(free(), "{command}");
    }
}

#[tokio::test]
async fn a_store_for_images_is_warned_of_in_a_vm_with_several_cpus() {
    let Some(volume) = LoopDevice::new(1 << 20) else { return };
    let node = TestNode::new().await;
    for (vcpus, warned) in [(1, false), (2, true)] {
        let config = std::fs::read_to_string(node.path("config.toml")).expect("configuration");
        let config = config.replace("memory_mib", &format!("vcpus = {vcpus}\nmemory_mib"));
        std::fs::write(node.path("config.toml"), config).expect("configuration");
        let bundle = with_devices(Bundle::sh("sleep 1000"), &[(volume.named("/dev/trusted_store"), "rwm")]);
        let shim = node.running("c1", &bundle).await;
        node.end(&shim, "c1").await;
        let log = node.log();
        assert_eq!(log.contains("/dev/trusted_store in a VM with 2 CPUs"), warned, "{log}");
        node.config("");
    }
}

/// With these emptyDirs at /v0, /v1, …
fn with_volumes(bundle: Bundle, volumes: &[&Path]) -> Bundle {
    let numbered = volumes.iter().enumerate();
    numbered.fold(bundle, |bundle, (number, volume)| bundle.empty_dir(&format!("/v{number}"), volume))
}

/// The storages of volumes in a request, and the mounts of these.
fn volumes_of(request: &Value) -> (Vec<&Value>, Vec<&Value>) {
    let list = |value: &'static str, object: &'static str| -> Vec<&Value> {
        let of = if object.is_empty() { request } else { &request[object] };
        of[value].as_array().into_iter().flatten().collect()
    };
    let storages =
        list("storages", "").into_iter().filter(|s| s["driver"] == "scsi" || s["driver"] == "local");
    let mounts = list("Mounts", "OCI").into_iter();
    let ours = |m: &&Value| m["destination"].as_str().is_some_and(|to| to.starts_with("/v"));
    (storages.collect(), mounts.filter(ours).collect())
}

async fn sandbox(node: &TestNode) -> Shim {
    node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await
}

async fn create(node: &TestNode, shim: &Shim, id: &str, volumes: &[&Path]) -> Result<(), String> {
    let dir = node.bundle(id, &with_volumes(member(), volumes));
    shim.create(id, &dir, NO_STREAMS).await.map(drop).map_err(|e| e.to_string())
}

#[tokio::test]
async fn an_empty_dir_is_one_encrypted_disk_of_its_pod_and_gone_with_it() {
    let node = TestNode::new().await;
    node.double(|orders| orders["apart"] = true.into()); // two guests
    let cache = node.empty_dir("cache");
    std::os::unix::fs::chown(&cache, None, Some(7)).expect("the pod's fsGroup");
    let shim = sandbox(&node).await;
    create(&node, &shim, "m1", &[&cache, &cache]).await.expect("create");
    create(&node, &shim, "m2", &[&cache]).await.expect("create");
    let requests = creates(&node);
    let at = "/run/kata-containers/sandbox/storage/MDow";
    for (request, mounted) in requests.iter().skip(1).zip([2, 1]) {
        let (storages, mounts) = volumes_of(request);
        let wanted = json!({
            "driver": "scsi", "source": "0:0", "fstype": "ext4", "mount_point": at, "shared": true,
            "driver_options": ["encryption_key=ephemeral", "create_filesystem"], "fs_group": {"group_id": 7},
        });
        let [storage] = storages[..] else { panic!("{storages:?}") };
        for (name, value) in wanted.as_object().expect("object") {
            let sent = &storage[name];
            assert_eq!(
                if name == "fs_group" { &sent["group_id"] } else { sent },
                if name == "fs_group" { &value["group_id"] } else { value },
                "{name}"
            );
        }
        assert!(storage.get("options").is_none_or(|options| options == &json!([])), "{storage}");
        assert_eq!(mounts.len(), mounted);
        for mount in mounts {
            assert_eq!((&mount["type"], &mount["source"]), (&json!("bind"), &json!(at)));
            assert_eq!(mount["options"], json!(["rbind", "rprivate", "rw"]));
        }
    }
    let disk = cache.join("disk.img");
    let meta = fs::metadata(&disk).expect("disk");
    assert_eq!((meta.len(), meta.blocks(), meta.mode() & 0o7777, meta.uid()), (10 << 30, 0, 0o600, 0));
    // Another VM is not given it.
    let other = with_volumes(Bundle::sh("true"), &[&cache]);
    let dir = node.bundle("c2", &other);
    let second = node.shim("c2", &dir).await;
    let e = second.create("c2", &dir, NO_STREAMS).await.expect_err("in use").to_string();
    assert!(e.contains("emptyDir cache: ") && e.contains("disk.img: another VM has this disk"), "{e}");
    second.shutdown(true).await.expect("shutdown");
    shim.delete("m1", "").await.expect("delete");
    shim.delete("m2", "").await.expect("delete");
    create(&node, &shim, "m3", &[&cache]).await.expect("it stays in the guest");
    assert_eq!(volumes_of(creates(&node).last().expect("request")).0[0]["source"], "0:0");
    node.end(&shim, "s1").await;
    assert!(cache.is_dir() && !disk.exists());
}

#[tokio::test]
async fn an_empty_dir_that_the_containers_user_cannot_write_to_is_told() {
    let node = TestNode::new().await;
    let [own, shared] = ["own", "shared"].map(|name| node.empty_dir(name));
    std::os::unix::fs::chown(&shared, None, Some(7)).expect("the pod's fsGroup");
    let mut bundle = with_volumes(Bundle::sh("sleep 1000").sandbox(), &[&own, &shared]);
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let dir = node.bundle("c1", &bundle);
    let shim = node.shim("c1", &dir).await;
    shim.create("c1", &dir, NO_STREAMS).await.expect("create");
    let log = node.log();
    let line = "emptyDir own: belongs to root in the guest, and the container runs as uid 1000: to write there it needs";
    assert!(log.contains(line) && !log.contains("emptyDir shared: belongs"), "{log}");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn the_configuration_says_where_empty_dirs_are_kept_and_how_large_they_are() {
    let node = TestNode::new().await;
    let cache = node.empty_dir("cache");
    let sized = |size: &str| {
        let mut bundle = with_volumes(Bundle::sh("sleep 1000").sandbox(), &[&cache]);
        let key = "io.katacontainers.volumes.emptydir_sizelimit.cache";
        if !size.is_empty() {
            bundle.config["annotations"][key] = size.into();
        }
        bundle
    };
    let local = "/run/kata-containers/shared/containers/c1/rootfs/local/cache";
    for (config, size, driver, options, mib) in [
        ("empty_dir = \"block-plain\"\nempty_dir_gib = 3", "", "scsi", json!(["discard"]), 3 << 10),
        ("max_empty_dir_gib = 20", "20Gi", "scsi", json!([]), 20 << 10),
        ("empty_dir = \"guest-local\"", "", "local", json!(["mode=0777"]), 0),
    ] {
        node.config(&format!("[volumes]\n{config}\n"));
        let shim = node.running("c1", &sized(size)).await;
        let request = creates(&node).pop().expect("request");
        let (storages, mounts) = volumes_of(&request);
        assert_eq!(storages[0]["driver"], driver, "{config}");
        assert_eq!(storages[0].get("options").unwrap_or(&json!([])), &options, "{config}");
        let disk = fs::metadata(cache.join("disk.img")).map_or(0, |meta| meta.len() >> 20);
        assert_eq!(disk, mib, "{config}");
        if driver == "local" {
            assert_eq!((&mounts[0]["type"], &mounts[0]["source"]), (&json!("local"), &json!(local)));
        } else if options == json!(["discard"]) {
            assert_eq!(storages[0]["driver_options"], json!(["create_filesystem"]));
        }
        node.end(&shim, "c1").await;
    }
    node.config("[volumes]\nmax_empty_dir_gib = 20\n");
    let before = node.requests().len();
    let text = node.refused(&sized("21Gi")).await;
    assert!(text.contains(": more than this node allows: ask for 20Gi at most"), "{text}");
    let text = node.refused(&sized("a lot")).await;
    assert!(text.contains(": it is no size: write one like 500Mi or 2Gi"), "{text}");
    assert_eq!(node.requests().len(), before, "refused before a guest is started");
    assert!(!cache.join("disk.img").exists());
}

#[tokio::test]
async fn an_empty_dir_in_the_nodes_memory_or_for_an_old_agent_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let kubelet = Mounted::new("tmpfs", folder.path().join("kubelet"), None);
    let cache = kubelet.path().join("pods/u/volumes/kubernetes.io~empty-dir/cache");
    fs::create_dir_all(&cache).expect("folder");
    let node = TestNode::new().await;
    let text = node.refused(&with_volumes(Bundle::sh("true"), &[&cache])).await;
    assert!(text.contains("emptyDir cache: ") && text.contains("in the node's memory (tmpfs)"), "{text}");
    let details = json!({"version": "3.27.0", "init_daemon": false, "supports_seccomp": false});
    node.script(&json!([{"call": "GetGuestDetails", "answer": {"agent_details": details}}]));
    let cache = node.empty_dir("cache");
    let text = node.refused(&with_volumes(Bundle::sh("true"), &[&cache])).await;
    assert!(text.contains("Kata Containers 3.28 or newer, this one has 3.27.0"), "{text}");
    assert!(!cache.join("disk.img").exists());
    // One that the pod wants in memory needs no disk.
    let memory = Mounted::new("tmpfs", node.empty_dir("memory"), None);
    let shim = node.running("c1", &with_volumes(Bundle::sh("sleep 1000"), &[memory.path()])).await;
    let request = creates(&node).pop().expect("request");
    let storage = |s: &Value| s["driver"] == "ephemeral" && s["source"] == "tmpfs";
    assert!(request["storages"].as_array().expect("storages").iter().any(storage), "{request}");
    shim.delete("c1", "").await.ok();
    shim.shutdown(true).await.expect("shutdown");
    drop(memory);
}

#[tokio::test]
async fn a_disk_that_the_guest_does_not_take_is_not_kept_and_not_used_again() {
    let node = TestNode::new().await;
    let [a, b] = ["a", "b"].map(|name| node.empty_dir(name));
    let shim = sandbox(&node).await;
    let files = || [&a, &b].map(|folder| folder.join("disk.img").exists());
    let text = "Timeout after 3s waiting for uevent ScsiBlockMatcher { search: \"/0:0:0:1/block\" }";
    node.script(&json!([{"call": "CreateContainer", "error": {"code": 13, "text": text}}]));
    let e = create(&node, &shim, "m1", &[&a, &b]).await.expect_err("not found");
    assert!(e.contains("emptyDir b (scsi 0:1): did not appear in the guest: "), "{e}");
    assert_eq!(files(), [false, false]);
    node.script(&json!([{"call": "CreateContainer", "error": {"code": 13, "text": "bind /run/kata-containers/sandbox/storage/MDoy: ENOENT: No such file"}}]));
    let e = create(&node, &shim, "m2", &[&a]).await.expect_err("no hub");
    assert!(e.contains("encrypted emptyDirs need a Confidential Data Hub in the guest"), "{e}");
    node.script(&json!([]));
    create(&node, &shim, "m3", &[&b, &a]).await.expect("create");
    let request = creates(&node).pop().expect("request");
    let mut sources: Vec<_> = volumes_of(&request).0.iter().map(|s| s["source"].clone()).collect();
    sources.sort_by_key(Value::to_string);
    assert_eq!(sources, ["0:3", "0:4"], "addresses are not used again");
    node.end(&shim, "s1").await;
    for command in ["add-fd", "blockdev-add", "remove-fd", "device_add"] {
        // The layers' disk is plugged later.
        node.double(|orders| orders["refuse"] = command.into());
        let text = node.refused(&with_volumes(Bundle::sh("true"), &[&a])).await;
        assert!(
            text.contains(&format!("emptyDir a: plug disk scsi 0:0: QMP {command}: {command} refused")),
            "{text}"
        );
        assert_eq!(files(), [false, false], "{command}");
    }
}

#[tokio::test]
async fn a_killed_shims_disk_goes_with_delete_and_one_that_was_left_is_made_anew() {
    let node = TestNode::new().await;
    let cache = node.empty_dir("cache");
    let disk = cache.join("disk.img");
    fs::write(&disk, "of a pod before the machine's last start").expect("file");
    let shim = sandbox(&node).await;
    create(&node, &shim, "m1", &[&cache]).await.expect("create");
    assert_eq!(fs::metadata(&disk).expect("disk").len(), 10 << 30, "a new one");
    let (_, qemu) = shim.pid("s1").await;
    let pid = i32::try_from(node.shim_pid().await).expect("pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("kill");
    eventually("the shim's end", 5, || !Path::new(&format!("/proc/{pid}/cmdline")).exists() || is_dead(pid))
        .await;
    assert!(disk.exists(), "QEMU ({qemu}) may have it still");
    node.delete("s1");
    assert!(!disk.exists());
    node.assert_clean();
}

fn is_dead(pid: i32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |command| command.is_empty())
}

#[tokio::test]
async fn a_pod_has_two_hundred_disks_at_addresses_of_their_own() {
    let node = TestNode::new().await;
    let names: Vec<PathBuf> = (0..200).map(|n| node.empty_dir(&format!("v{n:03}"))).collect();
    let shim = sandbox(&node).await;
    let paths: Vec<&Path> = names.iter().map(PathBuf::as_path).collect();
    let (first, second) = paths.split_at(100);
    create(&node, &shim, "m1", first).await.expect("create");
    create(&node, &shim, "m2", second).await.expect("create");
    let requests = creates(&node);
    let mut sources = std::collections::BTreeSet::new();
    for request in requests.iter().skip(1) {
        let (storages, mounts) = volumes_of(request);
        assert_eq!((storages.len(), mounts.len()), (100, 100));
        sources.extend(storages.iter().map(|s| s["source"].to_string()));
    }
    assert_eq!(sources.len(), 200);
    node.end(&shim, "s1").await;
    assert!(names.iter().all(|folder| !folder.join("disk.img").exists()));
}
