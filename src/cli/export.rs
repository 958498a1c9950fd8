//! `kata-se image export`: the folder that an attestation service needs for one image.
//!
//! The layout is that of Trustee's deps/verifier/src/se (`hdr/hdr.bin`, `hkds`, `certs`, `crls`, `root_ca.crt`,
//! `rsa`). Everything in it is public: header, certificates, revocation lists.

use std::fmt::Write as _;
use std::fs::{self, File, Metadata, Permissions};
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use nix::libc;
use serde_json::{Value, json};

use crate::cli::host_key::{TrustFiles, check_documents, now};
use crate::cli::inspect::{open_image, read_documents};
use crate::cli::output::{Report, Style};
use crate::error::{Context, Error, Result};
use crate::host::files::{make_dirs, private_dir, random};
use crate::hostkey::{Document, Trust, pem};
use crate::image::{ImageError, SealedImage, header_bytes};
use crate::plan::checks::tag;

/// Writes what an attestation service (Trustee) needs for an image: its header, host key documents, certificates,
/// revocation lists and reference values. With --signing-key the documents are checked first.
///
/// Each image needs its own folder, and a new one when it is rebuilt. The report lists what is still missing.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The sealed image.
    #[arg(value_name = "FILE")]
    image: PathBuf,
    /// The folder to create, in one that exists; it must not exist itself, or be empty.
    #[arg(long = "to", value_name = "DIR")]
    to: PathBuf,
    /// The host key document of a machine that the image is for. Can be repeated.
    #[arg(long = "host-key-document", short = 'D', value_name = "FILE")]
    documents: Vec<PathBuf>,
    /// IBM's host key signing key certificate, for checking the documents.
    #[arg(long, value_name = "FILE", requires = "root")]
    signing_key: Option<PathBuf>,
    /// A certificate between the signing key and the root. Can be repeated.
    #[arg(long = "intermediate", value_name = "FILE", requires = "signing_key")]
    intermediates: Vec<PathBuf>,
    /// The trusted root certificate.
    #[arg(long, value_name = "FILE", requires = "signing_key")]
    root: Option<PathBuf>,
    /// A revocation list; one of each issuer is needed. Can be repeated.
    #[arg(long = "crl", value_name = "FILE", requires = "signing_key")]
    crls: Vec<PathBuf>,
}

/// What goes into the folder.
struct Set {
    header: Vec<u8>,
    documents: Vec<Document>,
    trust: Option<Trust>,
    values: Value,
    missing: Vec<String>,
}

impl Export {
    pub(crate) fn run(&self, style: Style) -> Result<Report> {
        self.run_at(now()?, style)
    }

    fn run_at(&self, now: Duration, style: Style) -> Result<Report> {
        let (file, image) = open_image(&self.image)?;
        let header = header_bytes(&file, &image).map_err(ImageError::into_error)?;
        let documents = read_documents(&self.documents)?;
        check_slots(&documents, &image)?;
        let trust = self.trust()?;
        if let Some(trust) = &trust {
            if let Some(e) = check_documents(&documents, trust, now).into_iter().flatten().next() {
                return Err(Error::precondition(format!("not trusted: {e}")));
            }
        }
        let missing = missing_parts(&documents, trust.as_ref(), &image);
        let set = Set { header, documents, trust, values: reference_values(&image), missing };
        let files = set.write(&self.to)?;
        Ok(export_report(&self.to, &files, &set, &image, style))
    }

    fn trust(&self) -> Result<Option<Trust>> {
        let (Some(signing_key), Some(root)) = (&self.signing_key, &self.root) else { return Ok(None) };
        let files = TrustFiles {
            signing_key: signing_key.clone(),
            intermediates: self.intermediates.clone(),
            root: root.clone(),
            crls: self.crls.clone(),
        };
        files.read().map(Some)
    }
}

/// A document without a key slot would make the service trust a machine on which the image cannot run.
fn check_slots(documents: &[Document], image: &SealedImage) -> Result<()> {
    let without = documents.iter().find(|d| image.header.slots.iter().all(|slot| slot.host_key != d.key));
    match without {
        None => Ok(()),
        Some(document) => Err(Error::precondition(format!(
            "{}: the image has no slot for its key {}: leave it out, or rebuild the image with it",
            document.certificate.name,
            document.key.short()
        ))),
    }
}

/// Reference values under the names of the verifier's claims.
fn reference_values(image: &SealedImage) -> Value {
    let slots: Vec<String> = image.header.slots.iter().map(|slot| slot.host_key.to_string()).collect();
    json!({
        "se.version": [image.header.version.to_string()],
        "se.tag": [tag(image)],
        "se.image_phkh": slots,
        "se.attestation_phkh": slots,
    })
}

