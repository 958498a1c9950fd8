//! Images that the guest pulls itself, as the confidential data hub of a real guest does: manifest, layers, and a
//! folder for each layer, which all containers of the pod share.

mod layer;
mod reference;
mod registry;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use sha2::{Digest, Sha256};

pub(crate) use reference::Reference;
use registry::Registry;

type Result<T> = std::result::Result<T, String>;

/// What an overlay's options, one page, have room for.
const LAYERS: usize = 110;

/// Layers and images of this guest.
#[derive(Debug)]
pub(crate) struct Images {
    dir: PathBuf,
    /// Folders by the digest of the layer as it comes.
    layers: HashMap<String, PathBuf>,
    /// Folders of an image, the topmost first, by the digest of its configuration.
    images: HashMap<String, Vec<PathBuf>>,
    /// Folders made, finished or not.
    made: usize,
}

impl Images {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, layers: HashMap::new(), images: HashMap::new(), made: 0 }
    }

    /// The folders of an image's layers, the topmost first. What is there already is not fetched again.
    pub(crate) fn pull(&mut self, reference: &Reference) -> Result<Vec<PathBuf>> {
        self.pull_from(reference).map_err(|e| {
            format!(
                "Failed to pull image {reference} from all mirror/mapping locations or original location: \
                 image: {reference}, error: {e}"
            )
        })
    }

    fn pull_from(&mut self, reference: &Reference) -> Result<Vec<PathBuf>> {
        let happened = |e: String| format!("Errors happened when pulling image: {e}");
        let of_manifest = |e: String| happened(format!("failed to pull image manifest: {e}"));
        let registry = Registry::new(reference);
        let (manifest, config) = registry.manifest().map_err(of_manifest)?;
        if let Some(known) = self.images.get(&config.digest) {
            return Ok(known.clone());
        }
        let diff_ids = registry.diff_ids(&config).map_err(of_manifest)?;
        if manifest.layers.len() != diff_ids.len() || diff_ids.is_empty() || diff_ids.len() > LAYERS {
            let (layers, ids) = (manifest.layers.len(), diff_ids.len());
            return Err(format!("Internal error: {layers} layers, {ids} diff_ids, at most {LAYERS}"));
        }
        let mut folders = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&diff_ids) {
            let folder = match self.layers.get(&layer.digest) {
                Some(folder) => folder.clone(),
                None => self.fetch(&registry, layer, diff_id).map_err(happened)?,
            };
            // An overlay takes a folder once: its topmost place is what counts.
            folders.retain(|lower| *lower != folder);
            folders.insert(0, folder);
        }
        self.images.insert(config.digest, folders.clone());
        Ok(folders)
    }

    fn fetch(
        &mut self,
        registry: &Registry<'_>,
        layer: &registry::Descriptor,
        diff_id: &str,
    ) -> Result<PathBuf> {
        let folder = self.dir.join(self.made.to_string());
        self.made += 1;
        let bytes = registry.layer(layer).map_err(|e| format!("Failed to async pull blob stream: {e}"))?;
        fs::create_dir_all(&self.dir).map_err(|e| format!("{}: {e}", self.dir.display()))?;
        if let Err(e) = layer::unpack(bytes, layer, diff_id, &folder) {
            // Half a layer takes memory of the guest.
            fs::remove_dir_all(&folder).ok();
            return Err(e);
        }
        self.layers.insert(layer.digest.clone(), folder.clone());
        Ok(folder)
    }
}

fn is_digest(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Copies bytes and returns their digest and number.
fn sha256(from: impl Read, mut to: impl Write) -> io::Result<(String, u64)> {
    let mut hashed = Hashed::new(from);
    io::copy(&mut hashed, &mut to)?;
    hashed.finish()
}

/// A reader that remembers what it has read.
struct Hashed<R> {
    from: R,
    hash: Sha256,
    read: u64,
}

impl<R: Read> Hashed<R> {
    fn new(from: R) -> Self {
        Self { from, hash: Sha256::new(), read: 0 }
    }

    /// Reads the rest; the digest and the number of all bytes.
    fn finish(mut self) -> io::Result<(String, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((format!("sha256:{:x}", self.hash.finalize()), self.read))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.hash.update(buffer.get(..n).unwrap_or_default());
        self.read += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
