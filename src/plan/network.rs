//! The pod's network as the guest will have it.

use std::net::IpAddr;

use crate::plan::vm::MacAddr;

/// What was found in the pod's network namespace and is carried into the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPlan {
    pub interfaces: Vec<InterfacePlan>,
    pub routes: Vec<RoutePlan>,
    pub neighbours: Vec<NeighbourPlan>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfacePlan {
    pub name: String,
    pub mac: MacAddr,
    pub mtu: u32,
    /// Addresses with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    pub no_arp: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutePlan {
    /// None: the default route.
    pub destination: Option<(IpAddr, u8)>,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub device: String,
    pub ipv6: bool,
    pub scope: u8,
    pub flags: u32,
    pub mtu: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighbourPlan {
    pub address: IpAddr,
    pub mac: MacAddr,
    pub device: String,
    /// NUD_* state of the kernel; 128 is permanent.
    pub state: u16,
    pub flags: u8,
}