fn missing_parts(documents: &[Document], trust: Option<&Trust>, image: &SealedImage) -> Vec<String> {
    let mut missing = Vec::new();
    let slots = image.header.slots.iter().enumerate();
    for (number, slot) in slots.filter(|(_, slot)| documents.iter().all(|d| d.key != slot.host_key)) {
        let key = slot.host_key.short();
        missing.push(format!("hkds: no document for key slot {} ({key}): --host-key-document", number + 1));
    }
    match trust {
        None => {
            missing.push("certs, crls, root_ca.crt: --signing-key, --intermediate, --root, --crl".to_owned())
        }
        Some(trust) if trust.lists.is_empty() => missing.push("crls: --crl".to_owned()),
        Some(_) => {}
    }
    missing.push(
        "rsa/encrypt_key.pem and rsa/encrypt_key.pub: made once per service, kept there: openssl genrsa -out \
         encrypt_key.pem 4096; openssl rsa -in encrypt_key.pem -pubout -out encrypt_key.pub"
            .to_owned(),
    );
    missing
}

impl Set {
    /// Writes the folder completely or not at all. Returns the names of its files.
    fn write(&self, to: &Path) -> Result<Vec<String>> {
        let mut files = vec![("hdr/hdr.bin".to_owned(), self.header.clone())];
        for (number, document) in self.documents.iter().enumerate() {
            files.push((
                format!("hkds/hkd-{}.crt", number + 1),
                pem::encode("CERTIFICATE", &document.certificate.der)?,
            ));
        }
        if let Some(trust) = &self.trust {
            files.push((
                "certs/signing-key.crt".to_owned(),
                pem::encode("CERTIFICATE", &trust.signing_key.der)?,
            ));
            for (number, certificate) in trust.intermediates.iter().enumerate() {
                let name = format!("certs/intermediate-{}.crt", number + 1);
                files.push((name, pem::encode("CERTIFICATE", &certificate.der)?));
            }
            for (number, list) in trust.lists.iter().enumerate() {
                files.push((format!("crls/{}.crl", number + 1), pem::encode("X509 CRL", &list.der)?));
            }
            files.push(("root_ca.crt".to_owned(), pem::encode("CERTIFICATE", &trust.root.der)?));
        }
        files.push(("reference-values.json".to_owned(), format!("{:#}\n", self.values).into_bytes()));
        write_folder(to, &files)?;
        Ok(files.into_iter().map(|(name, _)| name).collect())
    }
}

/// Others may be able to write to the folder around `to`. So the new one has a name that nobody can guess, is
/// only ours until it is complete, and is written to through its descriptor.
fn write_folder(to: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    let context = || format!("create folder {}", to.display());
    let name = to.file_name().ok_or_else(|| Error::invalid(format!("{}: not a name", to.display())))?;
    let partial = to.with_file_name(format!(".{}.{:016x}", name.to_string_lossy(), random()?));
    private_dir(&partial).with_context(context)?;
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let folder = File::options().read(true).custom_flags(flags).open(&partial).with_context(context)?;
    let inside = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    let is_ours = |there: Metadata, made: &Metadata| (there.dev(), there.ino()) == (made.dev(), made.ino());
    let written = write_files(&inside, files).with_context(context).and_then(|()| {
        folder.set_permissions(Permissions::from_mode(0o755)).with_context(context)?;
        // This replaces an empty folder but fails on any other, so two sets cannot mix.
        fs::rename(&partial, to)
            .with_context(|| format!("{} (it must not exist, or be empty)", context()))?;
        let made = folder.metadata().with_context(context)?;
        if fs::symlink_metadata(to).is_ok_and(|there| is_ours(there, &made)) {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "{}: somebody put something else in its place: export into a folder that is yours alone",
            context()
        )))
    });
    if written.is_err() {
        for entry in fs::read_dir(&inside).into_iter().flatten().flatten() {
            fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path())).ok();
        }
        fs::remove_dir(&partial).ok();
    }
    written
}

fn write_files(folder: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    for (name, bytes) in files {
        let path = folder.join(name);
        make_dirs(path.parent().unwrap_or(folder), 0o755)?;
        let file = File::options().write(true).create_new(true).mode(0o644).open(&path);
        file.and_then(|mut file| file.write_all(bytes)).with_context(|| format!("write {name}"))?;
    }
    Ok(())
}

