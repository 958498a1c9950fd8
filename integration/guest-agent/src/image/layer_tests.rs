//! Layers of every kind, and those that try to leave their folder. Needs root, as the agent does.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use tar::{Builder, Header};
use tempfile::TempDir;

use super::super::sha256;
use super::*;

/// An entry: its type, mode and owner, its name, and its content or what it links to.
type Item<'a> = (EntryType, u32, u64, &'a str, &'a str);

/// Names are written as they are, which `tar` would refuse for some.
fn archive(items: &[Item<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, mode, owner, name, content) in items {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(*owner);
        header.set_gid(*owner);
        header.set_mtime(1_000_000_000);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        let data = match kind {
            EntryType::Symlink | EntryType::Link => {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
                ""
            }
            EntryType::Char => {
                header.set_device_major(1).unwrap();
                header.set_device_minor(3).unwrap();
                ""
            }
            _ => content,
        };
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn packed(tar: &[u8], suffix: &str) -> Vec<u8> {
    match suffix {
        "+gzip" | ".gzip" => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        "+zstd" => compress_to_vec(tar, CompressionLevel::Fastest),
        _ => tar.to_vec(),
    }
}

fn descriptor(bytes: &[u8], media_type: &str) -> Descriptor {
    let (digest, size) = sha256(bytes, io::sink()).unwrap();
    let text = serde_json::json!({ "mediaType": media_type, "digest": digest, "size": size }).to_string();
    serde_json::from_str(&text).unwrap()
}

const OCI: &str = "application/vnd.oci.image.layer.v1.tar";

/// Unpacks a plain archive into the folder `layer` of `dir`.
fn unpacked(dir: &TempDir, tar: &[u8]) -> Result<PathBuf> {
    let into = dir.path().join("layer");
    let (diff_id, _) = sha256(tar, io::sink()).unwrap();
    unpack(tar, &descriptor(tar, OCI), &diff_id, &into).map(|()| into)
}

#[test]
#[cfg_attr(target_arch = "s390x", ignore = "qemu-user has no openat2")]
fn every_packing_has_the_same_content() {
    let tar = archive(&[
        (EntryType::Directory, 0o755, 0, "./", ""),
        (EntryType::Directory, 0o750, 12, "./etc/", ""),
        (EntryType::Regular, 0o4755, 34, "./etc/plain", "plain\n"),
        (EntryType::Link, 0o644, 0, "etc/hard", "./etc/plain"),
        (EntryType::Symlink, 0o777, 56, "etc/soft", "../../../etc/shadow"),
        (EntryType::Char, 0o666, 0, "dev/null", ""),
        (EntryType::Fifo, 0o600, 0, "dev/fifo", ""),
        (EntryType::Regular, 0o644, 0, "etc/.wh.gone", ""),
        (EntryType::Regular, 0o644, 0, "opaque/.wh..wh..opq", ""),
        (EntryType::Regular, 0o644, 0, "opaque/shown", "shown"),
        (EntryType::Regular, 0o644, 0, "etc/twice", "first"),
        (EntryType::Regular, 0o644, 0, "etc/twice", "last"),
    ]);
    let (diff_id, _) = sha256(&tar[..], io::sink()).unwrap();
    let docker = "application/vnd.docker.image.rootfs.diff.tar";
    for (base, suffix) in [(OCI, ""), (OCI, "+gzip"), (OCI, "+zstd"), (docker, ".gzip")] {
        let dir = TempDir::new().unwrap();
        let into = dir.path().join("layer");
        let bytes = packed(&tar, suffix);
        unpack(&bytes[..], &descriptor(&bytes, &format!("{base}{suffix}")), &diff_id, &into).unwrap();
        let meta = |name: &str| into.join(name).symlink_metadata().unwrap();
        assert_eq!(fs::read_to_string(into.join("etc/plain")).unwrap(), "plain\n", "{base}{suffix}");
        let (plain, etc) = (meta("etc/plain"), meta("etc"));
        assert_eq!((plain.mode() & 0o7777, plain.uid(), plain.mtime()), (0o4755, 34, 1_000_000_000));
        assert_eq!((etc.mode() & 0o7777, etc.gid()), (0o750, 12));
        assert_eq!((meta("etc/hard").ino(), plain.nlink()), (plain.ino(), 2));
        assert_eq!(fs::read_link(into.join("etc/soft")).unwrap(), Path::new("../../../etc/shadow"));
        assert_eq!(meta("etc/soft").uid(), 56);
        assert!(meta("dev/null").file_type().is_char_device() && meta("dev/fifo").file_type().is_fifo());
        assert_eq!(meta("dev/null").rdev(), makedev(1, 3));
        assert!(meta("etc/gone").file_type().is_char_device() && meta("etc/gone").rdev() == 0);
        let mut mark = [0; 8];
        let length = rustix::fs::getxattr(into.join("opaque"), "trusted.overlay.opaque", &mut mark).unwrap();
        assert_eq!(&mark[..length], b"y");
        assert!(!into.join("opaque/.wh..wh..opq").exists());
        assert_eq!(fs::read_to_string(into.join("etc/twice")).unwrap(), "last");
    }
}

#[test]
#[cfg_attr(target_arch = "s390x", ignore = "qemu-user has no openat2")]
fn links_in_paths_lead_to_places_in_the_layer() {
    let dir = TempDir::new().unwrap();
    let tar = archive(&[
        (EntryType::Directory, 0o755, 0, "usr/lib", ""),
        (EntryType::Symlink, 0o777, 0, "lib", "usr/lib"),
        (EntryType::Symlink, 0o777, 0, "absolute", "/usr/lib"),
        (EntryType::Symlink, 0o777, 0, "up", "../../../../usr/lib"),
        (EntryType::Regular, 0o644, 0, "lib/a", "a"),
        (EntryType::Regular, 0o644, 0, "absolute/b", "b"),
        (EntryType::Regular, 0o644, 0, "up/c", "c"),
        (EntryType::Regular, 0o644, 0, "/usr/lib/d", "d"),
    ]);
    let layer = unpacked(&dir, &tar).unwrap();
    let mut names: Vec<_> =
        fs::read_dir(layer.join("usr/lib")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "b", "c", "d"]);
}

#[test]
#[cfg_attr(target_arch = "s390x", ignore = "qemu-user has no openat2")]
fn nothing_is_made_outside_the_layer() {
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let at = outside.path().to_str().unwrap();
    let through = format!("{at}/new");
    let secret = format!("{at}/secret");
    let cases: [(&str, Vec<Item<'_>>); 7] = [
        ("`..` in a path", vec![(EntryType::Regular, 0o644, 0, "../new", "x")]),
        ("`..` in a path", vec![(EntryType::Regular, 0o644, 0, "a/../../new", "x")]),
        (
            "out/new: ",
            vec![(EntryType::Symlink, 0o777, 0, "out", at), (EntryType::Regular, 0o644, 0, "out/new", "x")],
        ),
        ("hard: ", vec![(EntryType::Link, 0o644, 0, "hard", &secret)]),
        ("`..` in a path", vec![(EntryType::Link, 0o644, 0, "hard", "../secret")]),
        ("a whiteout of nothing", vec![(EntryType::Regular, 0o644, 0, ".wh...", "")]),
        ("not supported", vec![(EntryType::new(b'V'), 0o644, 0, "label", "")]),
    ];
    for (says, items) in cases {
        let dir = TempDir::new().unwrap();
        let refusal = unpacked(&dir, &archive(&items)).unwrap_err();
        assert!(refusal.contains(says), "{says}: {refusal}");
        assert!(refusal.starts_with("Failed to decode layer data stream: Failed to unpack layer: "));
    }
    // A link as the last part is replaced, not followed.
    let dir = TempDir::new().unwrap();
    let items = [(EntryType::Symlink, 0o777, 0, "f", &*through), (EntryType::Regular, 0o644, 0, "f", "x")];
    let layer = unpacked(&dir, &archive(&items)).unwrap();
    assert_eq!(fs::read_to_string(layer.join("f")).unwrap(), "x");
    let names: Vec<_> = fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["secret"]);
}

#[test]
#[cfg_attr(target_arch = "s390x", ignore = "qemu-user has no openat2")]
fn a_layer_that_is_not_what_was_named_is_refused() {
    let tar = archive(&[(EntryType::Regular, 0o644, 0, "a", "a")]);
    let gzip = packed(&tar, "+gzip");
    let good = descriptor(&gzip, &format!("{OCI}+gzip"));
    let (diff_id, _) = sha256(&tar[..], io::sink()).unwrap();
    let dir = TempDir::new().unwrap();
    let mut number = 0;
    let mut refused = |bytes: &[u8], layer: &Descriptor, diff_id: &str, says: &str| {
        number += 1;
        let refusal = unpack(bytes, layer, diff_id, &dir.path().join(number.to_string())).unwrap_err();
        assert!(refusal.contains(says), "{says}: {refusal}");
    };
    let other = descriptor(b"other", &good.media_type);
    refused(&gzip, &other, &diff_id, "Invalid digest, expected sha256:");
    refused(&gzip, &good, &other.digest, "unequal uncompressed digest sha256:");
    refused(&gzip[..gzip.len() / 2], &good, &diff_id, "Failed to decode layer data stream");
    refused(&tar, &good, &diff_id, "Failed to decode layer data stream");
    let zstd = Descriptor { media_type: format!("{OCI}+zstd"), ..good.clone() };
    refused(&gzip, &zstd, &diff_id, "Failed to decode layer data stream");
    let encrypted = Descriptor { media_type: format!("{OCI}+gzip+encrypted"), ..good };
    refused(&gzip, &encrypted, &diff_id, "unsupported media type");
}
