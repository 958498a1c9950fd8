//! Links, addresses, routes, neighbours and mirroring of a network namespace.
//!
//! Every function enters the namespace on a separate thread and blocks: call it on a thread of
//! `process::blocking`. Mirroring is an ingress qdisc on the pod's interface and on our tap, each
//! with one filter that redirects everything to the other.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteType,
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
        let mut plan = NetworkPlan::default();
        let mut indexes = Vec::new();
        let links: Vec<LinkMessage> =
            handle.link().get().execute().try_collect().await.context("list links")?;
        for link in links.iter().take(limits::host::NETWORK_ITEMS) {
            if let Some(interface) = interface(link)? {
                plan.interfaces.push(interface);
                indexes.push(link.header.index);
            }
        }
        addresses(&handle, &mut plan, &indexes).await?;
        routes(&handle, &mut plan, &indexes).await?;
        neighbours(&handle, &mut plan, &indexes).await?;
        Ok(plan)
    })?
    .ok_or_else(|| {
        Error::invalid(format!(
            "network namespace {}: does not exist (was it removed, or is the path wrong?)",
            netns.display()
        ))
    })
}

/// The interface, if it is an Ethernet one and up.
fn interface(link: &LinkMessage) -> Result<Option<InterfacePlan>> {
    let flags = link.header.flags;
    if flags.contains(LinkFlags::Loopback) || !flags.contains(LinkFlags::Up) {
        return Ok(None);
    }
    if link.header.link_layer_type != LinkLayerType::Ether {
        return Ok(None);
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
    let (Some(name), Some(mac), Some(mtu)) = (name, mac, mtu) else { return Ok(None) };
    if tap::is_ours(&name) {
        return Err(Error::precondition(format!("the namespace has a tap {name} of another sandbox")));
    }
    let no_arp = flags.contains(LinkFlags::Noarp);
    Ok(Some(InterfacePlan { name, mac: MacAddr(mac), mtu, addresses: Vec::new(), no_arp }))
}

async fn addresses(handle: &Handle, plan: &mut NetworkPlan, indexes: &[u32]) -> Result<()> {
    let found: Vec<_> = handle.address().get().execute().try_collect().await.context("list addresses")?;
    for address in found.iter().take(limits::host::NETWORK_ITEMS) {
        let Some(at) = indexes.iter().position(|i| *i == address.header.index) else { continue };
        let mut ip = None;
        for attribute in &address.attributes {
            match attribute {
                // On a point-to-point link Address is the peer's; Local is always ours.
                AddressAttribute::Local(local) => ip = Some(*local),
                AddressAttribute::Address(own) if ip.is_none() => ip = Some(*own),
                _ => {}
            }
        }
        let Some(ip) = ip.filter(|ip| !is_link_local(*ip)) else { continue };
        if let Some(interface) = plan.interfaces.get_mut(at) {
            interface.addresses.push((ip, address.header.prefix_len));
        }
    }
    Ok(())
}

/// The guest's kernel makes these addresses itself.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.segments().first().is_some_and(|s| s & 0xffc0 == 0xfe80))
}

async fn routes(handle: &Handle, plan: &mut NetworkPlan, indexes: &[u32]) -> Result<()> {
    for v6 in [false, true] {
        let query = if v6 {
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()
        } else {
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build()
        };
        let found: Vec<_> = handle.route().get(query).execute().try_collect().await.context("list routes")?;
        for message in found.iter().take(limits::host::NETWORK_ITEMS) {
            if let Some(route) = route(message, plan, indexes, v6) {
                plan.routes.push(route);
            }
        }
    }
    Ok(())
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// A unicast route of the main table over an interface of the pod.
fn route(message: &RouteMessage, plan: &NetworkPlan, indexes: &[u32], ipv6: bool) -> Option<RoutePlan> {
    let (mut destination, mut gateway, mut source, mut index, mut mtu) = (None, None, None, None, 0);
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip_of(address),
            RouteAttribute::Gateway(address) => gateway = ip_of(address),
            RouteAttribute::PrefSource(address) => source = ip_of(address),
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics
                    .iter()
                    .find_map(|m| if let RouteMetric::Mtu(mtu) = m { Some(*mtu) } else { None })?;
            }
            _ => {}
        }
    }
    let at = indexes.iter().position(|i| Some(*i) == index)?;
    let by_kernel = message.header.protocol == RouteProtocol::Kernel;
    let wanted = table == MAIN_TABLE
        && message.header.kind == RouteType::Unicast
        // The guest's kernel makes the IPv6 ones of its addresses itself.
        && !(ipv6 && by_kernel);
    wanted.then(|| RoutePlan {
        destination: destination.map(|ip| prefix_of(ip, message.header.destination_prefix_length)),
        gateway,
        source,
        device: plan.interfaces.get(at).map(|i| i.name.clone()).unwrap_or_default(),
        ipv6,
        scope: u8::from(message.header.scope),
        flags: 0,
        mtu,
    })
}

async fn neighbours(handle: &Handle, plan: &mut NetworkPlan, indexes: &[u32]) -> Result<()> {
    let found: Vec<_> = handle.neighbours().get().execute().try_collect().await.context("list neighbours")?;
    for message in found.iter().take(limits::host::NETWORK_ITEMS) {
        let Some(at) = indexes.iter().position(|i| *i == message.header.ifindex) else { continue };
        if message.header.state != NeighbourState::Permanent {
            continue;
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
        let (Some(address), Some(mac)) = (address, mac) else { continue };
        plan.neighbours.push(NeighbourPlan {
            address,
            mac: MacAddr(mac),
            device: plan.interfaces.get(at).map(|i| i.name.clone()).unwrap_or_default(),
            state: u16::from(message.header.state),
            flags: 0,
        });
    }
    Ok(())
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
    filter.redirect(to).context("redirect filter")?.execute().await.context("add redirect filter")
}

/// Removes our mirroring from a link: the qdisc with our filter, unless it has filters of others. A link
/// that does not exist is success.
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
        if filters.iter().any(|f| f.header.info >> 16 != u32::from(PRIORITY)) {
            return Err(Error::precondition(format!(
                "link {link}: has filters of others; our mirroring is not removed"
            )));
        }
        let mut del = handle.qdisc().del(index);
        let message = del.message_mut();
        message.header.parent = rtnetlink::packet_route::tc::TcHandle::INGRESS;
        message.attributes.push(TcAttribute::Kind("ingress".into()));
        del.execute().await.context("remove ingress qdisc")
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
