//! Pods in a real guest: several containers that share what a pod shares, and the pod's network.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::time::Duration;

use harness::{Containerd, MEMBER, PodNetns, SANDBOX, until};
use serde_json::Value;

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn containers_of_a_pod_share_network_and_memory_and_nothing_else() {
    let netns = PodNetns::new();
    let node = Containerd::new();
    let network = format!("network:{}", netns.path());
    let with_network = ["--with-ns", network.as_str()];
    let mut sandbox = node.running(&[&SANDBOX[..], &with_network].concat(), "pod", FOREVER);
    let member = [&MEMBER[..], &with_network].concat();
    let serve = "echo from one > /dev/shm/note; mkdir /www; echo page > /www/index.html; \
                 httpd -p 127.0.0.1:8080 -h /www; ";
    let mut one = node.running(&member, "one", &format!("{serve}{FOREVER}"));
    let mut two = node.running(&member, "two", FOREVER);

    let read = node.exec("two", "e1", &["cat", "/dev/shm/note"]);
    assert_eq!(text(&read), "from one\n");
    let page = node.exec("two", "e2", &["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"]);
    assert_eq!(text(&page), "page\n");
    let apart = node.exec("two", "e3", &["ls", "/www"]);
    assert!(text(&apart).contains("No such file"), "each has its own files: {}", text(&apart));
    let boots = ["pod", "one", "two"]
        .map(|id| text(&node.exec(id, &format!("b-{id}"), &["cat", "/proc/sys/kernel/random/boot_id"])));
    assert!(boots.iter().all(|boot| boot.len() > 30 && *boot == boots[0]), "one guest: {boots:?}");

    // One container ends; the others continue.
    node.ctr_ok(&["task", "kill", "one"]);
    one.wait().expect("ctr");
    node.remove("one");
    assert_eq!(text(&node.exec("two", "e4", &["cat", "/dev/shm/note"])), "from one\n");
    for (id, child) in [("two", &mut two), ("pod", &mut sandbox)] {
        node.ctr_ok(&["task", "kill", id]);
        child.wait().expect("ctr");
        node.remove(id);
    }
    node.assert_clean();
}

#[test]
fn the_pods_network_carries_both_ways_and_both_families() {
    let netns = PodNetns::new();
    let node = Containerd::new();
    let network = format!("network:{}", netns.path());
    let script = format!("echo hello > /tmp/index.html; httpd -p 8080 -h /tmp; {FOREVER}");
    let mut running = node.running(&["--with-ns", &network], "c1", &script);
    assert_eq!(text(&node.exec("c1", "mtu", &["cat", "/sys/class/net/eth0/mtu"])), "1450\n");
    for v6 in [false, true] {
        let (pod, host) = (netns.pod(v6), netns.host(v6));
        let bracketed = |address: &str| if v6 { format!("[{address}]") } else { address.to_owned() };

        // From the host to a server in the container.
        let mut answer = String::new();
        until(&format!("{pod} answers"), 10, || {
            let Ok(mut stream) = TcpStream::connect(format!("{}:8080", bracketed(&pod))) else {
                return false;
            };
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("limit");
            answer.clear();
            stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").is_ok()
                && stream.read_to_string(&mut answer).is_ok()
        });
        assert!(answer.starts_with("HTTP/1") && answer.ends_with("hello\n"), "{answer}");

        // And back out: more than fits into one packet of any size.
        let server = TcpListener::bind(format!("{}:0", bracketed(&host))).expect("listen");
        let port = server.local_addr().expect("address").port();
        let sender = std::thread::spawn(move || {
            let (mut stream, peer) = server.accept().expect("accept");
            stream.write_all(&vec![b'x'; 300_000]).expect("send");
            peer.ip().to_string()
        });
        let fetch = format!("nc {host} {port} < /dev/null | wc -c");
        let got = node.exec("c1", &format!("out-{v6}"), &["sh", "-c", &fetch]);
        assert_eq!(text(&got).trim(), "300000");
        assert_eq!(sender.join().expect("server"), pod, "the guest speaks from the pod's address");
    }
    // Where CRI reads a pod's network statistics.
    let (received, sent) = eth0_bytes(&netns.path());
    assert!((600_000..10_000_000).contains(&received), "{received} bytes received");
    assert!((2_000..10_000_000).contains(&sent), "{sent} bytes sent");
    node.ctr_ok(&["task", "kill", "c1"]);
    running.wait().expect("ctr");
    node.remove("c1");
    node.assert_clean();
}

/// Received and sent bytes of `eth0` in a network namespace.
fn eth0_bytes(netns: &str) -> (u64, u64) {
    let name = netns.rsplit('/').next().expect("name");
    let arguments = ["-n", name, "-j", "-s", "link", "show", "dev", "eth0"];
    let output = Command::new("ip").args(arguments).output().expect("ip");
    let links: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let bytes = |way: &str| links[0]["stats64"][way]["bytes"].as_u64().expect("bytes");
    (bytes("rx"), bytes("tx"))
}

#[test]
fn four_pods_run_side_by_side() {
    let node = Containerd::new();
    let began = std::time::Instant::now();
    let names = ["p1", "p2", "p3", "p4"];
    let mut running: Vec<_> = std::thread::scope(|scope| {
        let node = &node;
        let start = |id| scope.spawn(move || node.running(&[], id, FOREVER));
        let started = names.map(start);
        started.into_iter().map(|one| one.join().expect("a pod")).collect()
    });
    eprintln!("4 pods are up after {:?}", began.elapsed());
    let boots = names.map(|id| text(&node.exec(id, "boot", &["cat", "/proc/sys/kernel/random/boot_id"])));
    assert!(
        (1..4).all(|n| boots[n].len() > 30 && !boots[..n].contains(&boots[n])),
        "a guest each: {boots:?}"
    );
    for (id, child) in names.iter().zip(&mut running) {
        node.ctr_ok(&["task", "kill", id]);
        assert_eq!(child.wait().expect("ctr").code(), Some(0));
        node.remove(id);
    }
    node.assert_clean();
}
