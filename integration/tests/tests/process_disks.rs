//! Volumes that are disks of the guest: raw block volumes of the host.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use harness::{Bundle, LoopDevice, NO_STREAMS, TestNode};
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
