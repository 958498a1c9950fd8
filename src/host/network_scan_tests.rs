//! Each row of the tables as a message of the kernel.

use rtnetlink::packet_route::route::RouteNextHopFlags;

use super::*;

const ETH0: u32 = 2;
const NET1: u32 = 3;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("ip")
}

/// A namespace with eth0 and net1, whose links come as the kernel tells them.
fn scan() -> Scan {
    let mut scan = Scan::default();
    for (index, name) in [(1, "lo"), (ETH0, "eth0"), (NET1, "net1"), (4, "wg0")] {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.link_layer_type = LinkLayerType::Ether;
        match name {
            "lo" => link.header.flags |= LinkFlags::Loopback,
            "wg0" => link.header.link_layer_type = LinkLayerType::None,
            _ => {}
        }
        link.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::Mtu(1500),
        ];
        scan.link(&link).expect("link");
    }
    scan
}

fn message(family: AddressFamily, to: Option<(&str, u8)>, attributes: Vec<RouteAttribute>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = 254;
    message.header.kind = RouteType::Unicast;
    message.header.protocol = RouteProtocol::Static;
    message.attributes = attributes;
    if let Some((address, prefix)) = to {
        message.header.destination_prefix_length = prefix;
        message.attributes.push(RouteAttribute::Destination(ip(address).into()));
    }
    message
}

fn default4(attributes: Vec<RouteAttribute>) -> RouteMessage {
    message(AddressFamily::Inet, None, attributes)
}

fn default6(attributes: Vec<RouteAttribute>) -> RouteMessage {
    message(AddressFamily::Inet6, None, attributes)
}

fn via(gateway: &str) -> RouteAttribute {
    RouteAttribute::Gateway(ip(gateway).into())
}

fn hop(index: u32, attributes: Vec<RouteAttribute>) -> RouteNextHop {
    let mut hop = RouteNextHop::default();
    hop.interface_index = index;
    hop.attributes = attributes;
    hop
}

fn with(mut message: RouteMessage, change: impl FnOnce(&mut RouteMessage)) -> RouteMessage {
    change(&mut message);
    message
}

/// The routes of the plan with their flags and MTUs, and the warnings about routes; or the error.
fn planned(messages: &[RouteMessage]) -> (Vec<String>, Vec<String>) {
    let mut scan = scan();
    let links = scan.plan.warnings.len();
    let result = messages.iter().try_for_each(|m| scan.route(m)).and_then(|()| scan.finish());
    match result {
        Ok(plan) => {
            let text = |r: &RoutePlan| format!("{} flags {} mtu {}", route_text(r), r.flags, r.mtu);
            (plan.routes.iter().map(text).collect(), plan.warnings[links..].to_vec())
        }
        Err(e) => (Vec::new(), vec![e.to_string()]),
    }
}

