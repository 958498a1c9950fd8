//! Port forwarding: runtimes connect to localhost in the pod's network namespace, where the programs of a
//! VM do not listen. Such connections are taken there and carried to the pod's own address.
//!
//! Reaches what listens on the pod's address in the guest, not what listens on the guest's localhost only.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use slog::{debug, warn};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::error::{Context, Error, Result};
use crate::host::begun::blocking;
use crate::host::loopback::{self, Loopback};
use crate::host::tasks;
use crate::lifecycle::vm::VmEnd;
use crate::limits;
use crate::plan::network::NetworkPlan;
use crate::pod::Pod;

/// Forwards until the VM is `gone`. A node whose kernel does not let it gets a warning.
pub(crate) fn start(
    pod: &Pod,
    netns: PathBuf,
    network: &NetworkPlan,
    mut gone: watch::Receiver<Option<VmEnd>>,
) {
    let addresses = addresses(network);
    if addresses.is_empty() {
        return;
    }
    let log = pod.log().clone();
    tasks::detach(async move {
        tokio::select! {
            ended = forward(netns, &addresses, &log) => if let Err(e) = ended {
                warn!(log, "{}: port forwarding does not reach the pod", e);
            },
            _ = gone.wait_for(Option::is_some) => {}
        }
    });
}

/// Those of the first interface; the others may be in networks that the node does not reach.
fn addresses(network: &NetworkPlan) -> Vec<IpAddr> {
    let first = network.interfaces.first().map_or(&[][..], |interface| &interface.addresses);
    let global = |ip: &IpAddr| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    first.iter().map(|(ip, _)| *ip).filter(global).collect()
}

/// Goes on for ever, unless the namespace is gone already.
async fn forward(netns: PathBuf, addresses: &[IpAddr], log: &slog::Logger) -> Result<()> {
    let taken = blocking("take ports", move || loopback::intercept(&netns)).await?;
    let Some(Loopback { listener, link: _link }) = taken else { return Ok(()) };
    let listener = TcpListener::from_std(listener).context("listen on 127.0.0.1")?;
    let accept = async || match listener.accept().await {
        Ok((client, _)) => Some(client),
        Err(_) => {
            sleep(limits::host::FORWARD_PAUSE).await; // no descriptor is free, say
            None
        }
    };
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            client = accept(), if open.len() < limits::host::FORWARDED_CONNECTIONS => {
                open.extend(client.map(|client| proxy(client, addresses, log)));
            }
            Some(()) = open.next() => {}
        }
    }
}

/// One connection, to its end. A port that nothing in the guest listens on closes it: a reset would be an error to the
/// runtime, which ends all connections of a forward with it. A connection that breaks off later is reset.
async fn proxy(mut client: TcpStream, addresses: &[IpAddr], log: &slog::Logger) {
    let Ok(port) = client.local_addr().map(|meant| meant.port()) else { return };
    let mut guest = match connect(addresses, port).await {
        Ok(guest) => guest,
        Err(e) => return debug!(log, "forward port {}: {}", port, e),
    };
    if let Err(e) = copy_bidirectional(&mut client, &mut guest).await {
        debug!(log, "forward port {}: {}", port, e);
        client.set_zero_linger().ok();
    }
}

/// The first of the addresses that answers. Whoever may forward to a pod gets no way to the node by it.
async fn connect(addresses: &[IpAddr], port: u16) -> Result<TcpStream> {
    let mut failed = Error::unavailable("the pod has no address");
    for ip in addresses {
        let to = SocketAddr::new(*ip, port);
        if loopback::is_of_this_machine(*ip)? {
            failed = Error::precondition(format!("{to}: is the node's own address"));
            continue;
        }
        match timeout(limits::host::FORWARD_CONNECT, TcpStream::connect(to)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(e)) => failed = Error::unavailable(format!("{to}: {e}")),
            Err(_) => failed = Error::unavailable(format!("{to}: no answer")),
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::network::InterfacePlan;
    use crate::plan::vm::MacAddr;
    use tokio::io::AsyncReadExt;

    #[test]
    fn the_first_interfaces_addresses_are_tried() {
        let interface = |addresses: &[&str]| InterfacePlan {
            name: "eth".to_owned(),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            addresses: addresses.iter().map(|ip| (ip.parse().expect("address"), 24)).collect(),
            no_arp: false,
        };
        let network = NetworkPlan {
            interfaces: vec![interface(&["10.1.0.2", "fe80::1", "fd00::2"]), interface(&["10.2.0.2"])],
            ..NetworkPlan::default()
        };
        let expected: Vec<IpAddr> = vec!["10.1.0.2".parse().expect("ip"), "fd00::2".parse().expect("ip")];
        assert_eq!(addresses(&network), expected);
        assert_eq!(addresses(&NetworkPlan::default()), Vec::<IpAddr>::new());
    }

    #[tokio::test]
    async fn the_nodes_own_ports_are_not_reached() {
        let open = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let at = open.local_addr().expect("address");
        let e = connect(&[at.ip()], at.port()).await.expect_err("the node's");
        assert_eq!(e.to_string(), format!("{at}: is the node's own address"));
    }

    #[tokio::test]
    async fn a_port_that_nothing_listens_on_closes_its_connection_without_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let mut client = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
        let (taken, _) = listener.accept().await.expect("accept");
        proxy(taken, &["127.0.0.1".parse().expect("ip")], &slog::Logger::root(slog::Discard, slog::o!()))
            .await;
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.expect("no reset");
        assert_eq!(rest, b"");
    }
}
