//! Checks whether one of an image's key slots fits this machine: by the kernel's list of host keys, else
//! by the host key documents that the configuration names.

use crate::image::{KeyHash, SealedImage};
use crate::limits;
use crate::plan::finding::{Finding, fatal, pass, warning};
use crate::plan::host_facts::{Fact, HostFacts, HostKeys};

/// A configured host key document and the hash of its key, or why it has no usable key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownDocument {
    pub path: String,
    pub key: Result<KeyHash, String>,
}

/// The flag that allows the machine's backup host key to open the image.
const BACKUP_KEYS: u32 = 62;

const REBUILD: &str = "built for another machine: rebuild it with this machine's host key document";

/// The host key of the slot that opens on this machine, as far as known.
pub(crate) fn matched(image: &SealedImage, host: &HostFacts, documents: &[KnownDocument]) -> Option<KeyHash> {
    let mut mine: Vec<KeyHash> = match &host.keys {
        Fact::Known(keys) => keys.host.into_iter().chain(keys.backup).collect(),
        Fact::Absent | Fact::Unclear(_) => documents.iter().filter_map(|d| d.key.clone().ok()).collect(),
    };
    mine.retain(|key| slots(image).any(|slot| slot == *key));
    mine.first().copied()
}

pub(crate) fn check(image: &SealedImage, host: &HostFacts, documents: &[KnownDocument]) -> Finding {
    match &host.keys {
        Fact::Known(keys) => by_machine(image, keys),
        Fact::Absent => by_documents(image, documents, "this kernel does not report the machine's keys"),
        Fact::Unclear(text) => by_documents(image, documents, text),
    }
}

fn by_machine(image: &SealedImage, keys: &HostKeys) -> Finding {
    if let Some(host) = keys.host.filter(|key| slots(image).any(|slot| slot == *key)) {
        return pass("key", format!("a key slot fits this machine's host key {}", host.short()));
    }
    if let Some(backup) = keys.backup.filter(|key| slots(image).any(|slot| slot == *key)) {
        if image.header.flags.has(BACKUP_KEYS) {
            return pass("key", format!("a key slot fits this machine's backup host key {}", backup.short()));
        }
        return warning(
            "key",
            "the image fits only this machine's backup host key, and does not allow it",
            &format!("backup host key {}; the flag \"backup target keys\" is not set", backup.short()),
            "rebuild the image with this machine's host key document",
        );
    }
    let own: Vec<KeyHash> = keys.host.into_iter().chain(keys.backup).collect();
    fatal(
        "key",
        REBUILD,
        &both(image, &own, "this machine's keys"),
        "IBM provides the document by serial number",
    )
}

fn by_documents(image: &SealedImage, documents: &[KnownDocument], why: &str) -> Finding {
    let good: Vec<(&str, KeyHash)> =
        documents.iter().filter_map(|d| Some((d.path.as_str(), *d.key.as_ref().ok()?))).collect();
    if let Some((path, _)) = good.iter().find(|(_, key)| slots(image).any(|slot| slot == *key)) {
        return pass("key", format!("a key slot fits the configured host key document {path}"));
    }
    let bad = documents.iter().find_map(|d| Some(format!("{}: {}", d.path, d.key.as_ref().err()?)));
    if let Some(bad) = bad {
        return warning(
            "key",
            "whether the image fits this machine could not be checked",
            &format!("{why}; {bad}"),
            "name this machine's document in guest.host_key_documents",
        );
    }
    if good.is_empty() {
        return warning(
            "key",
            "whether the image fits this machine could not be checked",
            why,
            "use Linux 6.13 or newer, or name this machine's document in guest.host_key_documents",
        );
    }
    let own: Vec<KeyHash> = good.into_iter().map(|(_, key)| key).collect();
    fatal(
        "key",
        REBUILD,
        &both(image, &own, "keys of the configured documents"),
        "or correct guest.host_key_documents",
    )
}

fn both(image: &SealedImage, own: &[KeyHash], whose: &str) -> String {
    let sealed: Vec<KeyHash> = slots(image).collect();
    format!("the image's slots: {}; {whose}: {}", list(&sealed), list(own))
}

fn list(keys: &[KeyHash]) -> String {
    let mut text =
        keys.iter().take(limits::image::LISTED_KEYS).map(KeyHash::short).collect::<Vec<_>>().join(", ");
    if keys.len() > limits::image::LISTED_KEYS {
        text.push_str(&format!(" and {} more", keys.len() - limits::image::LISTED_KEYS));
    }
    text
}

fn slots(image: &SealedImage) -> impl Iterator<Item = KeyHash> {
    image.header.slots.iter().map(|slot| slot.host_key)
}
