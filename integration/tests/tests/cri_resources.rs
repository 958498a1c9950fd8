//! Limits, and the statistics that `crictl stats`, `kubectl top` and the kubelet's eviction use.

use cri::Node;
use cri::api::{
    ContainerStats, ContainerStatsFilter, LinuxContainerResources, ListContainerStatsRequest,
    ListPodSandboxStatsRequest, PodSandboxStatsRequest, UpdateContainerResourcesRequest,
};
use harness::until;

cri::on_each_version! {
    in_short:
    statistics_are_those_of_the_container,
    statistics_of_a_pod_have_its_network;
    in_full:
    limits_are_set_in_the_guest_and_can_be_changed;
}

fn cpu(stats: &ContainerStats) -> u64 {
    stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |n| n.value)
}

fn working_set(stats: &ContainerStats) -> u64 {
    stats.memory.as_ref().and_then(|memory| memory.working_set_bytes).map_or(0, |n| n.value)
}

fn statistics_are_those_of_the_container(node: &Node) {
    let pod = node.pod("stats");
    let mut config =
        pod.plain("busy", &["sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=24; while :; do :; done"]);
    config.labels.insert("load".into(), "high".into());
    let busy = pod.start(&config);
    let idle = pod.idle("idle");
    until("24 MiB are counted", 20, || working_set(&busy.stats()) >= 24 << 20);
    let before = cpu(&busy.stats());
    until("it is busy", 20, || cpu(&busy.stats()) > before + 200_000_000);
    let (of_busy, of_idle) = (busy.stats(), idle.stats());
    assert!(working_set(&of_busy) < 100 << 20, "{of_busy:?}");
    assert!(working_set(&of_idle) > 0 && working_set(&of_idle) < 16 << 20, "{of_idle:?}");
    assert!(cpu(&of_idle) > 0 && cpu(&of_idle) < cpu(&of_busy), "{of_idle:?}");
    let attributes = of_busy.attributes.expect("attributes");
    assert_eq!((attributes.id.as_str(), &attributes.labels["load"]), (busy.id.as_str(), &"high".to_owned()));

    let list = |filter: ContainerStatsFilter| {
        let request = ListContainerStatsRequest { filter: Some(filter) };
        let mut ids: Vec<String> = node
            .list_container_stats(request)
            .expect("ListContainerStats")
            .stats
            .into_iter()
            .map(|stats| stats.attributes.expect("attributes").id)
            .collect();
        ids.sort();
        ids
    };
    let of_pod = list(ContainerStatsFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() });
    let mut wanted = vec![busy.id.clone(), idle.id.clone()];
    wanted.sort();
    assert_eq!(of_pod, wanted);
    let of_label = ContainerStatsFilter {
        label_selector: [("load".to_owned(), "high".to_owned())].into(),
        ..Default::default()
    };
    assert_eq!(list(of_label), [busy.id.as_str()]);
}

fn statistics_of_a_pod_have_its_network(node: &Node) {
    let pod = node.pod("pod-stats");
    let container = pod.idle("c1");
    container.sh("ping -c 3 -s 1000 10.89.0.1");
    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let stats = node.pod_sandbox_stats(request).expect("PodSandboxStats").stats.expect("stats");
    let linux = stats.linux.expect("linux");
    // The sandbox's statistics are the VM's: QEMU including its guest.
    let memory = linux.memory.expect("memory").working_set_bytes.expect("working set").value;
    assert!((64 << 20..2 << 30).contains(&memory), "{memory}");
    assert!(linux.cpu.expect("cpu").usage_core_nano_seconds.expect("usage").value > 1_000_000_000);
    let interface = linux.network.expect("network").default_interface.expect("interface");
    assert_eq!(interface.name, "eth0");
    for bytes in [interface.rx_bytes, interface.tx_bytes] {
        assert!(bytes.expect("bytes").value > 3000, "{interface:?}");
    }
    assert_eq!(linux.containers.len(), 1);
    assert_eq!(linux.containers[0].attributes.as_ref().expect("attributes").id, container.id);
    let all =
        node.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).expect("ListPodSandboxStats");
    assert_eq!(all.stats.len(), 1);
}

fn limits_are_set_in_the_guest_and_can_be_changed(node: &Node) {
    let pod = node.pod("limits");
    let limits = |memory_mib: i64, quota: i64| LinuxContainerResources {
        memory_limit_in_bytes: memory_mib << 20,
        cpu_period: 100_000,
        cpu_quota: quota,
        cpu_shares: 512,
        ..Default::default()
    };
    let mut config = pod.plain("c1", &["sleep", "1000"]);
    config.linux.get_or_insert_default().resources = Some(limits(64, 50_000));
    let container = pod.start(&config);
    let seen = || container.sh("cd /sys/fs/cgroup; cat memory.max cpu.max");
    assert_eq!(seen(), format!("{}\n50000 100000\n", 64 << 20));
    let change = UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(limits(96, 80_000)),
        ..Default::default()
    };
    node.update_container_resources(change).expect("UpdateContainerResources");
    assert_eq!(seen(), format!("{}\n80000 100000\n", 96 << 20));
}
