//! A registry for images that guests pull: Debian's `docker-registry` on an address that pods reach, filled with
//! images that tests build; and a way to it that stalls or breaks.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::sched::{CloneFlags, setns};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::{cached, until};

const OCI: &str = "application/vnd.oci.image";
const DOCKER: &str = "application/vnd.docker.distribution";

/// A layer, unpacked, and how it is packed in the registry.
#[derive(Clone, Debug)]
pub struct Layer {
    tar: Vec<u8>,
    packing: Packing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Layer {
    /// The layers of an image of the cache, lowest first.
    pub fn of_archive(archive: &str) -> Vec<Self> {
        let bytes = fs::read(cached(&format!("guest/{archive}"))).expect("image archive");
        let file = |name: &str| {
            let mut archive = tar::Archive::new(bytes.as_slice());
            let mut entries = archive.entries().expect("archive").map(|entry| entry.expect("entry"));
            let named = entries.find(|entry| entry.path().is_ok_and(|path| path == Path::new(name)));
            let mut content = Vec::new();
            named.expect(name).read_to_end(&mut content).expect("content");
            content
        };
        let blob =
            |digest: &Value| file(&digest.as_str().expect("digest").replace("sha256:", "blobs/sha256/"));
        let read = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).expect("JSON");
        let manifest = read(blob(&read(file("index.json"))["manifests"][0]["digest"]));
        let layers = manifest["layers"].as_array().expect("layers").iter();
        layers.map(|layer| Self { tar: blob(&layer["digest"]), packing: Packing::Plain }).collect()
    }

    /// A layer of these files.
    pub fn of_files(files: &[(&str, &[u8])]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            builder.append_data(&mut header, name, *content).expect("file");
        }
        Self { tar: builder.into_inner().expect("layer"), packing: Packing::Gzip }
    }

    #[must_use]
    pub fn packed(mut self, packing: Packing) -> Self {
        self.packing = packing;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        match self.packing {
            Packing::Plain => self.tar.clone(),
            Packing::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(&self.tar).expect("gzip");
                encoder.finish().expect("gzip")
            }
            Packing::Zstd => compress_to_vec(self.tar.as_slice(), CompressionLevel::Fastest),
        }
    }

    fn media_type(&self) -> String {
        let suffix = match self.packing {
            Packing::Plain => "",
            Packing::Gzip => "+gzip",
            Packing::Zstd => "+zstd",
        };
        format!("{OCI}.layer.v1.tar{suffix}")
    }
}

/// A running registry with its folder; gone when dropped.
#[derive(Debug)]
pub struct Registry {
    dir: TempDir,
    /// The network namespace it is in; none: that of this process.
    netns: Option<PathBuf>,
    address: SocketAddr,
    daemon: Option<Child>,
}

impl Registry {
    /// On an address of this machine.
    pub fn on(address: &str) -> Self {
        Self::start(address.parse().expect("address"), None)
    }

    /// In the network namespace at `path`, on an address that it has or will have.
    pub fn within(netns: &Path, address: Ipv4Addr) -> Self {
        Self::start(address, Some(netns.to_path_buf()))
    }

    fn start(address: Ipv4Addr, netns: Option<PathBuf>) -> Self {
        let dir = tempfile::Builder::new().prefix("kst-registry").tempdir_in("/tmp").expect("folder");
        let mut registry = Self { dir, netns, address: (address, 5000).into(), daemon: None };
        registry.serve("");
        registry
    }

