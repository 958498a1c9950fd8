//! Collects what preflight checks: the machine, the image's header, the configured documents.

use std::path::{Path, PathBuf};

use crate::host::facts::{self, Count, Root};
use crate::host::files::{changeable_by_others, read_bounded};
use crate::host::image_file::ImageFile;
use crate::hostkey::key_hash;
use crate::image::{self, SealedImage};
use crate::limits;
use crate::plan::checks::{self, CheckInputs, ImageProblem};
use crate::plan::finding::{Finding, pass, warning};
use crate::plan::host_facts::HostFacts;
use crate::plan::key_slot::KnownDocument;

/// What was collected.
#[derive(Debug)]
pub struct PreflightInputs {
    pub machine: HostFacts,
    pub documents: Vec<KnownDocument>,
    pub image: Result<OpenedImage, ImageProblem>,
}

/// A sealed image and its file.
#[derive(Debug)]
pub struct OpenedImage {
    pub file: ImageFile,
    pub image: SealedImage,
}

/// Reads all of it; blocks for a few milliseconds and never fails.
pub fn collect(root: &Root, count: Count, image: &Path, documents: &[PathBuf]) -> PreflightInputs {
    PreflightInputs {
        machine: facts::read(root, count),
        documents: self::documents(documents),
        image: open_image(image),
    }
}

impl PreflightInputs {
    /// The findings for a VM of this size.
    pub fn findings(&self, memory_mib: u32, vcpus: u32) -> Vec<Finding> {
        checks::run(&CheckInputs {
            host: &self.machine,
            image: self.image.as_ref().map(|opened| &opened.image),
            documents: &self.documents,
            memory_mib,
            vcpus,
        })
    }
}

/// Whether only root can change these files, the configuration's and the image: the checks of a pod rest on
/// them.
pub(crate) fn ownership<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Finding {
    let open: Vec<String> = files.into_iter().filter_map(|file| changeable_by_others(file)).collect();
    if open.is_empty() {
        return pass("files", "only root can change the configuration and the image");
    }
    warning(
        "files",
        "others than root could change the configuration or the image",
        &open.join(", "),
        "chown these to root, and chmod go-w",
    )
}

pub(crate) fn open_image(path: &Path) -> Result<OpenedImage, ImageProblem> {
    let file = ImageFile::open(path).map_err(|e| ImageProblem::Unreadable(e.to_string()))?;
    let image = image::read(&file).map_err(ImageProblem::Invalid)?;
    Ok(OpenedImage { file, image })
}

/// Reads host key documents.
pub(crate) fn documents(paths: &[PathBuf]) -> Vec<KnownDocument> {
    paths.iter().map(|path| document(path)).collect()
}

fn document(path: &Path) -> KnownDocument {
    let name = path.display().to_string();
    let key = read_bounded(path, limits::image::CERTIFICATE_BYTES).and_then(|bytes| key_hash(&name, &bytes));
    KnownDocument { path: name, key: key.map_err(|e| e.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::finding::{Severity, refusal};

    #[test]
    fn files_that_others_could_change_are_a_warning() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("dir");
        let files = ["config.toml", "image"].map(|name| dir.path().join(name));
        for file in &files {
            std::fs::write(file, "").expect("write");
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        }
        assert_eq!(ownership(&files).severity, Severity::Pass);
        std::fs::set_permissions(&files[1], std::fs::Permissions::from_mode(0o666)).expect("chmod");
        let found = ownership(&files);
        assert_eq!((found.severity, found.check), (Severity::Warning, "files"));
        let wanted = format!(
            "others than root could change the configuration or the image: {} (uid ",
            files[1].display()
        );
        assert!(found.text.to_string().starts_with(&wanted), "{}", found.text);
    }

    #[test]
    fn files_that_are_not_what_they_should_be_are_findings() {
        let dir = tempfile::tempdir().expect("dir");
        let kernel = dir.path().join("kernel");
        std::fs::write(&kernel, vec![0; 4096]).expect("write");
        let root = Root::of_this_machine();
        let take = |image: &Path, documents: &[PathBuf]| collect(&root, Count::NearLimit, image, documents);
        let plain = take(&kernel, &[kernel.clone(), "/nonexistent/HKD.crt".into()]);
        let refused = refusal(&plain.findings(2048, 1)).expect("fatal");
        assert!(
            refused.contains("not a Secure Execution image: QEMU would boot it unprotected"),
            "{refused}"
        );
        let errors: Vec<_> =
            plain.documents.iter().map(|d| d.key.clone().expect_err("no document")).collect();
        assert!(errors[0].contains("there is no \"-----BEGIN CERTIFICATE-----\" in it"), "{}", errors[0]);
        assert!(errors[1].starts_with("read /nonexistent/HKD.crt: No such file"), "{}", errors[1]);
        let missing = take(&dir.path().join("none"), &[]);
        let refused = refusal(&missing.findings(2048, 1)).expect("fatal");
        assert!(refused.contains("the image cannot be read"), "{refused}");
    }
}
