//! The guest's network by netlink: interfaces, routes, neighbours. On the host it is only checked and stored.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::device::Devices;
use crate::failure::{Result, Trying, internal, invalid, text};
use crate::messages::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};

const IFF_NOARP: u32 = 0x80;

pub(crate) enum Network {
    Guest(Handle),
    Host(Mutex<Told>),
}

/// What the host was last answered.
#[derive(Default)]
pub(crate) struct Told {
    interfaces: Vec<Interface>,
    routes: Vec<Route>,
}

fn address(text: &str) -> Result<IpAddr> {
    text.parse().trying(format!("IP address {text:?}"))
}

fn prefix(text: &str, ip: IpAddr) -> Result<u8> {
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let bits = text.parse().ok().filter(|bits| *bits <= most);
    bits.ok_or_else(|| internal(format!("prefix length {text:?} of {ip}")))
}

/// `None`: the default route.
fn destination(text: &str) -> Result<Option<(IpAddr, u8)>> {
    if text.is_empty() {
        return Ok(None);
    }
    let (ip, bits) =
        text.split_once('/').ok_or_else(|| internal(format!("destination {text:?} is no prefix")))?;
    let ip = address(ip)?;
    Ok(Some((ip, prefix(bits, ip)?)))
}

fn mac(text: &str) -> Result<Vec<u8>> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let good = bytes.filter(|bytes| bytes.len() == 6 && bytes.iter().any(|b| *b != 0));
    good.ok_or_else(|| internal(format!("hardware address {text:?}")))
}

fn mac_text(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
}

fn check_interface(i: &Interface) -> Result<()> {
    if i.name.is_empty() || i.name == "lo" || i.name.len() > 15 || i.device != i.name {
        return Err(internal(format!("interface name {:?}, device {:?}", i.name, i.device)));
    }
    if i.raw_flags & !IFF_NOARP != 0 {
        return Err(internal(format!("interface flags {:#x}: policies allow only 0x80", i.raw_flags)));
    }
    mac(&i.hwAddr)?;
    if u32::try_from(i.mtu).is_err() {
        return Err(internal(format!("mtu {}", i.mtu)));
    }
    for a in &i.IPAddresses {
        let ip = address(&a.address)?;
        prefix(&a.mask, ip)?;
        same_family(ip, a.family.enum_value_or_default())?;
    }
    Ok(())
}

fn same_family(ip: IpAddr, family: IPFamily) -> Result<()> {
    let said = if ip.is_ipv6() { IPFamily::v6 } else { IPFamily::v4 };
    if said == family { Ok(()) } else { Err(internal(format!("{ip} is not of family {family:?}"))) }
}

fn check_route(r: &Route) -> Result<()> {
    if r.device.is_empty() || r.device == "lo" {
        return Err(internal(format!("route through {:?}", r.device)));
    }
    let family = r.family.enum_value_or_default();
    let gateway = if r.gateway.is_empty() { None } else { Some(address(&r.gateway)?) };
    let source = if r.source.is_empty() { None } else { Some(address(&r.source)?) };
    if source.is_some_and(|ip| ip.is_loopback()) {
        return Err(internal(format!("route from loopback {}", r.source)));
    }
    let all = [destination(&r.dest)?.map(|d| d.0), gateway, source];
    all.into_iter().flatten().try_for_each(|ip| same_family(ip, family))
}

fn check_neighbour(n: &ARPNeighbor) -> Result<()> {
    let to = n.toIPAddress.as_ref().ok_or_else(|| invalid("neighbour without an address"))?;
    same_family(address(&to.address)?, to.family.enum_value_or_default())?;
    mac(&n.lladdr)?;
    if !to.mask.is_empty() || n.device == "lo" || n.flags & !0x88 != 0 {
        return Err(internal(format!("neighbour {n}: policies refuse its mask, device or flags")));
    }
    Ok(())
}