    /// Starts the program, with more configuration.
    fn serve(&mut self, more: &str) {
        self.stop();
        let config = self.dir.path().join("config.yml");
        let dir = self.dir.path().display();
        // An address of the namespace may come later, with its first pod.
        let listen = if self.netns.is_some() { Ipv4Addr::UNSPECIFIED.into() } else { self.address.ip() };
        let port = self.address.port();
        let text = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {dir}/images\n\
             http:\n  addr: {listen}:{port}\n{more}"
        );
        fs::write(&config, text).expect("configuration");
        let program = cached("registry/usr/bin/docker-registry");
        let mut command = match &self.netns {
            None => Command::new(&program),
            Some(netns) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", netns.display())).arg("--").arg(&program);
                command
            }
        };
        let log = fs::File::create(self.dir.path().join("log")).expect("log");
        command.arg("serve").arg(&config).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("log")).stderr(log);
        self.daemon = Some(command.spawn().expect("docker-registry"));
        until("the registry answers", 20, || self.inside(|api| api.get("").is_some()));
    }

    fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().ok();
            daemon.wait().ok();
        }
    }

    /// From now on the registry asks for a password that nobody has.
    pub fn lock(&mut self) {
        let file = self.dir.path().join("passwords");
        // A user whose password is unknown: the hash is none of bcrypt's.
        fs::write(&file, "nobody:$2y$05$\n").expect("passwords");
        self.serve(&format!("auth:\n  htpasswd:\n    realm: tests\n    path: {}\n", file.display()));
    }

    /// It asks for none again.
    pub fn unlock(&mut self) {
        self.serve("");
    }

    /// The name of an image in this registry: `app:1`.
    pub fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }

    /// Pushes an image for s390x.
    pub fn push(&self, image: &str, layers: &[Layer]) {
        let (repository, tag) = image.split_once(':').expect("a tag");
        self.inside(|api| {
            api.image(repository, tag, "s390x", layers);
        });
    }

    /// Pushes an index with an image for each of these machines.
    pub fn push_index(&self, image: &str, images: &[(&str, &[Layer])]) {
        let (repository, tag) = image.split_once(':').expect("a tag");
        self.inside(|api| {
            let manifests: Vec<_> = images
                .iter()
                .map(|(machine, layers)| {
                    let mut manifest = api.image(repository, &format!("{tag}-{machine}"), machine, layers);
                    manifest["platform"] = json!({ "os": "linux", "architecture": machine });
                    manifest
                })
                .collect();
            let typ = format!("{DOCKER}.manifest.list.v2+json");
            let index = json!({ "schemaVersion": 2, "mediaType": typ, "manifests": manifests });
            api.manifest(repository, tag, &typ, &index);
        });
    }

    /// Flips a bit of a layer as it is stored.
    pub fn corrupt(&self, layer: &Layer) {
        let digest = digest(&layer.bytes());
        let (algorithm, hex) = digest.split_once(':').expect("digest");
        let at = format!("images/docker/registry/v2/blobs/{algorithm}/{}/{hex}/data", &hex[..2]);
        let path = self.dir.path().join(at);
        let mut bytes = fs::read(&path).expect("layer");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).expect("layer");
    }

    /// A way to this registry that passes so many bytes of it, then stalls or breaks.
    pub fn behind(&self, end: Fault, after: u64) -> Detour {
        Detour::new(self.address, self.netns.clone(), end, after)
    }

    /// What guests have asked for, in order: `manifests/1`.
    pub fn asked(&self) -> Vec<String> {
        let log = self.log();
        let paths = log.lines().filter_map(|line| line.split_once("\"GET /v2/")?.1.split(' ').next());
        // The repository is one word; what waits for the registry asks for none.
        paths.filter_map(|path| path.split_once('/')).map(|(_, rest)| rest.to_owned()).collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn inside<T: Send>(&self, work: impl FnOnce(&Api) -> T + Send) -> T {
        let address = match &self.netns {
            Some(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, self.address.port())),
            None => self.address,
        };
        let run = || {
            enter(self.netns.as_deref());
            let config =
                ureq::Agent::config_builder().proxy(None).timeout_global(Some(Duration::from_secs(20)));
            work(&Api { agent: config.build().into(), base: format!("http://{address}/v2/") })
        };
        // A namespace is entered by a thread.
        std::thread::scope(|scope| scope.spawn(run).join()).expect("registry")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            let log = self.log();
            let asked: Vec<_> = log.lines().filter(|line| !line.contains("/blobs/uploads/")).collect();
            eprintln!("--- log of the registry\n{}", asked.join("\n"));
        }
    }
}