#[test]
#[allow(clippy::too_many_lines)] // a table
fn a_route_is_told_whole_or_named() {
    use RouteAttribute::{Metrics, MultiPath, Oif, Priority, Via};
    let linkdown = RouteFlags::Onlink | RouteFlags::Linkdown;
    let mut onlink_hop = hop(ETH0, vec![via("10.9.1.1")]);
    onlink_hop.flags = RouteNextHopFlags::Onlink;
    let metric = |gateway, index, metric| default4(vec![via(gateway), Oif(index), Priority(metric)]);
    let inet6 = || Via(RouteVia::Inet6("fe80::1".parse().expect("ip")));
    // Messages, the routes of the plan, and what the warnings (or the error) begin with.
    let cases: Vec<(Vec<RouteMessage>, &[&str], &[&str])> = vec![
        (
            vec![with(default4(vec![via("169.254.1.1"), Oif(ETH0)]), |m| m.header.flags = linkdown)],
            &["default via 169.254.1.1 dev eth0 flags 4 mtu 0"],
            &[],
        ),
        (
            vec![default6(vec![
                via("fe80::1"),
                Oif(ETH0),
                Metrics(vec![RouteMetric::Hoplimit(64)]),
                Priority(1024),
            ])],
            &["default via fe80::1 dev eth0 flags 0 mtu 0"],
            &["route default via fe80::1 dev eth0: set in the guest without Hoplimit(64)"],
        ),
        (
            vec![default4(vec![via("10.9.1.1"), Oif(ETH0), Metrics(vec![RouteMetric::Mtu(1400)])])],
            &["default via 10.9.1.1 dev eth0 flags 0 mtu 1400"],
            &[],
        ),
        (
            vec![default4(vec![MultiPath(vec![
                hop(9, vec![via("10.1.1.1")]),
                onlink_hop,
                hop(NET1, vec![via("10.9.1.2")]),
            ])])],
            &["default via 10.9.1.1 dev eth0 flags 4 mtu 0"],
            &["route default via 10.9.1.1 dev eth0: the only one of 3 next hops"],
        ),
        (
            vec![default4(vec![MultiPath(vec![hop(ETH0, vec![inet6()]), hop(NET1, vec![via("10.9.1.2")])])])],
            &["default via 10.9.1.2 dev net1 flags 0 mtu 0"],
            &["route default via 10.9.1.2 dev net1: the only one of 2 next hops"],
        ),
        (vec![default4(vec![inet6(), Oif(ETH0)])], &[], &["route default via inet6 fe80::1 dev eth0: "]),
        (
            vec![default4(vec![Via(RouteVia::Inet([10, 9, 1, 1].into())), Oif(ETH0)])],
            &["default via 10.9.1.1 dev eth0 flags 0 mtu 0"],
            &[],
        ),
        (
            vec![metric("10.9.1.1", ETH0, 100), metric("192.168.7.1", NET1, 200)],
            &["default via 10.9.1.1 dev eth0 flags 0 mtu 0"],
            &["route default via 192.168.7.1 dev net1 metric 200: left out"],
        ),
        (
            vec![metric("10.9.1.1", ETH0, 200), metric("192.168.7.1", NET1, 100)],
            &["default via 192.168.7.1 dev net1 flags 0 mtu 0"],
            &["route default via 10.9.1.1 dev eth0 metric 200: left out"],
        ),
        (
            vec![default4(vec![via("10.9.1.1"), Oif(ETH0)]), default6(vec![via("fe80::1"), Oif(NET1)])],
            &["default via 10.9.1.1 dev eth0 flags 0 mtu 0", "default via fe80::1 dev net1 flags 0 mtu 0"],
            &[],
        ),
        (
            vec![
                with(message(AddressFamily::Inet, Some(("10.8.0.0", 16)), vec![]), |m| {
                    m.header.kind = RouteType::BlackHole;
                }),
                message(AddressFamily::Inet, Some(("10.7.0.0", 16)), vec![Oif(4)]),
                with(default4(vec![Oif(ETH0)]), |m| m.header.tos = 8),
            ],
            &[],
            &["route 10.8.0.0/16: left out", "route 10.7.0.0/16: left out", "route default: left out"],
        ),
    ];
    for (messages, routes, texts) in cases {
        let (got, warnings) = planned(&messages);
        assert_eq!(got, routes, "{messages:?}");
        assert_eq!(warnings.len(), texts.len(), "{warnings:?}");
        for (warning, text) in warnings.iter().zip(texts) {
            assert!(warning.contains(text), "{warning:?} does not say {text:?}");
        }
    }
}

/// Host routes to `count` addresses in a table.
fn many(table: u32, count: u32) -> Vec<RouteMessage> {
    let route = |n: u32| {
        let address = std::net::Ipv4Addr::from(0xac14_0000 + n).to_string();
        let attributes = vec![via("10.9.1.1"), RouteAttribute::Oif(ETH0), RouteAttribute::Table(table)];
        message(AddressFamily::Inet, Some((&address, 32)), attributes)
    };
    (0..count).map(route).collect()
}

#[test]
fn only_what_the_guest_gets_counts_and_too_much_is_refused() {
    let way_out = default4(vec![via("10.9.1.1"), RouteAttribute::Oif(ETH0)]);
    let messages = [many(100, 300), many(LOCAL_TABLE, 300), vec![way_out]].concat();
    let (routes, warnings) = planned(&messages);
    assert_eq!(routes, ["default via 10.9.1.1 dev eth0 flags 0 mtu 0"]);
    let [warning] = warnings.as_slice() else { panic!("one warning: {warnings:?}") };
    assert!(warning.starts_with("routes of tables other than main: 300 left out"), "{warning}");

    assert_eq!(planned(&many(MAIN_TABLE, 256)).0.len(), 256);
    let (routes, error) = planned(&many(MAIN_TABLE, 257));
    assert!(
        routes.is_empty() && error.concat().contains("257 routes for the guest: at most 256"),
        "{error:?}"
    );

    let mut scan = scan();
    for n in 0..300_u32 {
        let mut address = AddressMessage::default();
        address.header.index = ETH0;
        address.header.prefix_len = 32;
        address.attributes = vec![AddressAttribute::Local(IpAddr::V4((0x0a09_0000 + n).into()))];
        scan.address(&address);
    }
    let error = scan.finish().expect_err("too many addresses").to_string();
    assert!(error.contains("300 addresses for the guest: at most 256"), "{error}");
}

