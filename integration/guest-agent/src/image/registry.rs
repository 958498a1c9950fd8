//! A registry, asked over plain HTTP.

use std::io::{self, Read};
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

use super::reference::Reference;
use super::{Result, sha256};

/// The largest manifest, index or configuration that is read: what registries take at most.
const DOCUMENT_LIMIT: u64 = 4 << 20;
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// The machine that images are chosen for.
const PLATFORM: (&str, &str) = ("linux", "s390x");

/// A manifest, or an index of manifests.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    schema_version: u32,
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(super) platform: Option<Platform>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Platform {
    os: String,
    architecture: String,
}

#[derive(Debug, Deserialize)]
struct Config {
    rootfs: Rootfs,
}

#[derive(Debug, Deserialize)]
struct Rootfs {
    diff_ids: Vec<String>,
}

/// The error format of registries.
#[derive(Debug, Default, Deserialize)]
struct Complaints {
    #[serde(default)]
    errors: Vec<Complaint>,
}

#[derive(Debug, Deserialize)]
struct Complaint {
    #[serde(default)]
    message: String,
}

/// The registry of one image.
pub(crate) struct Registry<'a> {
    agent: Agent,
    reference: &'a Reference,
}

impl<'a> Registry<'a> {
    pub(crate) fn new(reference: &'a Reference) -> Self {
        let config = Agent::config_builder().http_status_as_error(false).proxy(None);
        Self { agent: config.timeout_connect(Some(CONNECT_LIMIT)).build().into(), reference }
    }

    /// The manifest of this platform, and the descriptor of its configuration.
    pub(crate) fn manifest(&self) -> Result<(Manifest, Descriptor)> {
        let mut manifest = self.document(self.reference.version(), self.reference.digest.as_deref())?;
        if manifest.config.is_none() {
            let ours = |platform: &Platform| (&*platform.os, &*platform.architecture) == PLATFORM;
            let chosen = manifest.manifests.iter().find(|m| m.platform.as_ref().is_some_and(ours));
            let digest = chosen.map(|m| m.digest.clone());
            let digest =
                digest.ok_or("no entry found in image index manifest matching client's default platform")?;
            manifest = self.document(&digest, Some(&digest))?;
        }
        let config = manifest.config.clone().ok_or("Failed to parse manifest: it has no configuration")?;
        Ok((manifest, config))
    }

    /// The digests of the layers' content, unpacked.
    pub(crate) fn diff_ids(&self, config: &Descriptor) -> Result<Vec<String>> {
        let url = self.url("blobs", &config.digest);
        let bytes = whole(&url, self.get(&url, "*/*")?)?;
        verify(&bytes, &config.digest)?;
        let config: Config =
            serde_json::from_slice(&bytes).map_err(|e| format!("image configuration: {e}"))?;
        Ok(config.rootfs.diff_ids)
    }

    /// The bytes of a layer as they come; what is more than its size is not read.
    pub(crate) fn layer(&self, layer: &Descriptor) -> Result<impl Read + use<>> {
        let url = self.url("blobs", &layer.digest);
        let body = self.get(&url, "*/*")?.into_body();
        Ok(body.into_reader().take(layer.size.saturating_add(1)))
    }

    fn document(&self, version: &str, digest: Option<&str>) -> Result<Manifest> {
        let url = self.url("manifests", version);
        let bytes = whole(&url, self.get(&url, MANIFESTS)?)?;
        if let Some(digest) = digest {
            verify(&bytes, digest)?;
        }
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| format!("Failed to parse manifest: {e}"))?;
        match manifest.schema_version {
            2 => Ok(manifest),
            other => Err(format!("Unsupported schema version: {other}")),
        }
    }

    fn url(&self, kind: &str, version: &str) -> String {
        format!("http://{}/v2/{}/{kind}/{version}", self.reference.registry, self.reference.repository)
    }

    fn get(&self, url: &str, accept: &str) -> Result<Response<Body>> {
        let answer = self.agent.get(url).header(header::ACCEPT, accept).call();
        let answer = answer.map_err(|e| format!("error sending request for url ({url}): {e}"))?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            StatusCode::UNAUTHORIZED => Err(format!("Not authorized: url {url}")),
            status if status.is_client_error() => {
                let bytes = whole(url, answer).unwrap_or_default();
                let complaints: Complaints = serde_json::from_slice(&bytes).unwrap_or_default();
                let said: Vec<_> = complaints.errors.into_iter().map(|e| e.message).collect();
                let said = said.join(", ");
                Err(format!("Registry error: url {url}, envelope: OCI API errors: [OCI API error: {said}]"))
            }
            status => Err(format!("Server error: url {url}, code: {}, message: {status}", status.as_u16())),
        }
    }
}

fn whole(url: &str, answer: Response<Body>) -> Result<Vec<u8>> {
    let read = answer.into_body().into_with_config().limit(DOCUMENT_LIMIT).read_to_vec();
    read.map_err(|e| format!("error decoding response body of {url}: {e}"))
}

fn verify(bytes: &[u8], digest: &str) -> Result<()> {
    let (found, _) = sha256(bytes, io::sink()).map_err(|e| e.to_string())?;
    if found == digest { Ok(()) } else { Err(format!("Invalid digest, expected {digest}, got {found}")) }
}
