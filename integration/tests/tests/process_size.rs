//! A pod's VM is as large as its containers' limits, within what the operator allows.

use harness::{Bundle, Code, NO_STREAMS, TestNode, code};
use serde_json::json;

/// `-m` and `-smp` of a running VM.
fn size(vm: u32) -> (String, String) {
    let line = std::fs::read_to_string(format!("/proc/{vm}/cmdline")).expect("command line");
    let words: Vec<&str> = line.split('\0').collect();
    let after = |option: &str| {
        let at = words.iter().position(|word| *word == option).expect(option);
        words[at + 1].to_owned()
    };
    (after("-m"), after("-smp"))
}

/// A node whose VMs have 256 MiB and one CPU, and these maxima.
async fn node(max_memory_mib: u32, max_vcpus: u32) -> TestNode {
    let node = TestNode::new().await;
    std::fs::create_dir(node.path("config.d")).expect("folder");
    let text = format!("[guest]\nmax_memory_mib = {max_memory_mib}\nmax_vcpus = {max_vcpus}\n");
    std::fs::write(node.path("config.d/size.toml"), text).expect("drop-in");
    node
}

/// A sandbox with containerd's annotations for the sums of its containers' limits.
fn pod(quota: &str, memory: &str) -> Bundle {
    let mut bundle = Bundle::sh("sleep 1000").sandbox();
    let annotations = bundle.config["annotations"].as_object_mut().expect("annotations");
    annotations.insert("io.kubernetes.cri.sandbox-cpu-quota".into(), quota.into());
    annotations.insert("io.kubernetes.cri.sandbox-cpu-period".into(), "100000".into());
    annotations.insert("io.kubernetes.cri.sandbox-memory".into(), memory.into());
    bundle
}

#[tokio::test]
async fn a_pod_has_the_vm_of_its_annotations() {
    let node = node(1024, 8).await;
    let shim = node.running("s1", &pod("150000", "104857600")).await;
    let (_, vm) = shim.pid("s1").await;
    assert_eq!(size(vm), ("358M".to_owned(), "3".to_owned()), "256 + 100 + 2 MiB, 1 + 2 CPUs");
    // An update may go up to the VM's size and not beyond.
    shim.update("s1", &json!({"memory": {"limit": 358 << 20}})).await.expect("as large as the VM");
    let beyond = shim.update("s1", &json!({"memory": {"limit": 359 << 20}})).await;
    assert_eq!(code(&beyond), Some(Code::FAILED_PRECONDITION), "{beyond:?}");
    node.end(&shim, "s1").await;
}

#[tokio::test]
async fn a_container_alone_has_the_vm_of_its_own_limits() {
    let node = node(1024, 8).await;
    let mut bundle = Bundle::sh("sleep 1000");
    bundle.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    bundle.config["linux"]["resources"]["cpu"] = json!({"quota": 100_000, "period": 100_000});
    let shim = node.running("c1", &bundle).await;
    let (_, vm) = shim.pid("c1").await;
    assert_eq!(size(vm), ("321M".to_owned(), "2".to_owned()));
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_pod_that_is_too_large_is_refused_with_both_numbers_and_leaves_nothing() {
    let node = node(300, 2).await;
    for (quota, memory, wanted) in [
        (
            "0",
            "104857600",
            "create container s1: the pod needs a VM with 358 MiB of memory (256 MiB for the guest, 100 MiB are \
             the containers' limits, 2 MiB to account for them), 300 MiB are allowed (guest.max_memory_mib)",
        ),
        (
            "250000",
            "0",
            "create container s1: the containers' limits are 3 CPUs, 2 are allowed (guest.max_vcpus)",
        ),
        ("x", "0", "create container s1: annotation io.kubernetes.cri.sandbox-cpu-quota = "),
    ] {
        let dir = node.bundle("s1", &pod(quota, memory));
        let shim = node.shim("s1", &dir).await;
        let e = shim.create("s1", &dir, NO_STREAMS).await.expect_err("too large").to_string();
        assert!(e.contains(wanted), "{e}");
        shim.shutdown(true).await.expect("shutdown");
        node.assert_clean();
    }
}
