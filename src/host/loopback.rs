//! One listener for the connections to localhost inside a pod's network namespace, to any port.
//!
//! A BPF program of the kernel's socket lookup (`sk_lookup`, Linux 5.9) directs them to the listener; the
//! local port of an accepted connection is the port that the client meant. Listener and program exist as
//! long as their descriptors: nothing has to be removed from the node, however the process ends.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::socket::SockaddrStorage;

use crate::error::{Context, Result};
use crate::host::{bpf, netns};

/// The listener, and the attached program that directs connections to it.
#[derive(Debug)]
pub(crate) struct Loopback {
    /// Non-blocking.
    pub listener: TcpListener,
    pub link: OwnedFd,
}

/// Takes the connections to 127.0.0.0/8 in the namespace, also those to ports that others listen on there.
/// None: the namespace is gone. Blocks for a moment.
pub(crate) fn intercept(netns: &Path) -> Result<Option<Loopback>> {
    netns::within(netns, || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on 127.0.0.1")?;
        listener.set_nonblocking(true).context("listen on 127.0.0.1")?;
        let map = bpf::socket_map(&listener).context("make a BPF map of sockets")?;
        let program = bpf::load(&map).context("load a BPF program (sk_lookup)")?;
        let here = File::open("/proc/thread-self/ns/net").context("open the namespace")?;
        let link = bpf::attach(&program, &here).context("attach a BPF program (sk_lookup)")?;
        Ok(Loopback { listener, link })
    })
}

/// Whether the address is one of this machine's, in the calling thread's namespace.
pub(crate) fn is_of_this_machine(ip: IpAddr) -> Result<bool> {
    let all = nix::ifaddrs::getifaddrs().context("addresses of this machine")?;
    let has = |address: SockaddrStorage| match ip {
        IpAddr::V4(ip) => address.as_sockaddr_in().is_some_and(|known| known.ip() == ip),
        IpAddr::V6(ip) => address.as_sockaddr_in6().is_some_and(|known| known.ip() == ip),
    };
    Ok(ip.is_loopback() || all.filter_map(|interface| interface.address).any(has))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::net::{SocketAddr, TcpStream};
    use std::time::Duration;

    /// Runs `work` in a new network namespace whose localhost is up. None: this user may not make one.
    #[allow(clippy::disallowed_methods)]
    fn in_a_namespace<T: Send>(work: impl FnOnce(&Path) -> T + Send) -> Option<T> {
        let inside = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().ok()?;
            let path = format!("/proc/self/task/{}/ns/net", nix::unistd::gettid());
            up.success().then(|| work(Path::new(&path)))
        };
        std::thread::scope(|scope| scope.spawn(inside).join().expect("thread"))
    }

    #[test]
    fn connections_to_any_port_of_localhost_come_to_one_listener_and_no_others_do() {
        in_a_namespace(|netns| {
            let loopback = match intercept(netns) {
                Ok(loopback) => loopback.expect("namespace"),
                // qemu-user has no bpf(2).
                Err(e) if e.to_string().contains("Function not implemented") => return,
                Err(e) => panic!("{e}"),
            };
            loopback.listener.set_nonblocking(false).expect("blocking");
            let connect =
                |to: &str| TcpStream::connect_timeout(&to.parse().expect("address"), Duration::from_secs(1));
            for to in ["127.0.0.1:1", "127.0.0.1:8080", "127.1.2.3:65535"] {
                let client = connect(to).expect(to);
                let (taken, from) = loopback.listener.accept().expect("accept");
                assert_eq!(taken.local_addr().expect("meant"), to.parse::<SocketAddr>().expect("address"));
                assert_eq!(client.local_addr().expect("client"), from);
            }
            assert_eq!(connect("[::1]:8080").expect_err("not IPv4").kind(), ErrorKind::ConnectionRefused);
            drop(loopback);
            assert_eq!(connect("127.0.0.1:8080").expect_err("ended").kind(), ErrorKind::ConnectionRefused);
        });
    }

    #[test]
    fn the_machines_own_addresses_are_known() {
        for (ip, own) in [("127.0.0.1", true), ("127.9.9.9", true), ("::1", true), ("192.0.2.1", false)] {
            assert_eq!(is_of_this_machine(ip.parse().expect("address")), Ok(own), "{ip}");
        }
    }

    #[test]
    fn a_namespace_that_is_gone_has_nothing_to_take() {
        assert!(intercept(Path::new("/nonexistent")).expect("no error").is_none());
    }
}