fn enter(netns: Option<&Path>) {
    if let Some(path) = netns {
        setns(fs::File::open(path).expect("namespace"), CloneFlags::CLONE_NEWNET).expect("setns");
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// What is pushed, by the registry's protocol.
struct Api {
    agent: ureq::Agent,
    base: String,
}

impl Api {
    fn get(&self, path: &str) -> Option<u16> {
        match self.agent.get(format!("{}{path}", self.base)).call() {
            Ok(answer) => Some(answer.status().as_u16()),
            Err(ureq::Error::StatusCode(status)) => Some(status),
            Err(_) => None,
        }
    }

    fn blob(&self, repository: &str, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        let begun = self.agent.post(format!("{}{repository}/blobs/uploads/", self.base)).send_empty();
        let begun = begun.expect("begin an upload");
        let location = begun.headers()["location"].to_str().expect("location").to_owned();
        let query = if location.contains('?') { '&' } else { '?' };
        self.agent.put(format!("{location}{query}digest={digest}")).send(bytes).expect("upload");
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    fn manifest(&self, repository: &str, tag: &str, media_type: &str, document: &Value) -> Value {
        let bytes = document.to_string();
        let put = self.agent.put(format!("{}{repository}/manifests/{tag}", self.base));
        put.content_type(media_type).send(bytes.as_bytes()).expect("manifest");
        json!({ "mediaType": media_type, "digest": digest(bytes.as_bytes()), "size": bytes.len() })
    }

    fn image(&self, repository: &str, tag: &str, machine: &str, layers: &[Layer]) -> Value {
        let blobs: Vec<_> =
            layers.iter().map(|layer| self.blob(repository, &layer.media_type(), &layer.bytes())).collect();
        let ids: Vec<_> = layers.iter().map(|layer| digest(&layer.tar)).collect();
        let config = json!({
            "architecture": machine, "os": "linux", "config": { "Cmd": ["/bin/sh"] },
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        let typ = format!("{OCI}.config.v1+json");
        let config = self.blob(repository, &typ, config.to_string().as_bytes());
        let typ = format!("{OCI}.manifest.v1+json");
        let document = json!({ "schemaVersion": 2, "mediaType": typ, "config": config, "layers": blobs });
        self.manifest(repository, tag, &typ, &document)
    }
}

/// What becomes of a connection after its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Stall,
    Close,
}

/// Passes connections on to a registry; gone when dropped.
#[derive(Debug)]
pub struct Detour {
    address: SocketAddr,
    /// Bytes that it has passed to guests.
    passed: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    netns: Option<PathBuf>,
    listening: Option<JoinHandle<()>>,
}

impl Detour {
    fn new(registry: SocketAddr, netns: Option<PathBuf>, fault: Fault, after: u64) -> Self {
        let (passed, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let listen = if netns.is_some() { Ipv4Addr::UNSPECIFIED.into() } else { registry.ip() };
        let (sender, port) = std::sync::mpsc::channel();
        let (counted, stopped, within) = (passed.clone(), ended.clone(), netns.clone());
        let serve = move || {
            enter(within.as_deref());
            let listener = TcpListener::bind((listen, 0)).expect("listen");
            sender.send(listener.local_addr().expect("address").port()).expect("port");
            for guest in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let local = if within.is_some() { Ipv4Addr::LOCALHOST.into() } else { registry.ip() };
                let Ok(server) = TcpStream::connect((local, registry.port())) else { return };
                let (counted, stopped) = (counted.clone(), stopped.clone());
                // Threads are in the namespace of the thread that starts them.
                std::thread::spawn(move || pass(&guest, &server, fault, after, &counted, &stopped));
            }
        };
        let listening = Some(std::thread::spawn(serve));
        let address = (registry.ip(), port.recv().expect("port")).into();
        Self { address, passed, ended, netns, listening }
    }

    /// The name of an image by this way.
    pub fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }

    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // One more connection, which it does not pass on.
        let (netns, port) = (self.netns.clone(), self.address.port());
        let local = if netns.is_some() { Ipv4Addr::LOCALHOST.into() } else { self.address.ip() };
        let wake = move || {
            enter(netns.as_deref());
            TcpStream::connect((local, port)).ok();
        };
        std::thread::spawn(wake).join().ok();
        if let Some(listening) = self.listening.take() {
            listening.join().ok();
        }
    }
}

fn pass(
    mut guest: &TcpStream,
    mut server: &TcpStream,
    fault: Fault,
    after: u64,
    passed: &AtomicU64,
    ended: &AtomicBool,
) {
    server.set_read_timeout(Some(Duration::from_millis(100))).expect("limit");
    let requests = (guest.try_clone().expect("clone"), server.try_clone().expect("clone"));
    std::thread::spawn(move || io::copy(&mut &requests.0, &mut &requests.1).ok());
    let mut buffer = vec![0; 16 << 10];
    while !ended.load(Ordering::Relaxed) {
        let left = after.saturating_sub(passed.load(Ordering::Relaxed));
        if left == 0 {
            if fault == Fault::Close {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        match server.read(&mut buffer[..most]) {
            Ok(0) => break,
            Ok(n) => {
                if guest.write_all(&buffer[..n]).is_err() {
                    break;
                }
                passed.fetch_add(n as u64, Ordering::Relaxed);
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    for stream in [guest, server] {
        stream.shutdown(Shutdown::Both).ok();
    }
}
