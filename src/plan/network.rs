//! The pod's network as the guest will have it.

use std::net::IpAddr;

use crate::plan::vm::MacAddr;

/// The configuration of the pod's network namespace, which is applied in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NetworkPlan {
    pub interfaces: Vec<InterfacePlan>,
    pub routes: Vec<RoutePlan>,
    pub neighbours: Vec<NeighbourPlan>,
    /// What of the namespace the guest will not have, and why.
    pub warnings: Vec<String>,
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
    /// The kernel's NUD_* state; 128 is permanent.
    pub state: u16,
    pub flags: u8,
}

/// A destination with the bits after its prefix cleared.
pub(crate) fn prefix_of(ip: IpAddr, length: u8) -> (IpAddr, u8) {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(length.into())).unwrap_or(0);
            (IpAddr::V4((u32::from(ip) & mask).into()), length)
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length.into())).unwrap_or(0);
            (IpAddr::V6((u128::from(ip) & mask).into()), length)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bits_after_a_prefix_are_cleared() {
        let of = |ip: &str, length| prefix_of(ip.parse().expect("ip"), length).0.to_string();
        assert_eq!(of("10.66.7.9", 16), "10.66.0.0");
        assert_eq!(of("10.66.7.9", 32), "10.66.7.9");
        assert_eq!(of("10.66.7.9", 0), "0.0.0.0");
        assert_eq!(of("fd66::1:2", 64), "fd66::");
    }
}
