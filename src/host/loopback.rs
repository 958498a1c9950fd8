//! Connections to localhost inside a pod's network namespace, whatever their port, for one listener.
//!
//! A program of the kernel's socket lookup (BPF `sk_lookup`, Linux 5.9) chooses the listener; the port that was
//! meant is the accepted connection's own. Listener and program end with their descriptors: nothing is
//! left on the node that would have to be removed, whatever becomes of the process.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::SockaddrStorage;

use crate::error::{Context, Result};
use crate::host::netns;
use crate::host::sys::{self, Instruction};

/// The listener, and what brings connections to it.
#[derive(Debug)]
pub(crate) struct Loopback {
    /// Does not block.
    pub listener: TcpListener,
    pub link: OwnedFd,
}

/// Takes the connections to 127.0.0.0/8 in the namespace; None: it is gone. Blocks for a moment. What
/// listens there already loses new connections to this.
pub(crate) fn intercept(netns: &Path) -> Result<Option<Loopback>> {
    netns::within(netns, || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on 127.0.0.1")?;
        listener.set_nonblocking(true).context("listen on 127.0.0.1")?;
        let map = sys::bpf_socket_map(&listener).context("make a BPF map of sockets")?;
        let program = sys::bpf_socket_lookup(&program(&map)).context("load a BPF program (sk_lookup)")?;
        let here = File::open("/proc/thread-self/ns/net").context("open the namespace")?;
        let link = sys::bpf_link(&program, &here).context("attach a BPF program (sk_lookup)")?;
        Ok(Loopback { listener, link })
    })
}

/// Whether this machine itself has the address, in the calling thread's namespace.
pub(crate) fn is_of_this_machine(ip: IpAddr) -> Result<bool> {
    let all = nix::ifaddrs::getifaddrs().context("addresses of this machine")?;
    let has = |address: SockaddrStorage| match ip {
        IpAddr::V4(ip) => address.as_sockaddr_in().is_some_and(|known| known.ip() == ip),
        IpAddr::V6(ip) => address.as_sockaddr_in6().is_some_and(|known| known.ip() == ip),
    };
    Ok(ip.is_loopback() || all.filter_map(|interface| interface.address).any(has))
}

/// TCP to 127.0.0.0/8 goes to the socket in the map, everything else where it would have gone.
fn program(map: &OwnedFd) -> [Instruction; 21] {
    // Offsets in `struct bpf_sk_lookup`, helper numbers and codes: include/uapi/linux/bpf.h and bpf_common.h.
    const PROTOCOL: i16 = 12;
    const LOCAL_IP4: i16 = 40;
    [
        op(MOVE, 6, 1, 0, 0),
        op(LOAD_WORD, 2, 6, PROTOCOL, 0),
        op(UNLESS_EQUAL, 2, 0, 16, 6),
        op(LOAD_BYTE, 2, 6, LOCAL_IP4, 0), // the first of the four, in the network's order
        op(UNLESS_EQUAL, 2, 0, 14, 127),
        op(STORE_WORD, 10, 0, -4, 0),
        op(MOVE, 2, 10, 0, 0),
        op(ADD_NUMBER, 2, 0, 0, -4),
        op(LOAD_MAP, 1, 1, 0, map.as_raw_fd()),
        op(0, 0, 0, 0, 0), // the second half of the one before
        op(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        op(IF_EQUAL, 0, 0, 7, 0),
        op(MOVE, 7, 0, 0, 0),
        op(MOVE, 1, 6, 0, 0),
        op(MOVE, 2, 7, 0, 0),
        op(MOVE_NUMBER, 3, 0, 0, 0),
        op(CALL, 0, 0, 0, SK_ASSIGN),
        op(MOVE, 1, 7, 0, 0),
        op(CALL, 0, 0, 0, SK_RELEASE),
        op(MOVE_NUMBER, 0, 0, 0, SK_PASS),
        op(EXIT, 0, 0, 0, 0),
    ]
}

const MOVE: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const ADD_NUMBER: u8 = 0x07;
const LOAD_WORD: u8 = 0x61;
const LOAD_BYTE: u8 = 0x71;
const STORE_WORD: u8 = 0x62;
const LOAD_MAP: u8 = 0x18;
const UNLESS_EQUAL: u8 = 0x55;
const IF_EQUAL: u8 = 0x15;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;
const SK_PASS: i32 = 1;

const fn op(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    let registers = if cfg!(target_endian = "big") { to << 4 | from } else { from << 4 | to };
    Instruction { code, registers, offset, immediate }
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
