//! What the guest gets of the pod's network namespace: links, addresses, routes and neighbours.
//!
//! What the guest's agent has no word for is refused where the pod's network would be another one without it,
//! and left out with a warning otherwise:
//!
//! | What the kernel tells | In the guest |
//! | --- | --- |
//! | link: name, MAC, MTU, NOARP | the same |
//! | link: kinds other than Ethernet | left out, warning |
//! | link: down, loopback | left out; loopback is the guest's own |
//! | link: promiscuity, queues, qdiscs, offloads, counters | the tap's and the guest's own |
//! | address: local, prefix length | the same |
//! | address: peer | a host address, and the peer's route |
//! | address: lifetime; deprecated, dadfailed, home, autojoin; noprefixroute (IPv6); scope | set without it, warning |
//! | address: link-local, made by the kernel | made by the guest's kernel |
//! | address: label, broadcast, metric, tentative and other flags | set without it |
//! | route: destination, gateway, interface, source, scope, onlink, pervasive, mtu | the same |
//! | route: several next hops | the first that can be set, warning |
//! | route: another metric to the same destination | the one with the lowest metric, warning |
//! | route: metrics other than mtu | set without them, warning |
//! | route: gateway of the other family, encapsulation | the pod is refused |
//! | route: types other than unicast; source prefix, type of service; interfaces the guest has not | left out, warning |
//! | route: other tables than main (except local) | left out, one warning |
//! | route: IPv6, made by the kernel for an address | made by the guest's kernel |
//! | route: age, preference, realm, state of the hop | the host's own |
//! | neighbour: permanent ones: address, MAC, router, proxy | the same |
//! | neighbour: permanent, without an Ethernet address | left out, warning |
//! | neighbour: others | learned by the guest |

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use futures_util::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteProtocol,
    RouteType, RouteVia,
};

use crate::error::{Context, Error, Result};
use crate::host::{netlink, tap};
use crate::limits;
use crate::plan::network::{InterfacePlan, NeighbourPlan, NetworkPlan, RoutePlan, prefix_of};
use crate::plan::vm::MacAddr;

const MAIN_TABLE: u32 = 254;
const LOCAL_TABLE: u32 = 255;

/// ETH_MIN_MTU, what a tap takes at least (include/uapi/linux/if_ether.h).
const MIN_MTU: u32 = 68;

/// The flags of a route that are its configuration. The others are its state on the host, and the guest's
/// kernel refuses some of them.
const ROUTE_FLAGS: u32 = RouteFlags::Onlink.union(RouteFlags::Pervasive).bits();

/// The flags of a neighbour that generated policies of the agent allow; the others tell who manages the entry on
/// the host.
const NEIGHBOUR_FLAGS: u8 = NeighbourFlags::Proxy.union(NeighbourFlags::Router).bits();

/// What the guest gets of the pod's namespace.
pub(crate) fn scan(netns: &Path) -> Result<NetworkPlan> {
    netlink::within(netns, async |handle| {
        let mut scan = Scan::default();
        let links: Vec<_> = handle.link().get().execute().try_collect().await.context("list links")?;
        for link in &links {
            scan.link(link)?;
        }
        let addresses: Vec<_> =
            handle.address().get().execute().try_collect().await.context("list addresses")?;
        for address in &addresses {
            scan.address(address);
        }
        for query in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let routes: Vec<_> =
                handle.route().get(query).execute().try_collect().await.context("list routes")?;
            for route in &routes {
                scan.route(route)?;
            }
        }
        let neighbours: Vec<_> =
            handle.neighbours().get().execute().try_collect().await.context("list neighbours")?;
        for neighbour in &neighbours {
            scan.neighbour(neighbour);
        }
        scan.finish()
    })?
    .ok_or_else(|| {
        Error::invalid(format!(
            "network namespace {}: does not exist (was it removed, or is the path wrong?)",
            netns.display()
        ))
    })
}

