//! The pod's network: from its namespace into the guest.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use slog::warn;

use crate::agent::client::Agent;
use crate::error::Result;
use crate::failpoint::{Step, hit};
use crate::host::begun::blocking;
use crate::host::{netlink, network_scan, tap};
use crate::plan::network::NetworkPlan;
use crate::plan::vm::NicPlan;
use crate::pod::Pod;
use crate::pod::journal::Cleanup;

/// What the guest will have, and the taps that carry it, in the order of the interfaces.
#[derive(Debug, Default)]
pub(crate) struct PodNetwork {
    pub(crate) plan: NetworkPlan,
    pub(crate) taps: Vec<OwnedFd>,
}

/// Scans the namespace and makes a mirrored tap for each interface.
pub(crate) async fn prepare(pod: &Pod, netns: &Path) -> Result<PodNetwork> {
    let path = netns.to_path_buf();
    let plan = blocking("scan network", move || network_scan::scan(&path)).await?;
    for warning in &plan.warnings {
        warn!(pod.log(), "network: {}", warning);
    }
    hit(Step::NetworkScanned)?;
    let mut taps = Vec::new();
    for (index, interface) in plan.interfaces.iter().enumerate() {
        let name = tap::name(&pod.parts.key, index);
        taps.push(make_tap(pod, netns.to_path_buf(), name, interface.name.clone(), interface.mtu).await?);
    }
    Ok(PodNetwork { plan, taps })
}

async fn make_tap(pod: &Pod, netns: PathBuf, name: String, link: String, mtu: u32) -> Result<OwnedFd> {
    let (path, of) = (netns.clone(), link.clone());
    blocking("check link", move || netlink::check_free(&path, &of)).await?;
    pod.journal.record(&Cleanup::Tap { netns: netns.clone(), name: name.clone() })?;
    hit(Step::TapRecorded)?;
    let (path, tap) = (netns.clone(), name.clone());
    let fd = blocking("make tap", move || netlink::make_tap(&path, &tap, mtu)).await?;
    hit(Step::TapMade)?;
    pod.journal.record(&Cleanup::Mirror { netns: netns.clone(), link: link.clone(), tap: name.clone() })?;
    blocking("mirror link", move || netlink::mirror(&netns, &link, &name)).await?;
    hit(Step::MirrorMade)?;
    Ok(fd)
}

/// Tells the agent what its interfaces are called and what they have.
pub(crate) async fn send(agent: &Agent, plan: &NetworkPlan, nics: &[NicPlan]) -> Result<()> {
    for (interface, nic) in plan.interfaces.iter().zip(nics) {
        agent.update_interface(interface, nic.devno).await?;
    }
    if !plan.routes.is_empty() {
        agent.update_routes(&plan.routes).await?;
    }
    if !plan.neighbours.is_empty() {
        agent.add_neighbours(&plan.neighbours).await?;
    }
    Ok(())
}