impl Network {
    pub(crate) fn guest() -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self::Guest(handle))
    }

    pub(crate) fn host() -> Self {
        Self::Host(Mutex::default())
    }

    pub(crate) async fn loopback_up(&self) -> Result<()> {
        let Self::Guest(handle) = self else { return Ok(()) };
        let up = LinkUnspec::new_with_name("lo").up().build();
        handle.link().set(up).execute().await.trying("lo")
    }

    pub(crate) async fn update_interface(&self, devices: &Devices, wanted: Interface) -> Result<Interface> {
        check_interface(&wanted)?;
        if !wanted.devicePath.is_empty() {
            devices.network(&wanted.devicePath).await?;
        }
        match self {
            Self::Guest(handle) => configure(handle, &wanted).await?,
            Self::Host(told) => {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                told.interfaces.retain(|i| i.name != wanted.name);
                told.interfaces.push(wanted.clone());
            }
        }
        Ok(wanted)
    }

    pub(crate) async fn update_routes(&self, mut wanted: Vec<Route>) -> Result<Vec<Route>> {
        wanted.iter().try_for_each(check_route)?;
        // A gateway must be reachable when its route is made.
        wanted.sort_by_key(|route| !route.gateway.is_empty());
        match self {
            Self::Guest(handle) => {
                clear_routes(handle).await?;
                for route in &wanted {
                    add_route(handle, route)
                        .await
                        .map_err(|e| internal(format!("route {route}: {}", text(&e))))?;
                }
            }
            Self::Host(told) => {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(r) = wanted.iter().find(|r| !told.interfaces.iter().any(|i| i.name == r.device)) {
                    return Err(internal(format!("route {r}: no such device")));
                }
                told.routes = wanted;
            }
        }
        self.routes().await
    }

    pub(crate) async fn add_neighbours(&self, wanted: &[ARPNeighbor]) -> Result<()> {
        wanted.iter().try_for_each(check_neighbour)?;
        let Self::Guest(handle) = self else { return Ok(()) };
        for n in wanted {
            let what = format!("neighbour {n}");
            let index = link_named(handle, &n.device).await?.header.index;
            let state = u16::try_from(n.state).trying(&what)?;
            let flags = u8::try_from(n.flags).trying(&what)?;
            let request = handle.neighbours().add(index, address(&n.toIPAddress.address)?);
            let request =
                request.state(NeighbourState::from(state)).flags(NeighbourFlags::from_bits_retain(flags));
            request.link_layer_address(&mac(&n.lladdr)?).replace().execute().await.trying(&what)?;
        }
        Ok(())
    }

    pub(crate) async fn interfaces(&self) -> Result<Vec<Interface>> {
        let handle = match self {
            Self::Guest(handle) => handle,
            Self::Host(told) => {
                return Ok(told.lock().unwrap_or_else(PoisonError::into_inner).interfaces.clone());
            }
        };
        let mut found = Vec::new();
        for link in links(handle).await? {
            let mut interface = Interface { name: name_of(&link).to_owned(), ..Default::default() };
            for attribute in &link.attributes {
                match attribute {
                    LinkAttribute::Mtu(mtu) => interface.mtu = (*mtu).into(),
                    LinkAttribute::Address(bytes) => interface.hwAddr = mac_text(bytes),
                    _ => {}
                }
            }
            let addresses = handle.address().get().set_link_index_filter(link.header.index).execute();
            let addresses: Vec<_> = addresses.try_collect().await.trying("list addresses")?;
            interface.IPAddresses = addresses
                .iter()
                .filter_map(|a| {
                    let ip = a.attributes.iter().find_map(|attribute| match attribute {
                        AddressAttribute::Address(ip) => Some(*ip),
                        _ => None,
                    })?;
                    // The real agent swaps the families here; so does this one, as hosts must not rely on them.
                    let family = if ip.is_ipv6() { IPFamily::v4 } else { IPFamily::v6 };
                    let mask = a.header.prefix_len.to_string();
                    Some(IPAddress {
                        family: family.into(),
                        address: ip.to_string(),
                        mask,
                        ..Default::default()
                    })
                })
                .collect();
            found.push(interface);
        }
        Ok(found)
    }

    pub(crate) async fn routes(&self) -> Result<Vec<Route>> {
        let handle = match self {
            Self::Guest(handle) => handle,
            Self::Host(told) => {
                return Ok(told.lock().unwrap_or_else(PoisonError::into_inner).routes.clone());
            }
        };
        let links = links(handle).await?;
        let mut found = Vec::new();
        for message in main_routes(handle).await? {
            let mut route = Route { scope: u8::from(message.header.scope).into(), ..Default::default() };
            if message.header.address_family == AddressFamily::Inet6 {
                route.family = IPFamily::v6.into();
            }
            for attribute in &message.attributes {
                match attribute {
                    RouteAttribute::Destination(to) => {
                        route.dest =
                            format!("{}/{}", route_address(to), message.header.destination_prefix_length);
                    }
                    RouteAttribute::Gateway(ip) => route.gateway = route_address(ip),
                    RouteAttribute::PrefSource(ip) => route.source = route_address(ip),
                    RouteAttribute::Oif(index) => {
                        let link = links.iter().find(|link| link.header.index == *index);
                        route.device = link.map(name_of).unwrap_or_default().to_owned();
                    }
                    _ => {}
                }
            }
            found.push(route);
        }
        Ok(found)
    }
}

fn route_address(address: &RouteAddress) -> String {
    match address {
        RouteAddress::Inet(ip) => ip.to_string(),
        RouteAddress::Inet6(ip) => ip.to_string(),
        _ => String::new(),
    }
}

