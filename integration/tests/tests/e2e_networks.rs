//! The pod networks that network plugins make, seen in a real guest: its addresses and routes, the way out to
//! the gateways, and the way in from the node.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::Output;
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::TcpMaxSeg;

use harness::{Containerd, PodNetwork, until};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A pod's network as a plugin makes it.
struct Network {
    /// Lines of `ip` for the node and for the pod.
    node: &'static str,
    pod: &'static str,
    /// What `ip route` and `ip -6 route` show in the guest, but for the routes that each IPv6 link has.
    routes: &'static [&'static str],
    /// The pod's addresses, with prefix lengths.
    addresses: &'static [&'static str],
    /// Addresses that answer the pod.
    gateways: &'static [&'static str],
    mtu: u32,
    /// That of the default route, which `ip` of the guest does not show; 0: none of its own.
    route_mtu: u32,
}

impl Network {
    fn check(&self) {
        let network = PodNetwork::new(self.node, self.pod);
        let node = Containerd::new();
        let with = format!("network:{}", network.path());
        let script = "echo hello > /tmp/index.html; httpd -p 8080 -h /tmp; \
                      trap 'exit 0' TERM; while :; do sleep 0.1; done";
        let mut running = node.running(&["--with-ns", &with], "c1", script);
        let shell = |id: &str, script: &str| text(&node.exec("c1", id, &["sh", "-c", script]));

        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let shown = shell("routes", "ip route; ip -6 route");
        let of_links = |line: &str| line.starts_with("fe80::/64") || line.starts_with("multicast ff00::/8");
        let routes: BTreeSet<_> = shown.lines().map(words).filter(|line| !of_links(line)).collect();
        assert_eq!(routes, self.routes.iter().map(|line| words(line)).collect(), "{shown}");
        let shown = shell("addresses", "ip addr show eth0; ip addr show net1 2>&1");
        for address in self.addresses {
            assert!(
                shown.contains(&format!("inet {address} ")) || shown.contains(&format!("inet6 {address} ")),
                "{address}: {shown}"
            );
        }
        assert_eq!(shell("mtu", "cat /sys/class/net/eth0/mtu").trim(), self.mtu.to_string());
        for (n, gateway) in self.gateways.iter().enumerate() {
            let mut tried = 0;
            // A guest may lose the first one: an IPv6 address is not used before its link has been asked for it.
            until(&format!("{gateway} answers"), 15, || {
                tried += 1;
                let answer = shell(&format!("out-{n}-{tried}"), &format!("ping -c 1 -W 2 {gateway} 2>&1"));
                answer.contains(" 0% packet loss")
            });
        }
        for address in self.addresses {
            let address: std::net::IpAddr =
                address.split('/').next().expect("address").parse().expect("address");
            let mut answer = String::new();
            until(&format!("{address} answers"), 10, || {
                let Ok(mut stream) = network.connect((address, 8080).into()) else { return false };
                stream.set_read_timeout(Some(Duration::from_secs(5))).expect("limit");
                // What the guest's end has asked for; 12 bytes of each segment are timestamps.
                let segment = getsockopt(&stream, TcpMaxSeg).expect("size of segments");
                let headers = if address.is_ipv4() { 40 } else { 60 } + 12;
                let mtu = if self.route_mtu == 0 { self.mtu } else { self.route_mtu };
                assert_eq!(segment + headers, mtu, "{address}");
                answer.clear();
                stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").is_ok()
                    && stream.read_to_string(&mut answer).is_ok()
            });
            assert!(answer.ends_with("hello\n"), "{address}: {answer}");
        }
        node.ctr_ok(&["task", "kill", "c1"]);
        running.wait().expect("ctr");
        node.remove("c1");
        node.assert_clean();
    }
}