#[test]
fn warnings_are_bounded_and_links_and_neighbours_are_told() {
    let mut scan = scan();
    assert_eq!(scan.plan.interfaces.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["eth0", "net1"]);
    assert!(scan.plan.warnings.concat().starts_with("link wg0: left out"), "{:?}", scan.plan.warnings);
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.ifindex = NET1;
    neighbour.header.state = NeighbourState::Permanent;
    neighbour.header.flags = NeighbourFlags::Router | NeighbourFlags::ExtLearned;
    neighbour.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 9, 1, 7].into())),
        NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 7]),
    ];
    scan.neighbour(&neighbour);
    for message in many(MAIN_TABLE, 300) {
        scan.route(&with(message, |m| m.header.kind = RouteType::Unreachable)).expect("left out");
    }
    let plan = scan.finish().expect("plan");
    let [told] = plan.neighbours.as_slice() else { panic!("one neighbour: {:?}", plan.neighbours) };
    assert_eq!((told.device.as_str(), told.state, told.flags), ("net1", 128, 0x80));
    assert_eq!(plan.warnings.len(), 257);
    assert_eq!(plan.warnings.last().expect("last"), "45 more warnings about the pod's network");
}

#[test]
fn an_address_is_told_whole_or_named() {
    use AddressAttribute::{Address, CacheInfo, Flags, Local};
    let until = |valid| {
        let mut info = rtnetlink::packet_route::address::CacheInfo::default();
        (info.ifa_preferred, info.ifa_valid) = (valid, valid);
        CacheInfo(info)
    };
    // Prefix length, scope and attributes; what the guest gets; what the warning ends with.
    let cases: [(u8, AddressScope, Vec<AddressAttribute>, &str, &str); 12] = [
        (24, AddressScope::Universe, vec![Address(ip("10.9.1.5")), Local(ip("10.9.1.5"))], "10.9.1.5/24", ""),
        (32, AddressScope::Universe, vec![Address(ip("10.9.1.1")), Local(ip("10.9.1.5"))], "10.9.1.5/32", ""),
        (24, AddressScope::Universe, vec![Address(ip("10.8.1.1")), Local(ip("10.9.1.5"))], "10.9.1.5/32", ""),
        (64, AddressScope::Universe, vec![Address(ip("fd88::1")), Local(ip("fd88::5"))], "fd88::5/128", ""),
        (64, AddressScope::Universe, vec![Address(ip("fd88::5")), until(u32::MAX)], "fd88::5/64", ""),
        (
            64,
            AddressScope::Universe,
            vec![Address(ip("fd88::5")), until(3600), Flags(AddressFlags::Deprecated)],
            "fd88::5/64",
            "without the end of its life in 3600 s, deprecated",
        ),
        (
            64,
            AddressScope::Universe,
            vec![Address(ip("fd88::5")), Flags(AddressFlags::Noprefixroute | AddressFlags::Permanent)],
            "fd88::5/64",
            "without noprefixroute",
        ),
        (
            24,
            AddressScope::Universe,
            vec![Local(ip("10.9.1.5")), Flags(AddressFlags::Noprefixroute)],
            "10.9.1.5/24",
            "",
        ),
        (24, AddressScope::Link, vec![Local(ip("10.9.1.5"))], "10.9.1.5/24", "without scope link"),
        (64, AddressScope::Link, vec![Address(ip("fe80::ff:fe00:1"))], "", ""),
        (64, AddressScope::Link, vec![Address(ip("fe80::7")), Flags(AddressFlags::StablePrivacy)], "", ""),
        (64, AddressScope::Link, vec![Address(ip("fe80::7"))], "fe80::7/64", ""),
    ];
    for (prefix, scope, attributes, wanted, warning) in cases {
        let mut scan = scan();
        let links = scan.plan.warnings.len();
        let mut message = AddressMessage::default();
        (message.header.index, message.header.prefix_len, message.header.scope) = (ETH0, prefix, scope);
        message.attributes = attributes;
        scan.address(&message);
        let plan = scan.finish().expect("plan");
        let got: Vec<_> = plan.interfaces[0].addresses.iter().map(|(ip, n)| format!("{ip}/{n}")).collect();
        assert_eq!(got.concat(), wanted, "{message:?}");
        let told = plan.warnings[links..].concat();
        assert!(told.is_empty() == warning.is_empty() && told.ends_with(warning), "{message:?}: {told:?}");
    }
}

/// The agent keeps what the guest's kernel makes, and nobody else makes the rest.
#[test]
fn an_ipv6_route_of_the_kernel_is_carried_unless_it_is_of_an_address() {
    let mut scan = scan();
    let mut address = AddressMessage::default();
    (address.header.index, address.header.prefix_len) = (ETH0, 64);
    address.attributes = vec![AddressAttribute::Address(ip("fd88::5"))];
    scan.address(&address);
    for (to, prefix) in [("fd88::", 64), ("fe80::", 64), ("ff00::", 8), ("fd99::1", 128), ("fd88::", 96)] {
        let route = message(AddressFamily::Inet6, Some((to, prefix)), vec![RouteAttribute::Oif(ETH0)]);
        scan.route(&with(route, |m| m.header.protocol = RouteProtocol::Kernel)).expect("route");
    }
    let routes: Vec<_> = scan.finish().expect("plan").routes.iter().map(route_text).collect();
    assert_eq!(routes, ["fd99::1/128 dev eth0", "fd88::/96 dev eth0"]);
}
