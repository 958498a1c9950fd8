//! What the containers of a pod see of it: names, network, ports, sysctls, process ids.

use std::io::{Read, Write};
use std::time::Duration;

use cri::api::{DnsConfig, NamespaceMode, NamespaceOption, PortMapping};
use cri::{Node, pod_security, security};
use harness::until;

cri::on_each_version! {
    in_short:
    a_pod_has_its_name_and_its_resolver,
    a_host_port_reaches_the_pod,
    sysctls_of_a_pod_are_set_in_its_guest,
    containers_share_the_pods_process_ids;
    in_full:
    a_pod_has_its_addresses_and_a_way_out,
    containers_have_their_own_process_ids,
    a_target_of_process_ids_is_the_pod,
    containers_of_a_pod_share_its_memory_and_its_network;
}

fn a_pod_has_its_name_and_its_resolver(node: &Node) {
    let mut config = node.config("named");
    config.hostname = "web-0".into();
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.0.0.10".into(), "10.0.0.11".into()],
        searches: vec!["tests.svc.cluster.local".into(), "cluster.local".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = node.run(&config);
    let container = pod.idle("c1");
    assert_eq!(container.sh("hostname"), "web-0\n");
    assert_eq!(container.sh("cat /etc/hostname"), "web-0\n");
    assert_eq!(
        container.sh("cat /etc/resolv.conf"),
        "search tests.svc.cluster.local cluster.local\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5\n"
    );
    assert!(container.sh("cat /etc/hosts").contains("localhost"));
    assert_eq!(container.sh("echo $HOSTNAME"), "web-0\n");
}

fn a_pod_has_its_addresses_and_a_way_out(node: &Node) {
    let pod = node.pod("network");
    let network = pod.status().network.expect("network");
    let container = pod.idle("c1");
    let shown = container.sh("ip addr show dev eth0");
    assert!(shown.contains(&format!("inet {}/24", network.ip)), "{shown}");
    let second = &network.additional_ips.first().expect("an IPv6 address").ip;
    assert!(shown.contains(&format!("inet6 {second}/64")), "{shown}");
    assert!(container.sh("ip route").contains("default via 10.89.0.1 dev eth0"));
    container.sh("ping -c 1 -W 5 10.89.0.1");
    assert!(container.sh("ip addr show dev lo").contains("127.0.0.1"));
}

fn a_host_port_reaches_the_pod(node: &Node) {
    let mut config = node.config("ports");
    let mapping = |container_port, host_port| PortMapping { container_port, host_port, ..Default::default() };
    // A container port without a host port is informational.
    config.port_mappings = vec![mapping(80, 18080), mapping(81, 0)];
    let pod = node.run(&config);
    pod.script("web", "mkdir /www; echo page > /www/index.html; httpd -f -h /www");
    let ask = |address: &str| -> std::io::Result<String> {
        let mut stream = node.containerd.connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    until("the port answers", 15, || ask("10.89.0.1:18080").is_ok_and(|answer| answer.ends_with("page\n")));
    assert!(
        ask(&format!("{}:80", pod.address())).is_ok_and(|answer| answer.ends_with("page\n")),
        "by its address"
    );
    pod.end();
    ask("10.89.0.1:18080").expect_err("the port went with the pod");
}

fn sysctls_of_a_pod_are_set_in_its_guest(node: &Node) {
    let mut config = node.config("sysctls");
    config.linux.get_or_insert_default().sysctls = [
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
        ("fs.mqueue.msg_max".to_owned(), "100".to_owned()),
        ("net.ipv4.ip_local_port_range".to_owned(), "40000 50000".to_owned()),
        ("net.ipv4.ip_unprivileged_port_start".to_owned(), "81".to_owned()),
    ]
    .into();
    let pod = node.run(&config);
    let container = pod.idle("c1");
    assert_eq!(container.sh("cat /proc/sys/kernel/shm_rmid_forced"), "1\n");
    assert_eq!(container.sh("cat /proc/sys/fs/mqueue/msg_max"), "100\n");
    assert_eq!(container.sh("cat /proc/sys/net/ipv4/ip_local_port_range"), "40000\t50000\n");
    assert_eq!(container.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "81\n");

    config = node.config("bad-sysctl");
    config.linux.get_or_insert_default().sysctls = [("vm.swappiness".to_owned(), "1".to_owned())].into();
    let e = node.try_run(&config).expect_err("not a pod's own");
    assert!(e.message().contains("vm.swappiness"), "{}", e.message());
}

fn with_pids(mode: NamespaceMode) -> Option<NamespaceOption> {
    Some(NamespaceOption { pid: mode.into(), ..Default::default() })
}

fn containers_have_their_own_process_ids(node: &Node) {
    let mut config = node.config("own-pids");
    pod_security(&mut config).namespace_options = with_pids(NamespaceMode::Container);
    let pod = node.run(&config);
    let start = |name: &str| {
        let mut config =
            pod.plain(name, &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3601 & wait; done"]);
        security(&mut config).namespace_options = with_pids(NamespaceMode::Container);
        pod.start(&config)
    };
    let (one, other) = (start("one"), start("other"));
    let spaces = [&one, &other].map(|container| container.sh("readlink /proc/self/ns/pid"));
    assert_ne!(spaces[0], spaces[1]);
    assert_eq!(one.sh("ps | grep -c 360[1]").trim(), "2", "its own shell and sleep: {}", one.sh("ps"));
}

fn containers_share_the_pods_process_ids(node: &Node) {
    let mut config = node.config("shared-pids");
    pod_security(&mut config).namespace_options = with_pids(NamespaceMode::Pod);
    let pod = node.run(&config);
    let start = |name: &str, seconds: u32| {
        let script = format!("trap 'exit 0' TERM; while :; do sleep {seconds} & wait; done");
        let mut config = pod.plain(name, &["sh", "-c", &script]);
        security(&mut config).namespace_options = with_pids(NamespaceMode::Pod);
        pod.start(&config)
    };
    let (one, other) = (start("one", 3601), start("other", 3602));
    let seen = one.sh("ps");
    if node.sandbox_api {
        // No container outlives all the others, so none could hold the shared namespace.
        assert!(seen.contains("sleep 3601") && !seen.contains("sleep 3602"), "{seen}");
        return;
    }
    for what in ["sleep 3600", "sleep 3601", "sleep 3602"] {
        assert!(seen.contains(what), "{what}: {seen}");
    }
    let spaces = [&one, &other].map(|container| container.sh("readlink /proc/self/ns/pid"));
    assert_eq!(spaces[0], spaces[1]);
    one.stop(10);
    assert_eq!(one.status().exit_code, 0);
    assert!(!other.sh("ps").contains("sleep 3601"), "what it started went with it");
    other.stop(0);
    assert_eq!(other.status().exit_code, 137);
}

/// containerd identifies the target by the VM's process, which is the same for every container: a caller that
/// asks for one container's process ids gets the pod's.
fn a_target_of_process_ids_is_the_pod(node: &Node) {
    let mut config = node.config("target");
    pod_security(&mut config).namespace_options = with_pids(NamespaceMode::Container);
    let pod = node.run(&config);
    let mut plain =
        pod.plain("app", &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3601 & wait; done"]);
    security(&mut plain).namespace_options = with_pids(NamespaceMode::Container);
    let app = pod.start(&plain);
    let mut debug = pod.plain("debug", &["sleep", "1000"]);
    security(&mut debug).namespace_options = Some(NamespaceOption {
        pid: NamespaceMode::Target.into(),
        target_id: app.id.clone(),
        ..Default::default()
    });
    let seen = pod.start(&debug).sh("ps");
    assert_eq!(seen.contains("sleep 3600"), !node.sandbox_api, "the pause container: {seen}");
    assert!(!seen.contains("sleep 3601"), "{seen}");
}

fn containers_of_a_pod_share_its_memory_and_its_network(node: &Node) {
    let pod = node.pod("shared");
    let (one, other) = (pod.idle("one"), pod.idle("other"));
    one.sh(
        "echo note > /dev/shm/note; mkdir /www; echo page > /www/index.html; httpd -p 127.0.0.1:8080 -h /www",
    );
    assert_eq!(other.sh("cat /dev/shm/note"), "note\n");
    assert_eq!(other.sh("wget -q -O - http://127.0.0.1:8080/"), "page\n");
    assert_eq!(other.exec(&["ls", "/www"]).code, 1, "each has its own files");
    for name in ["ipc", "uts", "net"] {
        let spaces = [&one, &other].map(|container| container.sh(&format!("readlink /proc/self/ns/{name}")));
        assert_eq!(spaces[0], spaces[1], "{name}");
    }
}