#[test]
fn calico_a_gateway_that_no_address_is_near() {
    Network {
        node: "addr add 169.254.1.1/32 dev eth0
               -6 addr add fe80::ecee:eeff:feee:eeee/64 dev eth0 nodad
               route add 10.244.3.17/32 dev eth0
               -6 route add fd44::3:17/128 dev eth0",
        pod: "link set eth0 mtu 1440
              addr add 10.244.3.17/32 dev eth0
              route add 169.254.1.1 dev eth0 scope link
              route add default via 169.254.1.1 dev eth0
              -6 addr add fd44::3:17/128 dev eth0 nodad
              -6 route add default via fe80::ecee:eeff:feee:eeee dev eth0 metric 1024",
        routes: &[
            "default via 169.254.1.1 dev eth0",
            "169.254.1.1 dev eth0 scope link",
            "fd44::3:17 dev eth0 metric 256",
            "default via fe80::ecee:eeff:feee:eeee dev eth0 metric 1024",
        ],
        addresses: &["10.244.3.17/32", "fd44::3:17/128"],
        gateways: &["169.254.1.1"],
        mtu: 1440,
        route_mtu: 0,
    }
    .check();
}

#[test]
fn cilium_a_router_of_its_own_and_an_mtu_of_the_route() {
    Network {
        node: "addr add 10.0.0.1/32 dev eth0
               -6 addr add fd00::1/128 dev eth0 nodad
               addr add 192.0.2.1/32 dev lo
               -6 addr add 2001:db8::1/128 dev lo
               route add 10.0.0.5/32 dev eth0 src 192.0.2.1
               -6 route add fd00::5/128 dev eth0 src 2001:db8::1",
        pod: "addr add 10.0.0.5/32 dev eth0
              route add 10.0.0.1 dev eth0 scope link
              route add default via 10.0.0.1 dev eth0 mtu 1423
              -6 addr add fd00::5/128 dev eth0 nodad
              -6 route add fd00::1 dev eth0
              -6 route add default via fd00::1 dev eth0 mtu 1423",
        routes: &[
            "default via 10.0.0.1 dev eth0",
            "10.0.0.1 dev eth0 scope link",
            "fd00::1 dev eth0 metric 1024",
            "fd00::5 dev eth0 metric 256",
            "default via fd00::1 dev eth0 metric 1024",
        ],
        addresses: &["10.0.0.5/32", "fd00::5/128"],
        gateways: &["10.0.0.1", "fd00::1"],
        mtu: 1500,
        route_mtu: 1423,
    }
    .check();
}

#[test]
fn gke_a_subnet_that_is_reached_by_the_gateway_alone() {
    Network {
        node: "addr add 10.4.1.1/32 dev eth0
               route add 10.4.1.9/32 dev eth0",
        pod: "link set eth0 mtu 1460
              addr add 10.4.1.9/24 dev eth0
              route del 10.4.1.0/24 dev eth0
              route add 10.4.1.1 dev eth0 scope link src 10.4.1.9
              route add 10.4.1.0/24 via 10.4.1.1 dev eth0 src 10.4.1.9
              route add default via 10.4.1.1 dev eth0",
        routes: &[
            "default via 10.4.1.1 dev eth0",
            "10.4.1.0/24 via 10.4.1.1 dev eth0 src 10.4.1.9",
            "10.4.1.1 dev eth0 scope link src 10.4.1.9",
        ],
        addresses: &["10.4.1.9/24"],
        gateways: &["10.4.1.1"],
        mtu: 1460,
        route_mtu: 0,
    }
    .check();
}

