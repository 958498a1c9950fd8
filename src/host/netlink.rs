//! Links, addresses, routes, neighbours and mirroring of a network namespace.
//!
//! Every function enters the namespace on a separate thread and blocks: call it on a thread of
//! `begun::blocking`. Mirroring is an ingress qdisc on the pod's interface and on our tap, each
//! with one filter that redirects everything to the other.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteProtocol,
    RouteType, RouteVia,
};
use rtnetlink::packet_route::tc::TcAttribute;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::error::{Context, Error, Result};
use crate::host::{netns, tap};
use crate::limits;
use crate::plan::network::{InterfacePlan, NeighbourPlan, NetworkPlan, RoutePlan, prefix_of};
use crate::plan::vm::MacAddr;

/// The priority of our filters, which tells them from others: an arbitrary number.
const PRIORITY: u16 = 0x4b53;

const ETH_P_ALL: u16 = 0x0003;
const MAIN_TABLE: u32 = 254;
const LOCAL_TABLE: u32 = 255;

/// The flags of a route that are its configuration. The others are its state on the host, and the guest's
/// kernel refuses some of them.
const ROUTE_FLAGS: u32 = RouteFlags::Onlink.union(RouteFlags::Pervasive).bits();

/// The flags of a neighbour that generated policies of the agent allow; the others tell who manages the entry on
/// the host.
const NEIGHBOUR_FLAGS: u8 = NeighbourFlags::Proxy.union(NeighbourFlags::Router).bits();

/// Runs netlink work in a namespace; None: the namespace is gone.
fn within<T: Send>(path: &Path, work: impl AsyncFnOnce(Handle) -> Result<T> + Send) -> Result<Option<T>> {
    netns::within(path, || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().context("open netlink")?;
            tokio::pin!(connection);
            let work = work(handle);
            tokio::pin!(work);
            tokio::select! {
                result = tokio::time::timeout(limits::host::NETLINK, work) => {
                    result.unwrap_or_else(|_| Err(Error::deadline("netlink: no answer from the kernel")))
                }
                () = &mut connection => Err(Error::internal("netlink: the connection ended")),
            }
        })
    })
}

