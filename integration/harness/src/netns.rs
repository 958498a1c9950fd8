//! A pod's network namespace as CNI would create it: a veth pair, IPv4 and IPv6, a default route, and a
//! permanent neighbour.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A namespace with `eth0` (10.88.N.2/24, fd88:N::2/64); the host's side has .1 and ::1. Removed when dropped.
#[derive(Debug)]
pub struct PodNetns {
    name: String,
    link: String,
}

impl PodNetns {
    pub fn new() -> Self {
        let number = std::process::id() % 200 + NUMBER.fetch_add(1, Ordering::Relaxed) + 1;
        let (name, link) = (format!("kst{}-{number}", std::process::id()), format!("kst{number}"));
        let made = Self { name, link };
        let (name, link) = (made.name.as_str(), made.link.as_str());
        ip(&format!("netns add {name}"));
        ip(&format!("link add {link} type veth peer name eth0 netns {name}"));
        ip(&format!("addr add 10.88.{}.1/24 dev {link}", number % 250));
        ip(&format!("-6 addr add fd88:{number:x}::1/64 dev {link} nodad"));
        ip(&format!("link set {link} up"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} addr add 10.88.{}.2/24 dev eth0", number % 250));
        ip(&format!("-n {name} -6 addr add fd88:{number:x}::2/64 dev eth0 nodad"));
        ip(&format!("-n {name} link set eth0 mtu 1450 up"));
        ip(&format!("-n {name} route add default via 10.88.{}.1", number % 250));
        ip(&format!("-n {name} -6 route add default via fd88:{number:x}::1"));
        ip(&format!(
            "-n {name} neigh add 10.88.{}.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent",
            number % 250
        ));
        made
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Connects to localhost in the namespace, as a runtime's port forwarding does.
    pub fn connect(&self, port: u16) -> io::Result<TcpStream> {
        connect_within(Path::new(&self.path()), (Ipv4Addr::LOCALHOST, port).into())
    }

    /// Adds (`add`) or removes (`del`) 127.0.0.1.
    pub fn localhost(&self, action: &str) {
        ip(&format!("-n {} addr {action} 127.0.0.1/8 dev lo", self.name));
    }

    fn addresses(&self, inside: bool, v6: bool) -> String {
        let place = if inside {
            vec!["-n", &self.name, "-o", "addr", "show", "dev", "eth0"]
        } else {
            vec!["-o", "addr", "show", "dev", &self.link]
        };
        let text = Command::new("ip").args(place).output().expect("ip").stdout;
        let text = String::from_utf8_lossy(&text).into_owned();
        let family = if v6 { "inet6" } else { "inet" };
        let mut words = text.lines().filter(|l| !l.contains("scope link")).flat_map(str::split_whitespace);
        words.find(|w| *w == family).expect("family");
        words.next().and_then(|a| a.split('/').next()).expect("address").to_owned()
    }

    /// The pod's own address.
    pub fn pod(&self, v6: bool) -> String {
        self.addresses(true, v6)
    }

    /// The host's address on the pod's network.
    pub fn host(&self, v6: bool) -> String {
        self.addresses(false, v6)
    }
}

impl Default for PodNetns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for PodNetns {
    fn drop(&mut self) {
        for command in [format!("link del {}", self.link), format!("netns del {}", self.name)] {
            Command::new("ip").args(command.split(' ')).output().ok();
        }
    }
}

/// A pod's network namespace as a network plugin makes it, and one in the place of the node: `eth0` (and `net1`,
/// where it is named) of the pod leads to the link of the same name of the node. Removed when dropped.
#[derive(Debug)]
pub struct PodNetwork {
    pod: String,
    node: String,
}

impl PodNetwork {
    /// `node` and `pod`: lines of `ip`, run in this order when all links are up.
    pub fn new(node: &str, pod: &str) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("kst{}-p{number}", std::process::id());
        let made = Self { node: format!("{name}-node"), pod: name };
        let sides = [(&made.node, node), (&made.pod, pod)];
        for (side, _) in sides {
            ip(&format!("netns add {side}"));
            ip(&format!("-n {side} link set lo up"));
        }
        for link in ["eth0", "net1"].iter().filter(|link| [node, pod].concat().contains(*link)) {
            ip(&format!("-n {} link add {link} type veth peer name {link} netns {}", made.node, made.pod));
            for (side, _) in sides {
                ip(&format!("-n {side} link set {link} up"));
            }
        }
        for (side, lines) in sides {
            for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
                ip(&format!("-n {side} {line}"));
            }
        }
        made
    }

    /// The path of the pod's namespace.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.pod)
    }

    /// Connects from the node.
    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        connect_within(Path::new(&format!("/run/netns/{}", self.node)), address)
    }
}

impl Drop for PodNetwork {
    fn drop(&mut self) {
        for name in [&self.pod, &self.node] {
            Command::new("ip").args(["netns", "del", name]).output().ok();
        }
    }
}

/// A connection made in the network namespace at `path`.
pub(crate) fn connect_within(path: &Path, address: SocketAddr) -> io::Result<TcpStream> {
    let netns = File::open(path)?;
    let inside = move || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        TcpStream::connect_timeout(&address, Duration::from_secs(5))
    };
    std::thread::spawn(inside).join().expect("thread")
}

fn ip(command: &str) {
    let ran = Command::new("ip").args(command.split(' ')).output().expect("ip");
    assert!(ran.status.success(), "ip {command}: {}", String::from_utf8_lossy(&ran.stderr));
}