#[test]
fn ovn_kubernetes_routes_to_services_and_joins() {
    Network {
        node: "addr add 10.244.1.1/24 dev eth0
               -6 addr add fd00:10:244:2::1/64 dev eth0 nodad",
        pod: "link set eth0 address 0a:58:0a:f4:01:05 mtu 1400
              addr add 10.244.1.5/24 dev eth0
              route add default via 10.244.1.1 dev eth0
              route add 10.244.0.0/16 via 10.244.1.1 dev eth0
              route add 10.96.0.0/16 via 10.244.1.1 dev eth0
              route add 169.254.0.5 via 10.244.1.1 dev eth0
              route add 100.64.0.0/16 via 10.244.1.1 dev eth0
              -6 addr add fd00:10:244:2::5/64 dev eth0 nodad
              -6 route add default via fd00:10:244:2::1 dev eth0
              -6 route add fd98::/64 via fd00:10:244:2::1 dev eth0",
        routes: &[
            "default via 10.244.1.1 dev eth0",
            "10.96.0.0/16 via 10.244.1.1 dev eth0",
            "10.244.0.0/16 via 10.244.1.1 dev eth0",
            "10.244.1.0/24 dev eth0 scope link src 10.244.1.5",
            "100.64.0.0/16 via 10.244.1.1 dev eth0",
            "169.254.0.5 via 10.244.1.1 dev eth0",
            "fd00:10:244:2::/64 dev eth0 metric 256",
            "fd98::/64 via fd00:10:244:2::1 dev eth0 metric 1024",
            "default via fd00:10:244:2::1 dev eth0 metric 1024",
        ],
        addresses: &["10.244.1.5/24", "fd00:10:244:2::5/64"],
        gateways: &["10.244.1.1", "fd00:10:244:2::1"],
        mtu: 1400,
        route_mtu: 0,
    }
    .check();
}

#[test]
fn terway_an_onlink_gateway_with_a_permanent_neighbour() {
    Network {
        node: "link set eth0 address ee:ff:ff:ff:ff:ff
               addr add 169.254.1.1/32 dev eth0
               route add 172.16.0.7/32 dev eth0
               -6 addr add fe80::1/64 dev eth0 nodad
               -6 route add fd16::7/128 dev eth0",
        pod: "addr add 172.16.0.7/32 dev eth0
              route add default via 169.254.1.1 dev eth0 onlink
              neigh add 169.254.1.1 lladdr ee:ff:ff:ff:ff:ff dev eth0 nud permanent
              -6 addr add fd16::7/128 dev eth0 nodad
              -6 route add default via fe80::1 dev eth0 onlink
              -6 neigh add fe80::1 lladdr ee:ff:ff:ff:ff:ff dev eth0 nud permanent",
        routes: &[
            "default via 169.254.1.1 dev eth0 onlink",
            "fd16::7 dev eth0 metric 256",
            "default via fe80::1 dev eth0 metric 1024 onlink",
        ],
        addresses: &["172.16.0.7/32", "fd16::7/128"],
        gateways: &["169.254.1.1"],
        mtu: 1500,
        route_mtu: 0,
    }
    .check();
}

#[test]
fn multus_a_second_interface_with_routes_and_a_default_of_its_own() {
    Network {
        node: "addr add 10.9.1.1/24 dev eth0
               addr add 192.168.7.1/24 dev net1
               addr add 192.168.9.1 peer 192.168.9.9/32 dev net1",
        pod: "addr add 10.9.1.5/24 dev eth0
              addr add 192.168.7.9/24 dev net1
              addr add 192.168.9.9 peer 192.168.9.1/32 dev net1
              route add default via 10.9.1.1 dev eth0 metric 100
              route add default via 192.168.7.1 dev net1 metric 200
              route add 10.20.0.0/16 nexthop via 192.168.7.1 dev net1 nexthop via 192.168.7.2 dev net1
              route add 10.30.0.0/16 via 192.168.7.1 src 192.168.7.9 dev net1",
        routes: &[
            "default via 10.9.1.1 dev eth0",
            "10.9.1.0/24 dev eth0 scope link src 10.9.1.5",
            "10.20.0.0/16 via 192.168.7.1 dev net1",
            "10.30.0.0/16 via 192.168.7.1 dev net1 src 192.168.7.9",
            "192.168.7.0/24 dev net1 scope link src 192.168.7.9",
            "192.168.9.1 dev net1 scope link src 192.168.9.9",
        ],
        addresses: &["10.9.1.5/24", "192.168.7.9/24"],
        gateways: &["10.9.1.1", "192.168.7.1", "192.168.9.1"],
        mtu: 1500,
        route_mtu: 0,
    }
    .check();
}
