//! Before a confidential VM is launched: the checks, and that what was checked is what QEMU took.

use std::path::{Path, PathBuf};
use std::time::Instant;

use slog::{debug, info, warn};

use crate::config::initdata::Initdata;
use crate::config::{Boot, Config};
use crate::error::{Context, Error, Result};
use crate::host::begun::blocking;
use crate::host::digest_cache;
use crate::host::facts::{Count, Root};
use crate::host::image_file::{Identity, ImageFile};
use crate::host::probe::{self, OpenedImage};
use crate::plan::checks::{digests, tag};
use crate::plan::finding::{Finding, Severity, refusal, warning};
use crate::plan::key_slot;
use crate::plan::size::Size;
use crate::pod::Pod;
use crate::pod::record::{ImageRecord, Record};

/// The image that passed.
#[derive(Debug)]
pub(crate) struct CheckedImage {
    path: PathBuf,
    identity: Identity,
    pub(crate) record: ImageRecord,
}

/// Checks that what the VM boots is there and may run: all of preflight for a sealed image. It is written into the
/// sandbox record.
pub(crate) async fn check_boot(
    pod: &Pod,
    config: &Config,
    size: Size,
    initdata: Option<&Initdata>,
) -> Result<Option<CheckedImage>> {
    let checked = match &config.boot {
        Boot::Sealed { image } => Some(check(pod, config, image, size).await?),
        Boot::Plain { kernel, initrd, .. } => {
            warn!(pod.log(), "guest.confidential = false: this pod is NOT protected from the host");
            check_file("guest.kernel", kernel)?;
            check_file("guest.initrd", initrd)?;
            None
        }
    };
    let image = checked.as_ref().map(|checked| checked.record.clone());
    let mut record = Record::new(pod.parts.sandbox.as_str(), config.rootfs.mode, image);
    if let Some(Initdata { digest, .. }) = initdata {
        info!(pod.log(), "the pod brings initdata"; "algorithm" => digest.algorithm.name(), "digest" => &digest.hash);
        record.initdata = Some(digest.into());
    }
    record.write(&pod.parts.dir)?;
    Ok(checked)
}

/// QEMU would say less clearly what is missing.
fn check_file(key: &str, path: &Path) -> Result<()> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(()),
        Err(e) => {
            Err(Error::precondition(format!("{key} = {}: {e}: check the configuration", path.display())))
        }
    }
}

/// Checks machine, image and size. A fatal finding is the error; all of them are logged.
async fn check(pod: &Pod, config: &Config, image: &Path, size: Size) -> Result<CheckedImage> {
    let began = Instant::now();
    let (config, path) = (config.clone(), image.to_path_buf());
    let notes = pod.parts.dir.parent().map(Path::to_path_buf).unwrap_or_default();
    let (findings, checked) = blocking("preflight", move || Ok(look(&config, path, &notes, size))).await?;
    for finding in &findings {
        match finding.severity {
            Severity::Pass => debug!(pod.log(), "preflight: {}: {}", finding.check, finding.text),
            Severity::Warning => warn!(pod.log(), "preflight: {}: {}", finding.check, finding.text),
            Severity::Fatal => warn!(pod.log(), "preflight: {}: refused: {}", finding.check, finding.text),
        }
    }
    if let Some(refusal) = refusal(&findings) {
        return Err(Error::precondition(refusal));
    }
    let checked = checked.ok_or_else(|| Error::internal("preflight found an image and lost it"))?;
    let record = &checked.record;
    info!(pod.log(), "image checked"; "image" => &record.path, "size" => record.size, "tag" => &record.tag,
        "key" => record.key.as_deref().unwrap_or("not known"),
        "us" => u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
    Ok(checked)
}

fn look(config: &Config, path: PathBuf, notes: &Path, size: Size) -> (Vec<Finding>, Option<CheckedImage>) {
    let root = Root::of_this_machine();
    let inputs = probe::collect(&root, Count::NearLimit, &path, &config.host_key_documents);
    let mut findings = inputs.findings(size.memory_mib, size.vcpus);
    findings.push(probe::ownership(config.files.iter().chain([&path])));
    let Ok(OpenedImage { file, image }) = &inputs.image else { return (findings, None) };
    if config.verify_digest && refusal(&findings).is_none() {
        findings.push(match digest_cache::verdict(notes, file, image, |_, _| ()) {
            Ok(Some(verdict)) => digests(&verdict),
            Ok(None) => warning(
                "digests",
                "the image's content could not be checked",
                "it has no list of components, older tools did not write one",
                "rebuild it with s390-tools 2.17 or newer, or set guest.verify_digest = false",
            ),
            Err(e) => digests_unreadable(&e.to_string()),
        });
    }
    let record = ImageRecord {
        path: path.display().to_string(),
        size: image.size,
        tag: tag(image),
        key: key_slot::matched(image, &inputs.machine, &inputs.documents).map(|key| key.to_string()),
    };
    (findings, Some(CheckedImage { identity: file.identity(), path, record }))
}

fn digests_unreadable(why: &str) -> Finding {
    let text = "the image's content could not be read";
    Finding {
        severity: Severity::Fatal,
        ..warning("digests", text, why, "check the file and its file system")
    }
}

impl CheckedImage {
    /// QEMU opened the path some time after it was checked: called when QEMU has read the image and the guest does
    /// not run yet.
    pub(crate) fn is_unchanged(&self) -> Result<()> {
        let now = ImageFile::open(&self.path).context("check the image again")?;
        if now.identity() == self.identity {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "guest.image = {}: the file was replaced or changed while the VM was started: try again",
            self.path.display()
        )))
    }
}