async fn links(handle: &Handle) -> Result<Vec<LinkMessage>> {
    handle.link().get().execute().try_collect().await.trying("list links")
}

fn name_of(link: &LinkMessage) -> &str {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    });
    name.unwrap_or_default()
}

async fn link_named(handle: &Handle, name: &str) -> Result<LinkMessage> {
    let found = links(handle).await?.into_iter().find(|link| name_of(link) == name);
    found.ok_or_else(|| internal(format!("no network device {name:?}")))
}

/// Finds the link by its hardware address and sets its addresses, name, MTU and flags.
async fn configure(handle: &Handle, wanted: &Interface) -> Result<()> {
    let what = format!("interface {}", wanted.name);
    let hardware = LinkAttribute::Address(mac(&wanted.hwAddr)?);
    let all = links(handle).await?;
    let link = all.iter().find(|link| link.attributes.contains(&hardware));
    let link =
        link.ok_or_else(|| internal(format!("no network device has the address {}", wanted.hwAddr)))?;
    let index = link.header.index;
    let change = |index| LinkUnspec::new_with_index(index);
    let set = async |message| handle.link().set(message).execute().await.trying(&what);
    set(change(index).down().build()).await?;
    for a in &wanted.IPAddresses {
        let ip = address(&a.address)?;
        if ip.is_ipv6() && !matches!(std::fs::exists("/proc/net/if_inet6"), Ok(true)) {
            continue;
        }
        let add = handle.address().add(index, ip, prefix(&a.mask, ip)?).replace();
        add.execute().await.trying(&what)?;
    }
    let other = all.iter().find(|link| name_of(link) == wanted.name && link.header.index != index);
    if let Some(other) = other {
        set(change(other.header.index).down().build()).await?;
        set(change(other.header.index).name(format!("swap{}", other.header.index)).build()).await?;
    }
    let arp = wanted.raw_flags & IFF_NOARP == 0;
    let mut message = change(index).name(wanted.name.clone()).arp(arp);
    if wanted.mtu != 0 {
        message = message.mtu(u32::try_from(wanted.mtu).unwrap_or(u32::MAX));
    }
    set(message.build()).await?;
    set(change(index).up().build()).await
}

/// Routes of the main table; the kernel's own links with them.
async fn main_routes(handle: &Handle) -> Result<Vec<RouteMessage>> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        let routes: Vec<RouteMessage> =
            handle.route().get(filter).execute().try_collect().await.trying("list routes")?;
        found.extend(routes.into_iter().filter(|route| route.header.table == RouteHeader::RT_TABLE_MAIN));
    }
    Ok(found)
}

/// The host's routes replace all IPv4 routes and those IPv6 routes that a host added before.
async fn clear_routes(handle: &Handle) -> Result<()> {
    for route in main_routes(handle).await? {
        let v4 = route.header.address_family == AddressFamily::Inet;
        if v4 || route.header.protocol == RouteProtocol::Boot {
            handle.route().del(route).execute().await.trying("remove a route")?;
        }
    }
    Ok(())
}

async fn add_route(handle: &Handle, route: &Route) -> Result<()> {
    let index = link_named(handle, &route.device).await?.header.index;
    let scope = u8::try_from(route.scope).trying(format!("scope {}", route.scope))?;
    let mut message = RouteMessageBuilder::<IpAddr>::new()
        .output_interface(index)
        .protocol(RouteProtocol::Boot)
        .scope(RouteScope::from(scope));
    // Also for the default route: its destination has the family.
    let v6 = route.family.enum_value_or_default() == IPFamily::v6;
    let everywhere = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let (ip, bits) = destination(&route.dest)?.unwrap_or((everywhere, 0));
    message = message.destination_prefix(ip, bits).trying("address")?;
    if !route.gateway.is_empty() {
        message = message.gateway(address(&route.gateway)?).trying("address")?;
    }
    if !route.source.is_empty() {
        message = message.pref_source(address(&route.source)?).trying("address")?;
    }
    let mut message = message.build();
    message.header.flags = RouteFlags::from_bits_retain(route.flags);
    if route.mtu != 0 {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
    }
    handle.route().add(message).replace().execute().await.trying("add")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn prefixes_are_numbers_of_bits() {
        assert_eq!(destination("10.66.0.0/24").unwrap(), Some((address("10.66.0.0").unwrap(), 24)));
        assert_eq!(destination("").unwrap(), None);
        assert!(destination("10.66.0.0").is_err());
        assert!(destination("10.66.0.0/33").is_err());
        assert!(mac("00:00:00:00:00:00").is_err());
        assert_eq!(mac_text(&mac("02:00:00:00:66:0a").unwrap()), "02:00:00:00:66:0a");
    }
}
