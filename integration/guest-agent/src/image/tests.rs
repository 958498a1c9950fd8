//! Pulls from a registry that answers what a test says.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

type Pages = HashMap<String, (u16, Vec<u8>)>;

/// Answers GET of its pages, everything else with 404, until the test ends.
struct Server {
    address: String,
    pages: Arc<Mutex<Pages>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Self { address, pages: Arc::default(), asked: Arc::default() };
        let (pages, asked) = (server.pages.clone(), server.asked.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(&stream, &pages, &asked);
            }
        });
        server
    }

    fn page(&self, path: String, status: u16, body: Vec<u8>) {
        self.pages.lock().unwrap().insert(path, (status, body));
    }

    /// Stores a blob; its descriptor.
    fn blob(&self, media_type: &str, body: Vec<u8>) -> Value {
        let (digest, size) = sha256(&body[..], io::sink()).unwrap();
        self.page(format!("/v2/app/blobs/{digest}"), 200, body);
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    }

    /// Stores a manifest by its digest and a tag; its descriptor.
    fn tag(&self, tag: &str, document: &Value) -> Value {
        let body = document.to_string().into_bytes();
        let (digest, size) = sha256(&body[..], io::sink()).unwrap();
        self.page(format!("/v2/app/manifests/{digest}"), 200, body.clone());
        self.page(format!("/v2/app/manifests/{tag}"), 200, body);
        json!({ "mediaType": document["mediaType"], "digest": digest, "size": size })
    }

    /// An image with a gzip layer for each name, which is the file in it.
    fn image(&self, tag: &str, names: &[&str]) -> Value {
        let mut layers = Vec::new();
        let mut ids = Vec::new();
        for name in names {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(name.len() as u64);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mode(0o644);
            header.set_mtime(0);
            builder.append_data(&mut header, name, name.as_bytes()).unwrap();
            let tar = builder.into_inner().unwrap();
            ids.push(sha256(&tar[..], io::sink()).unwrap().0);
            let gzip = layer::tests::packed(&tar, "+gzip");
            layers.push(self.blob("application/vnd.oci.image.layer.v1.tar+gzip", gzip));
        }
        let config = json!({ "rootfs": { "type": "layers", "diff_ids": ids } }).to_string();
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.into_bytes());
        self.tag(
            tag,
            &json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers }),
        )
    }

    fn name(&self, version: &str) -> Reference {
        Reference::parse(&format!("{}/app{version}", self.address)).unwrap()
    }

    /// Kinds and versions asked for since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn answer(mut stream: &TcpStream, pages: &Mutex<Pages>, asked: &Mutex<Vec<String>>) {
    let mut lines =
        BufReader::new(stream).lines().map_while(|line| line.ok().filter(|line| !line.is_empty()));
    let first = lines.next().unwrap_or_default();
    lines.for_each(drop);
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let (status, body) = pages.lock().unwrap().get(&path).cloned().unwrap_or_else(|| {
        let body = json!({ "errors": [{ "code": "MANIFEST_UNKNOWN", "message": "manifest unknown" }] });
        (404, body.to_string().into_bytes())
    });
    asked.lock().unwrap().push(path);
    let head = format!("HTTP/1.1 {status} -\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).ok();
}

#[test]
#[cfg_attr(target_arch = "s390x", ignore = "qemu-user has no openat2")]
fn layers_are_fetched_once() {
    let (server, dir) = (Server::start(), TempDir::new().unwrap());
    server.image("1", &["lower", "upper", "lower"]);
    server.image("2", &["lower", "other"]);
    let mut images = Images::new(dir.path().join("image"));
    let names = |folders: &[PathBuf]| -> Vec<String> {
        let name = |folder: &PathBuf| fs::read_dir(folder).unwrap().next().unwrap().unwrap().file_name();
        folders.iter().map(|folder| name(folder).into_string().unwrap()).collect()
    };
    let first = images.pull(&server.name(":1")).unwrap();
    assert_eq!(names(&first), ["lower", "upper"], "the topmost first, each once");
    assert_eq!(server.asked().len(), 4, "manifest, configuration and two layers");
    assert_eq!(images.pull(&server.name(":1")).unwrap(), first);
    assert_eq!(server.asked(), ["/v2/app/manifests/1"], "nothing but the manifest again");
    assert_eq!(names(&images.pull(&server.name(":2")).unwrap()), ["other", "lower"]);
    assert_eq!(server.asked().len(), 3, "manifest, configuration and the layer that is new");
}