fn export_report(to: &Path, files: &[String], set: &Set, image: &SealedImage, style: Style) -> Report {
    let mut text = format!("image tag {}\n\n{}\n", style.strong(&tag(image)), to.display());
    let mut lines = || -> std::fmt::Result {
        for file in files {
            writeln!(text, "  {file}")?;
        }
        let checked = if set.trust.is_some() { "checked and trusted" } else { "not checked" };
        writeln!(text, "\nhost key documents: {} {checked}", set.documents.len())?;
        writeln!(text, "\nstill missing")?;
        set.missing.iter().try_for_each(|missing| writeln!(text, "  {missing}"))
    };
    debug_assert!(lines().is_ok(), "writing to a string");
    Report {
        text,
        json: json!({"folder": to.display().to_string(), "files": files, "missing": set.missing,
            "documents_checked": set.trust.is_some(), "reference_values": set.values}),
        yes: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostkey::chain::tests::{NOW, files};
    use crate::image;

    const IMAGE: &[u8] = include_bytes!("../image/testdata/by-hand.img");

    /// An image with a key slot for the document of the test certificates.
    fn export_of_test_files() -> (tempfile::TempDir, Export) {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        for (name, bytes) in files() {
            fs::write(at(name), bytes).expect("write");
        }
        let document = Document::parse("x", &fs::read(at("HKD.crt")).expect("read")).expect("document");
        let header = usize::try_from(image::read(IMAGE).expect("image").header_at).expect("small");
        let mut bytes = IMAGE.to_vec();
        bytes[header + 416..header + 448].copy_from_slice(&document.key.0);
        fs::write(at("image"), bytes).expect("write");
        let export = Export {
            image: at("image"),
            to: at("out"),
            documents: vec![at("HKD.crt")],
            signing_key: Some(at("signing.crt")),
            intermediates: vec![at("middle.crt")],
            root: Some(at("root.crt")),
            crls: vec![at("0.crl"), at("1.crl"), at("2.crl")],
        };
        (dir, export)
    }

    #[test]
    fn the_folder_has_trustees_layout_and_the_report_lists_what_is_missing() {
        let (dir, export) = export_of_test_files();
        let report = export.run_at(NOW, Style::default()).expect("export");
        let text = report.text.replace(&dir.path().display().to_string(), "");
        assert_eq!(text, include_str!("testdata/export.txt"), "{text}");
        let (_, image) = open_image(&export.image).expect("image");
        let header = fs::read(export.to.join("hdr/hdr.bin")).expect("header");
        assert_eq!(header.len(), usize::try_from(image.header.size).expect("small"));
        assert!(header.starts_with(b"IBMSecEx") && header.ends_with(&image.header.tag));
        let values = fs::read_to_string(export.to.join("reference-values.json")).expect("values");
        let values: Value = serde_json::from_str(&values).expect("json");
        assert_eq!(values["se.tag"][0], tag(&image));
        assert_eq!(values["se.version"][0], "256");
        let copied = fs::read(export.to.join("hkds/hkd-1.crt")).expect("document");
        assert_eq!(Document::parse("x", &copied).expect("document").key, image.header.slots[0].host_key);
        assert_eq!(
            fs::read_dir(dir.path())
                .expect("list")
                .filter(|e| e.as_ref().expect("entry").file_name().to_string_lossy().contains("partial"))
                .count(),
            0
        );
    }

    #[test]
    fn two_sets_never_mix_and_an_untrusted_document_is_not_exported() {
        let (_dir, mut export) = export_of_test_files();
        export.run_at(NOW, Style::default()).expect("first");
        let e = export.run_at(NOW, Style::default()).expect_err("again").to_string();
        assert!(e.contains("it must not exist, or be empty"), "{e}");
        export.to = export.to.with_file_name("late");
        let late = NOW + Duration::from_secs(400 * 86_400);
        let e = export.run_at(late, Style::default()).expect_err("late").to_string();
        assert!(e.starts_with("not trusted: ") && !export.to.exists(), "{e}");
    }

    #[test]
    fn what_others_put_beside_the_folder_is_neither_removed_nor_written_to() {
        let (dir, export) = export_of_test_files();
        let shared = dir.path().join("shared");
        let (theirs, victim) = (shared.join(".out.partial"), dir.path().join("victim"));
        let export = Export { to: shared.join("out"), ..export };
        for folder in [&theirs, &victim] {
            fs::create_dir_all(folder).expect("folder");
        }
        fs::write(theirs.join("theirs"), b"").expect("write");
        export.run_at(NOW, Style::default()).expect("export");
        assert!(theirs.join("theirs").exists(), "it was removed");
        fs::remove_dir_all(&theirs).expect("remove");
        // Another user of the folder, who may rename what is in it, puts a link in the place of each new one.
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::os::unix::fs::symlink(&victim, &theirs).ok();
                    for entry in fs::read_dir(&shared).expect("list").flatten() {
                        let (path, away) = (entry.path(), dir.path().join("away"));
                        if entry.file_name() != "out" && !path.is_symlink() {
                            fs::remove_dir_all(&away).ok();
                            fs::rename(&path, &away).ok();
                            std::os::unix::fs::symlink(&victim, &path).ok();
                        }
                    }
                }
            });
            for _ in 0..200 {
                if fs::remove_dir_all(&export.to).is_err() {
                    fs::remove_file(&export.to).ok();
                }
                write_folder(&export.to, &[("hdr/hdr.bin".into(), vec![1])]).ok();
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(fs::read_dir(&victim).expect("list").count(), 0, "it was written to");
    }

    #[test]
    fn a_document_without_a_slot_is_refused() {
        let (dir, mut export) = export_of_test_files();
        fs::write(dir.path().join("image"), IMAGE).expect("write");
        export.signing_key = None;
        let e = export.run_at(NOW, Style::default()).expect_err("no slot").to_string();
        assert!(e.contains("the image has no slot for its key"), "{e}");
        export.documents.clear();
        let report = export.run_at(NOW, Style::default()).expect("header alone");
        assert!(report.text.contains("hkds: no document for key slot 1"), "{}", report.text);
        assert!(report.text.contains("certs, crls, root_ca.crt: --signing-key"), "{}", report.text);
    }
}