/// IPv6 or not, and the destination; None: the default route.
type RouteKey = (bool, Option<(IpAddr, u8)>);

/// The plan while it is put together from the kernel's messages. What the guest cannot have is refused, or
/// left out with a warning.
#[derive(Debug, Default)]
struct Scan {
    plan: NetworkPlan,
    /// The link index of each of the plan's interfaces.
    indexes: Vec<u32>,
    /// Where in the plan the route of a destination is, and its metric.
    routes: HashMap<RouteKey, (usize, u32)>,
    /// How many routes of tables other than main were left out.
    other_tables: usize,
    /// How many warnings there were beyond the bound.
    unsaid: usize,
}

impl Scan {
    fn warn(&mut self, text: String) {
        if self.plan.warnings.len() < limits::host::NETWORK_ITEMS {
            self.plan.warnings.push(text);
        } else {
            self.unsaid = self.unsaid.saturating_add(1);
        }
    }

    /// The name of the interface with this link index, if the guest gets it.
    fn device(&self, index: u32) -> Option<&str> {
        let at = self.indexes.iter().position(|i| *i == index)?;
        self.plan.interfaces.get(at).map(|i| i.name.as_str())
    }

    /// Takes the link, if it is an Ethernet one and up.
    fn link(&mut self, link: &LinkMessage) -> Result<()> {
        let flags = link.header.flags;
        if flags.contains(LinkFlags::Loopback) || !flags.contains(LinkFlags::Up) {
            return Ok(());
        }
        let name = link.attributes.iter().find_map(|a| match a {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        let mac = link.attributes.iter().find_map(|a| match a {
            LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => None,
        });
        let mtu = link.attributes.iter().find_map(|a| match a {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        let ethernet = link.header.link_layer_type == LinkLayerType::Ether;
        let (Some(name), Some(mac), Some(mtu), true) = (&name, mac, mtu, ethernet) else {
            let name = name.unwrap_or_else(|| link.header.index.to_string());
            self.warn(format!("link {name}: left out: only Ethernet interfaces are given to a guest"));
            return Ok(());
        };
        if tap::is_ours(name) {
            return Err(Error::precondition(format!("the namespace has a tap {name} of another sandbox")));
        }
        if mtu < MIN_MTU {
            return Err(Error::precondition(format!(
                "link {name}: an MTU of {mtu}: a guest's interface needs {MIN_MTU} at least"
            )));
        }
        let no_arp = flags.contains(LinkFlags::Noarp);
        let interface =
            InterfacePlan { name: name.clone(), mac: MacAddr(mac), mtu, addresses: Vec::new(), no_arp };
        self.plan.interfaces.push(interface);
        self.indexes.push(link.header.index);
        Ok(())
    }

    /// Takes an address of an interface of the pod, unless the guest's kernel makes it itself.
    fn address(&mut self, message: &AddressMessage) {
        let header = &message.header;
        let Some(at) = self.indexes.iter().position(|i| *i == header.index) else { return };
        let Some(interface) = self.plan.interfaces.get_mut(at) else { return };
        let (mut ip, mut peer) = (None, None);
        let mut flags = AddressFlags::from_bits_retain(header.flags.bits().into());
        let mut lost = Vec::new();
        for attribute in &message.attributes {
            match attribute {
                // On a point-to-point link Address is the peer's; Local is always ours.
                AddressAttribute::Local(local) => ip = Some(*local),
                AddressAttribute::Address(address) => peer = Some(*address),
                AddressAttribute::Flags(all) => flags = *all,
                AddressAttribute::CacheInfo(info) if info.ifa_valid != u32::MAX => {
                    lost.push(format!("the end of its life in {} s", info.ifa_valid));
                }
                _ => {}
            }
        }
        let Some(ip) = ip.or(peer) else { return };
        if is_kernels_own(ip, interface.mac, flags) {
            return;
        }
        let names = [
            (AddressFlags::Deprecated, "deprecated"),
            (AddressFlags::Dadfailed, "dadfailed"),
            (AddressFlags::Homeaddress, "home"),
            (AddressFlags::Mcautojoin, "autojoin"),
            // The agent replaces the routes of IPv4 that the guest's kernel makes.
            (AddressFlags::Noprefixroute, if ip.is_ipv6() { "noprefixroute" } else { "" }),
        ];
        let set = names.iter().filter(|(flag, name)| flags.contains(*flag) && !name.is_empty());
        lost.extend(set.map(|(_, name)| (*name).to_owned()));
        if header.scope != AddressScope::Universe && !is_link_local(ip) {
            lost.push(format!("scope {:?}", header.scope).to_lowercase());
        }
        // What lies behind a peer is a route, which is carried as such.
        let prefix = match peer.filter(|peer| *peer != ip) {
            Some(_) if ip.is_ipv6() => 128,
            Some(_) => 32,
            None => header.prefix_len,
        };
        interface.addresses.push((ip, prefix));
        if !lost.is_empty() {
            let text = format!(
                "address {ip}/{prefix} dev {}: set in the guest without {}",
                interface.name,
                lost.join(", ")
            );
            self.warn(text);
        }
    }

    /// True for a route that the guest's kernel makes when it gets the plan's addresses.
    fn is_of_an_address(&self, (ip, prefix): (IpAddr, u8)) -> bool {
        let mut addresses = self.plan.interfaces.iter().flat_map(|i| &i.addresses);
        ip.is_multicast()
            || is_link_local(ip)
            || addresses.any(|(own, length)| *length == prefix && prefix_of(*own, *length) == (ip, prefix))
    }

    /// Takes a unicast route of the main table over an interface of the pod.
    fn route(&mut self, message: &RouteMessage) -> Result<()> {
        let header = &message.header;
        let ipv6 = header.address_family == AddressFamily::Inet6;
        if header.flags.contains(RouteFlags::Cloned) {
            return Ok(()); // of the cache
        }
        let found = Found::new(message);
        // The agent replaces what the guest's kernel makes for IPv4, and keeps it for IPv6.
        if ipv6
            && header.protocol == RouteProtocol::Kernel
            && found.destination.is_some_and(|to| self.is_of_an_address(to))
        {
            return Ok(());
        }
        let hops: Vec<_> = found.hops.iter().filter_map(|h| Some((h, self.device(h.index)?))).collect();
        if found.table != MAIN_TABLE {
            if found.table != LOCAL_TABLE && !hops.is_empty() {
                self.other_tables = self.other_tables.saturating_add(1);
            }
            return Ok(());
        }
        let to = destination_text(found.destination);
        let unusable = if header.kind != RouteType::Unicast {
            Some(format!("the guest's agent cannot set a route of type {:?}", header.kind))
        } else if header.source_prefix_length > 0 || header.tos > 0 {
            Some("the guest's agent cannot set a route for some sources or types of service only".into())
        } else if hops.is_empty() {
            Some("it leads over no interface that the guest has".into())
        } else {
            None
        };
        if let Some(why) = unusable {
            self.warn(format!("route {to}: left out: {why}"));
            return Ok(());
        }
        let Some((hop, device)) = hops.iter().find(|(hop, _)| hop.special.is_none()) else {
            let (special, device) = hops
                .first()
                .map_or(("", ""), |(hop, device)| (hop.special.as_deref().unwrap_or(""), *device));
            return Err(Error::precondition(format!(
                "route {to} {special} dev {device}: the guest's agent cannot set a gateway of another address \
                 family, or an encapsulation; have the network plugin give the pod a route without it \
                 (an IPv4 gateway outside of the pod's subnet can be marked onlink)"
            )));
        };
        let route = RoutePlan {
            destination: found.destination,
            gateway: hop.gateway,
            source: found.source,
            device: (*device).to_owned(),
            ipv6,
            scope: u8::from(header.scope),
            flags: hop.flags & ROUTE_FLAGS,
            mtu: found.mtu,
        };
        if found.hops.len() > 1 {
            let count = found.hops.len();
            self.warn(format!(
                "route {}: the only one of {count} next hops that is used",
                route_text(&route)
            ));
        }
        if !found.other_metrics.is_empty() {
            let metrics = found.other_metrics.join(", ");
            self.warn(format!("route {}: set in the guest without {metrics}", route_text(&route)));
        }
        self.take(route, found.metric);
        Ok(())
    }

    /// Keeps the best route of each destination: the agent knows no metric, and the last one that it is told
    /// replaces the others.
    fn take(&mut self, route: RoutePlan, metric: u32) {
        let key = (route.ipv6, route.destination);
        let Some((at, kept)) = self.routes.get(&key).copied() else {
            self.routes.insert(key, (self.plan.routes.len(), metric));
            return self.plan.routes.push(route);
        };
        // Of equal ones the kernel names the one that it takes first.
        let better = self.plan.routes.get_mut(at).filter(|_| metric < kept);
        let worse = match better {
            Some(place) => {
                self.routes.insert(key, (at, metric));
                (std::mem::replace(place, route), kept)
            }
            None => (route, metric),
        };
        self.warn(format!(
            "route {} metric {}: left out: the guest gets one route to a destination, the one with the lowest \
             metric",
            route_text(&worse.0),
            worse.1
        ));
    }

    fn neighbour(&mut self, message: &NeighbourMessage) {
        let Some(device) = self.device(message.header.ifindex).map(str::to_owned) else { return };
        if message.header.state != NeighbourState::Permanent {
            return;
        }
        let mut address = None;
        let mut mac = None;
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                    address = Some(IpAddr::V4(*ip))
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                    address = Some(IpAddr::V6(*ip))
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = <[u8; 6]>::try_from(bytes.as_slice()).ok()
                }
                _ => {}
            }
        }
        let (Some(address), Some(mac)) = (address, mac) else {
            let name = address.map_or("without an address".to_owned(), |ip| ip.to_string());
            return self.warn(format!("neighbour {name} dev {device}: left out: it has no Ethernet address"));
        };
        self.plan.neighbours.push(NeighbourPlan {
            address,
            mac: MacAddr(mac),
            device,
            state: u16::from(message.header.state),
            flags: message.header.flags.bits() & NEIGHBOUR_FLAGS,
        });
    }

    fn finish(mut self) -> Result<NetworkPlan> {
        let plan = &self.plan;
        let addresses = plan.interfaces.iter().map(|i| i.addresses.len()).sum::<usize>();
        for (count, what) in [
            (plan.interfaces.len(), "interfaces"),
            (addresses, "addresses"),
            (plan.routes.len(), "routes"),
            (plan.neighbours.len(), "permanent neighbours"),
        ] {
            if count > limits::host::NETWORK_ITEMS {
                return Err(Error::precondition(format!(
                    "{count} {what} for the guest: at most {} are supported; have the network plugin set fewer",
                    limits::host::NETWORK_ITEMS
                )));
            }
        }
        if self.other_tables > 0 {
            let count = self.other_tables;
            self.warn(format!(
                "routes of tables other than main: {count} left out: the guest has no ip rules"
            ));
        }
        if self.unsaid > 0 {
            self.plan.warnings.push(format!("{} more warnings about the pod's network", self.unsaid));
        }
        Ok(self.plan)
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.segments().first().is_some_and(|s| s & 0xffc0 == 0xfe80))
}

/// True for the link-local address that a kernel gives an interface by itself, from its MAC (RFC 4291, appendix A)
/// or from a secret of its own (RFC 7217).
fn is_kernels_own(ip: IpAddr, mac: MacAddr, flags: AddressFlags) -> bool {
    let [a, b, c, d, e, f] = mac.0;
    let interface = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let from_mac = matches!(ip, IpAddr::V6(ip) if ip.octets().ends_with(&interface));
    is_link_local(ip) && (from_mac || flags.contains(AddressFlags::StablePrivacy))
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// As `ip route` writes it.
fn destination_text(destination: Option<(IpAddr, u8)>) -> String {
    destination.map_or("default".into(), |(ip, prefix)| format!("{ip}/{prefix}"))
}

fn route_text(route: &RoutePlan) -> String {
    let via = route.gateway.map(|ip| format!(" via {ip}")).unwrap_or_default();
    format!("{}{via} dev {}", destination_text(route.destination), route.device)
}

/// What a message says about a route.
#[derive(Debug)]
struct Found {
    table: u32,
    destination: Option<(IpAddr, u8)>,
    source: Option<IpAddr>,
    metric: u32,
    mtu: u32,
    /// Metrics that the agent cannot set.
    other_metrics: Vec<String>,
    hops: Vec<Hop>,
}

/// One of the ways that a route can take.
#[derive(Debug)]
struct Hop {
    index: u32,
    gateway: Option<IpAddr>,
    flags: u32,
    /// What the agent cannot set: a route without it would be another one.
    special: Option<String>,
}

impl Found {
    fn new(message: &RouteMessage) -> Self {
        let header = &message.header;
        let mut found = Self {
            table: u32::from(header.table),
            destination: None,
            source: None,
            metric: 0,
            mtu: 0,
            other_metrics: Vec::new(),
            hops: Vec::new(),
        };
        let ipv6 = header.address_family == AddressFamily::Inet6;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) if header.destination_prefix_length > 0 => {
                    found.destination =
                        ip_of(address).map(|ip| prefix_of(ip, header.destination_prefix_length));
                }
                RouteAttribute::PrefSource(address) => found.source = ip_of(address),
                RouteAttribute::Table(number) => found.table = *number,
                RouteAttribute::Priority(metric) => found.metric = *metric,
                RouteAttribute::Metrics(metrics) => {
                    for metric in metrics {
                        match metric {
                            RouteMetric::Mtu(mtu) => found.mtu = *mtu,
                            other => found.other_metrics.push(format!("{other:?}")),
                        }
                    }
                }
                RouteAttribute::MultiPath(hops) => {
                    let hop = |hop: &RouteNextHop| {
                        let flags = u32::from(hop.flags.bits());
                        Hop::new(hop.interface_index, flags, &hop.attributes, ipv6)
                    };
                    found.hops.extend(hops.iter().map(hop));
                }
                RouteAttribute::Oif(index) => {
                    found.hops.push(Hop::new(*index, header.flags.bits(), &message.attributes, ipv6));
                }
                // Gateways and encapsulations are the hops'; the rest says how the host's kernel keeps the
                // route (its age, its preference among equal ones), not where it leads.
                _ => {}
            }
        }
        found
    }
}

impl Hop {
    fn new(index: u32, flags: u32, attributes: &[RouteAttribute], ipv6: bool) -> Self {
        let mut hop = Self { index, gateway: None, flags, special: None };
        for attribute in attributes {
            match attribute {
                RouteAttribute::Gateway(address) => hop.gateway = ip_of(address),
                RouteAttribute::Via(RouteVia::Inet(ip)) if !ipv6 => hop.gateway = Some(IpAddr::V4(*ip)),
                RouteAttribute::Via(RouteVia::Inet6(ip)) if ipv6 => hop.gateway = Some(IpAddr::V6(*ip)),
                RouteAttribute::Via(RouteVia::Inet(ip)) => hop.special = Some(format!("via inet {ip}")),
                RouteAttribute::Via(RouteVia::Inet6(ip)) => hop.special = Some(format!("via inet6 {ip}")),
                RouteAttribute::Via(other) => hop.special = Some(format!("via {other:?}")),
                RouteAttribute::EncapType(kind) => hop.special = Some(format!("encap {kind:?}")),
                _ => {}
            }
        }
        hop
    }
}
#[cfg(test)]
#[path = "network_scan_tests.rs"]
mod tests;