#[test]
#[cfg_attr(target_arch = "s390x", ignore = "qemu-user has no openat2")]
fn an_index_is_read_for_the_guests_platform() {
    let (server, dir) = (Server::start(), TempDir::new().unwrap());
    let mut images = Images::new(dir.path().join("image"));
    let (mut ours, mut theirs) = (server.image("s390x", &["ours"]), server.image("amd64", &["theirs"]));
    theirs["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let docker = "application/vnd.docker.distribution.manifest.list.v2+json";
    let list = |manifests: Value| json!({ "schemaVersion": 2, "mediaType": docker, "manifests": manifests });
    server.tag("none", &list(json!([theirs])));
    let refusal = images.pull(&server.name(":none")).unwrap_err();
    assert!(refusal.contains("no entry found in image index manifest"), "{refusal}");
    ours["platform"] = json!({ "os": "linux", "architecture": "s390x" });
    let index = server.tag("latest", &list(json!([theirs, ours])));
    for version in ["", &format!("@{}", index["digest"].as_str().unwrap())] {
        let folders = images.pull(&server.name(version)).unwrap();
        assert!(folders[0].join("ours").exists());
    }
}

#[test]
#[cfg_attr(target_arch = "s390x", ignore = "qemu-user has no openat2")]
fn failures_have_the_real_texts() {
    let (server, dir) = (Server::start(), TempDir::new().unwrap());
    let mut images = Images::new(dir.path().join("image"));
    let mut refused = |reference: &Reference, says: &str| {
        let refusal = images.pull(reference).unwrap_err();
        let outer = format!(
            "Failed to pull image {reference} from all mirror/mapping locations or original location: \
             image: {reference}, error: "
        );
        let inner = refusal.strip_prefix(&outer).unwrap_or_else(|| panic!("{refusal}"));
        assert!(inner.starts_with(says), "{inner}");
    };
    let at = format!("http://{}/v2/app", server.address);
    let manifest = "Errors happened when pulling image: failed to pull image manifest: ";
    refused(
        &server.name(":missing"),
        &format!(
            "{manifest}Registry error: url {at}/manifests/missing, envelope: OCI API errors: \
             [OCI API error: manifest unknown]"
        ),
    );
    server.page("/v2/app/manifests/private".into(), 401, Vec::new());
    refused(&server.name(":private"), &format!("{manifest}Not authorized: url {at}/manifests/private"));
    server.page("/v2/app/manifests/down".into(), 503, Vec::new());
    refused(&server.name(":down"), &format!("{manifest}Server error: url {at}/manifests/down, code: 503"));
    server.page("/v2/app/manifests/html".into(), 200, b"<html>".to_vec());
    refused(&server.name(":html"), &format!("{manifest}Failed to parse manifest: "));
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = Reference::parse(&format!("{closed}/app")).unwrap();
    refused(
        &nobody,
        &format!("{manifest}error sending request for url (http://{closed}/v2/app/manifests/latest)"),
    );

    let good = server.image("good", &["good"]);
    let lying = format!("sha256:{}", "0".repeat(64));
    let body = server.pages.lock().unwrap()
        [&format!("/v2/app/manifests/{}", good["digest"].as_str().unwrap())]
        .1
        .clone();
    server.page(format!("/v2/app/manifests/{lying}"), 200, body.clone());
    refused(&server.name(&format!("@{lying}")), &format!("{manifest}Invalid digest, expected {lying}"));
    let document: Value = serde_json::from_slice(&body).unwrap();
    let layer = format!("/v2/app/blobs/{}", document["layers"][0]["digest"].as_str().unwrap());
    server.page(layer.clone(), 404, Vec::new());
    refused(&server.name(":good"), "Errors happened when pulling image: Failed to async pull blob stream: ");
    server.page(layer, 200, b"nothing packed".to_vec());
    refused(
        &server.name(":good"),
        "Errors happened when pulling image: Failed to decode layer data stream: Failed to unpack layer: ",
    );
    assert_eq!(fs::read_dir(dir.path().join("image")).unwrap().count(), 0, "no part of a layer is left");
}
