//! The sandbox record `state.json` in the pod's directory: which image runs, and why it failed.
//!
//! For people and `kata-se explain`: nothing is ever cleaned up by it, and it goes with the directory.
//! It holds facts of the image's header, never content.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::RootfsMode;
use crate::config::initdata::InitdataDigest;
use crate::error::{Context, Error, Result};
use crate::host::files::{read_bounded, write_atomic};
use crate::lifecycle::vm::VmEnd;
use crate::limits;
use crate::pod::dir::RECORD;

const VERSION: u32 = 1;

/// One sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub version: u32,
    pub sandbox: String,
    /// Whether the guest is to be protected: `guest.confidential`.
    pub confidential: bool,
    /// How root file systems come into the guest: `rootfs.mode`. Records of older programs have none.
    #[serde(default)]
    pub rootfs: Option<String>,
    /// The sealed image; none for a guest that is not confidential.
    pub image: Option<ImageRecord>,
    /// What the pod gave its guest's programs; none, or written by a program that did not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initdata: Option<InitdataRecord>,
    /// Why the VM ended without being asked.
    pub failure: Option<Failure>,
}

/// The hash of a pod's initdata, to be compared with what its guest reports. Never its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InitdataRecord {
    pub algorithm: String,
    /// In hexadecimal.
    pub digest: String,
}

impl From<&InitdataDigest> for InitdataRecord {
    fn from(digest: &InitdataDigest) -> Self {
        Self { algorithm: digest.algorithm.name().to_owned(), digest: digest.hash.clone() }
    }
}

/// What was booted. Tag and key in hexadecimal, as attestation names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub path: String,
    pub size: u64,
    /// The header's GCM tag, `se.tag`.
    pub tag: String,
    /// The hash in the key slot that fits this machine, `se.image_phkh`; none where it is not known.
    pub key: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub cause: String,
    pub evidence: String,
    pub advice: String,
    /// QEMU's and the guest's last words.
    #[serde(rename = "words")]
    pub output_tail: String,
}

impl Record {
    pub(crate) fn new(sandbox: &str, rootfs: RootfsMode, image: Option<ImageRecord>) -> Self {
        let confidential = image.is_some();
        let (sandbox, rootfs) = (sandbox.to_owned(), Some(rootfs.word().to_owned()));
        Self { version: VERSION, sandbox, confidential, rootfs, image, initdata: None, failure: None }
    }

    /// Writes the record whole or not at all, mode 0600.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context("encode the sandbox record")?;
        write_atomic(dir, RECORD, &text)
    }

    /// Reads the record of the pod in `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(RECORD);
        let bytes = read_bounded(&path, limits::host::RECORD_BYTES)?;
        Self::parse(&bytes).with_context(|| format!("read {}", path.display()))
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let record: Self = serde_json::from_slice(bytes).map_err(|e| Error::internal(e.to_string()))?;
        if record.version != VERSION {
            return Err(Error::invalid(format!("version {}, this program knows {VERSION}", record.version)));
        }
        Ok(record)
    }
}

impl Failure {
    /// None for an end that was wanted.
    pub(crate) fn of(end: &VmEnd) -> Option<Self> {
        match end {
            VmEnd::AskedToStop => None,
            VmEnd::Explained { diagnosis, output_tail } => Some(Self {
                cause: diagnosis.cause.clone(),
                evidence: diagnosis.evidence.clone(),
                advice: diagnosis.advice.clone(),
                output_tail: output_tail.clone(),
            }),
            VmEnd::Exited { .. } | VmEnd::Killed { .. } | VmEnd::Panicked { .. } => Some(Self {
                cause: end.to_string(),
                evidence: String::new(),
                advice: String::new(),
                output_tail: String::new(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_private_and_comes_back() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("dir");
        let image = ImageRecord { path: "/i".into(), size: 7, tag: "ab".into(), key: None };
        let mut record = Record::new("s1", RootfsMode::GuestPull, Some(image));
        record.write(dir.path()).expect("write");
        record.failure = Failure::of(&VmEnd::Exited { code: 1, text: "x".into() });
        record.write(dir.path()).expect("again");
        assert_eq!(Record::read(dir.path()), Ok(record.clone()));
        let mode = std::fs::metadata(dir.path().join(RECORD)).expect("stat").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        record.version = 2;
        record.write(dir.path()).expect("newer");
        assert!(
            Record::read(dir.path())
                .expect_err("newer")
                .to_string()
                .ends_with("version 2, this program knows 1")
        );
        assert_eq!(Failure::of(&VmEnd::AskedToStop), None);
    }

    #[test]
    fn records_with_and_without_initdata_are_read_by_older_and_newer_programs() {
        let mut record = Record::new("s1", RootfsMode::Packed, None);
        let oldest = r#"{"version":1,"sandbox":"s1","confidential":false,"image":null,"failure":null}"#;
        let mode = record.rootfs.take();
        assert_eq!(Record::parse(oldest.as_bytes()), Ok(record.clone()));
        record.rootfs = mode;
        record.initdata = Some(InitdataRecord { algorithm: "sha256".into(), digest: "ab".into() });
        let text = serde_json::to_string(&record).expect("text");
        assert_eq!(Record::parse(text.as_bytes()), Ok(record));
        // A field that this version does not know, as an older one does not know this one.
        let newer = text.replace("\"initdata\"", "\"later\"");
        assert_eq!(Record::parse(newer.as_bytes()).expect("newer").initdata, None);
    }
}