/// What the guest gets of the pod's namespace.
pub(crate) fn scan(netns: &Path) -> Result<NetworkPlan> {
    within(netns, async |handle| {
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
        let no_arp = flags.contains(LinkFlags::Noarp);
        let interface =
            InterfacePlan { name: name.clone(), mac: MacAddr(mac), mtu, addresses: Vec::new(), no_arp };
        self.plan.interfaces.push(interface);
        self.indexes.push(link.header.index);
        Ok(())
    }

    fn address(&mut self, address: &AddressMessage) {
        let Some(at) = self.indexes.iter().position(|i| *i == address.header.index) else { return };
        let mut ip = None;
        for attribute in &address.attributes {
            match attribute {
                // On a point-to-point link Address is the peer's; Local is always ours.
                AddressAttribute::Local(local) => ip = Some(*local),
                AddressAttribute::Address(own) if ip.is_none() => ip = Some(*own),
                _ => {}
            }
        }
        let Some(ip) = ip.filter(|ip| !is_link_local(*ip)) else { return };
        if let Some(interface) = self.plan.interfaces.get_mut(at) {
            interface.addresses.push((ip, address.header.prefix_len));
        }
    }

    /// Takes a unicast route of the main table over an interface of the pod.
    fn route(&mut self, message: &RouteMessage) -> Result<()> {
        let header = &message.header;
        let ipv6 = header.address_family == AddressFamily::Inet6;
        // The guest's kernel makes the IPv6 routes of its addresses itself; clones are the cache's.
        if ipv6 && header.protocol == RouteProtocol::Kernel || header.flags.contains(RouteFlags::Cloned) {
            return Ok(());
        }
        let found = Found::new(message);
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

/// The guest's kernel makes these addresses itself.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.segments().first().is_some_and(|s| s & 0xffc0 == 0xfe80))
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

async fn index_of(handle: &Handle, name: &str) -> Result<Option<u32>> {
    let mut found = handle.link().get().match_name(name.to_owned()).execute();
    match found.try_next().await {
        Ok(link) => Ok(link.map(|l| l.header.index)),
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -nix::libc::ENODEV => Ok(None),
        Err(e) => Err(e).with_context(|| format!("find link {name}")),
    }
}

async fn existing(handle: &Handle, name: &str) -> Result<u32> {
    index_of(handle, name).await?.ok_or_else(|| Error::not_found(format!("link {name}: does not exist")))
}

/// Creates a tap in the namespace and sets it up, with the MTU of the link that it will mirror.
pub(crate) fn make_tap(netns: &Path, name: &str, mtu: u32) -> Result<OwnedFd> {
    within(netns, async |handle| {
        let fd = tap::make(name)?;
        let index = existing(&handle, name).await?;
        let up = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
        handle.link().set(up).execute().await.with_context(|| format!("set tap {name} up"))?;
        Ok(fd)
    })?
    .ok_or_else(|| Error::not_found(format!("network namespace {}: gone", netns.display())))
}

/// Refuses a link that has an ingress qdisc: our mirroring would break its filters.
pub(crate) fn check_free(netns: &Path, link: &str) -> Result<()> {
    within(netns, async |handle| {
        let index = existing(&handle, link).await?;
        if has_ingress(&handle, index).await? {
            return Err(Error::precondition(format!(
                "link {link}: has an ingress qdisc already; its traffic cannot be mirrored to the guest"
            )));
        }
        Ok(())
    })
    .map(|_| ())
}

async fn has_ingress(handle: &Handle, index: u32) -> Result<bool> {
    let signed = i32::try_from(index).context("link index")?;
    let found: Vec<_> =
        handle.qdisc().get().index(signed).execute().try_collect().await.context("list qdiscs")?;
    let is_ingress =
        |a: &TcAttribute| matches!(a, TcAttribute::Kind(kind) if kind == "ingress" || kind == "clsact");
    Ok(found.iter().any(|q| q.header.index == signed && q.attributes.iter().any(is_ingress)))
}

/// Redirects everything that comes in on one of the two links to the other.
pub(crate) fn mirror(netns: &Path, link: &str, tap: &str) -> Result<()> {
    within(netns, async |handle| {
        let (link, tap) = (existing(&handle, link).await?, existing(&handle, tap).await?);
        redirect(&handle, link, tap).await?;
        redirect(&handle, tap, link).await
    })
    .with_context(|| format!("mirror {link} and {tap}"))
    .map(|_| ())
}

async fn redirect(handle: &Handle, from: u32, to: u32) -> Result<()> {
    let from = i32::try_from(from).context("link index")?;
    handle.qdisc().add(from).ingress().execute().await.context("add ingress qdisc")?;
    let filter =
        handle.traffic_filter(from).add().parent(0xffff_0000).priority(PRIORITY).protocol(ETH_P_ALL.to_be());
    let added = async {
        filter.redirect(to).context("redirect filter")?.execute().await.context("add redirect filter")
    };
    let added = added.await;
    if added.is_err() {
        // Later nothing tells it from one of others.
        remove_ingress(handle, from).await?;
    }
    added
}

async fn remove_ingress(handle: &Handle, link: i32) -> Result<()> {
    let mut del = handle.qdisc().del(link);
    let message = del.message_mut();
    message.header.parent = rtnetlink::packet_route::tc::TcHandle::INGRESS;
    message.attributes.push(TcAttribute::Kind("ingress".into()));
    del.execute().await.context("remove ingress qdisc")
}

/// Removes our mirroring from a link: the qdisc with our filter, unless it has filters of others. A qdisc
/// without our filter is not ours, and a link that does not exist is success.
pub(crate) fn remove_mirror(netns: &Path, link: &str) -> Result<()> {
    within(netns, async |handle| {
        let Some(index) = index_of(&handle, link).await? else { return Ok(()) };
        if !has_ingress(&handle, index).await? {
            return Ok(());
        }
        let index = i32::try_from(index).context("link index")?;
        let filters: Vec<_> = handle
            .traffic_filter(index)
            .get()
            .ingress()
            .execute()
            .try_collect()
            .await
            .context("list filters")?;
        let (ours, others): (Vec<_>, Vec<_>) =
            filters.iter().partition(|f| f.header.info >> 16 == u32::from(PRIORITY));
        match (ours.is_empty(), others.is_empty()) {
            (true, _) => Ok(()),
            (false, true) => remove_ingress(&handle, index).await,
            (false, false) => Err(Error::precondition(format!(
                "link {link}: has filters of others; our mirroring is not removed"
            ))),
        }
    })
    .map(|_| ())
}

/// Removes a tap of ours; one that does not exist is success. QEMU's end has normally removed it already.
pub(crate) fn remove_tap(netns: &Path, name: &str) -> Result<()> {
    if !tap::is_ours(name) {
        return Err(Error::internal(format!("journal: {name:?} is not the name of a tap of ours")));
    }
    within(netns, async |handle| {
        let Some(index) = index_of(&handle, name).await? else { return Ok(()) };
        handle.link().del(index).execute().await.with_context(|| format!("remove tap {name}"))
    })
    .map(|_| ())
}

#[cfg(test)]
mod tests {
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

    fn message(
        family: AddressFamily,
        to: Option<(&str, u8)>,
        attributes: Vec<RouteAttribute>,
    ) -> RouteMessage {
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
                vec![default4(vec![MultiPath(vec![
                    hop(ETH0, vec![inet6()]),
                    hop(NET1, vec![via("10.9.1.2")]),
                ])])],
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
                &[
                    "default via 10.9.1.1 dev eth0 flags 0 mtu 0",
                    "default via fe80::1 dev net1 flags 0 mtu 0",
                ],
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
        assert_eq!(
            scan.plan.interfaces.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(),
            ["eth0", "net1"]
        );
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
    fn only_a_qdisc_with_our_filter_is_taken_for_ours() {
        use nix::sched::{CloneFlags, unshare};
        use rtnetlink::LinkVeth;
        // The thread is this test's own, and so is the namespace.
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            return; // this user may not
        }
        let thread = nix::unistd::gettid();
        let netns = std::path::PathBuf::from(format!("/proc/self/task/{thread}/ns/net"));
        let link = async |handle: Handle| {
            handle.link().add(LinkVeth::new("a", "b").build()).execute().await.context("add")?;
            let index = i32::try_from(existing(&handle, "a").await?).context("index")?;
            handle.qdisc().add(index).ingress().execute().await.context("qdisc")
        };
        match within(&netns, link) {
            // Emulators of foreign programs know no pairs of links.
            Err(e) if e.to_string().contains("Operation not supported") => return,
            made => made.expect("a link of others").expect("namespace"),
        }
        let has_qdisc = |name: &'static str| {
            let asking = async |handle: Handle| has_ingress(&handle, existing(&handle, name).await?).await;
            within(&netns, asking).expect("ask").expect("namespace")
        };
        assert!(mirror(&netns, "a", "b").is_err() && check_free(&netns, "a").is_err());
        remove_mirror(&netns, "a").expect("nothing to do");
        assert!(has_qdisc("a"), "it is not ours");
        let remove = async |handle: Handle| {
            remove_ingress(&handle, i32::try_from(existing(&handle, "a").await?).context("index")?).await
        };
        within(&netns, remove).expect("remove").expect("namespace");
        let to_nowhere = async |handle: Handle| redirect(&handle, existing(&handle, "a").await?, 9999).await;
        let e = within(&netns, to_nowhere).expect_err("no such link").to_string();
        assert!(e.contains("add redirect filter") && !has_qdisc("a"), "{e}");
        mirror(&netns, "a", "b").expect("mirror");
        assert!(has_qdisc("a") && has_qdisc("b"));
        for name in ["a", "b", "none"] {
            remove_mirror(&netns, name).expect("ours");
        }
        assert!(!has_qdisc("a") && !has_qdisc("b"));
    }
}
