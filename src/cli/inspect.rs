//! `kata-se image inspect`: what a sealed image's header says; never its content.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::output::{Progress, Report, Style, size};
use crate::error::{Context, Error, Result};
use crate::hex::hex;
use crate::host::facts::{self, Count, Root};
use crate::host::files::read_bounded;
use crate::host::image_file::ImageFile;
use crate::hostkey::Document;
use crate::image::{self, ImageError, KeyHash, SealedImage, Verdict};
use crate::limits;
use crate::plan::checks::tag;

/// Shows the header of a sealed image, its key slots and its components. It needs no key and shows no content.
///
/// The exit code is 1 if the content differs from what was sealed (--verify), or a document fits no key slot.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The sealed image.
    #[arg(value_name = "FILE")]
    image: PathBuf,
    /// A host key document (PEM or DER) to find the key slot of. Can be repeated.
    #[arg(long = "host-key-document", short = 'D', value_name = "FILE")]
    documents: Vec<PathBuf>,
    /// Read the whole image and compare it with the digests in its header.
    #[arg(long)]
    verify: bool,
}

/// The name of a key's owner, and the key's hash.
type Owner = (String, KeyHash);

impl Inspect {
    pub(crate) fn run(&self, style: Style) -> Result<Report> {
        let (file, image) = open_image(&self.image)?;
        let owners = read_documents(&self.documents)?.into_iter().map(|d| (d.certificate.name, d.key));
        let owners: Vec<Owner> = owners.chain(this_machine()).collect();
        let verdict = match (&image.ipib, self.verify) {
            (_, false) => None,
            (None, true) => {
                return Err(Error::precondition(format!(
                    "image {}: has no list of components (older tools wrote none), so its content cannot be checked",
                    self.image.display()
                )));
            }
            (Some(ipib), true) => {
                let mut progress = Progress::new();
                let verdict = image::verify(&file, &image.header, ipib, |done, all| {
                    progress.show("reading the image", done, all);
                });
                Some(verdict.map_err(ImageError::into_error)?)
            }
        };
        Ok(inspect_report(&self.image, &image, &owners, verdict, style))
    }
}

/// Opens an image and reads its header.
pub(crate) fn open_image(path: &Path) -> Result<(ImageFile, SealedImage)> {
    let file = ImageFile::open(path)?;
    let image = image::read(&file).map_err(ImageError::into_error);
    let image = image.with_context(|| format!("image {}", path.display()))?;
    Ok((file, image))
}

pub(crate) fn read_documents(paths: &[PathBuf]) -> Result<Vec<Document>> {
    let read = |path: &PathBuf| {
        Document::parse(&path.display().to_string(), &read_bounded(path, limits::image::CERTIFICATE_BYTES)?)
    };
    paths.iter().map(read).collect()
}

fn this_machine() -> Vec<Owner> {
    let machine = facts::read(&Root::of_this_machine(), Count::NearLimit);
    let Some(keys) = machine.keys.known() else { return Vec::new() };
    let named = [("this machine's host key", keys.host), ("this machine's backup host key", keys.backup)];
    named.into_iter().filter_map(|(name, key)| Some((name.to_owned(), key?))).collect()
}

fn inspect_report(
    path: &Path,
    image: &SealedImage,
    owners: &[Owner],
    verdict: Option<Verdict>,
    style: Style,
) -> Report {
    let unused = |owner: &&Owner| {
        owner.0.starts_with("host key document")
            && image.header.slots.iter().all(|slot| slot.host_key != owner.1)
    };
    let unused: Vec<&Owner> = owners.iter().filter(unused).collect();
    let untouched = verdict.is_none_or(|verdict| verdict.untouched());
    let text = report_text(path, image, owners, &unused, verdict, style);
    Report {
        text: text.unwrap_or_default(),
        json: report_json(path, image, owners, verdict),
        yes: untouched && unused.is_empty(),
    }
}

fn matching_keys<'a>(owners: &'a [Owner], slot: &KeyHash) -> Vec<&'a str> {
    owners.iter().filter(|(_, key)| key == slot).map(|(name, _)| name.as_str()).collect()
}

fn report_text(
    path: &Path,
    image: &SealedImage,
    owners: &[Owner],
    unused: &[&Owner],
    verdict: Option<Verdict>,
    style: Style,
) -> std::result::Result<String, std::fmt::Error> {
    let header = &image.header;
    let mut out = String::new();
    let flags = header.flags.names();
    writeln!(out, "image       {} ({})", path.display(), size(image.size))?;
    writeln!(
        out,
        "header      version {:#x}, {} bytes at {:#x}",
        header.version, header.size, image.header_at
    )?;
    writeln!(out, "tag         {}", style.strong(&tag(image)))?;
    let flags = if flags.is_empty() { "none".to_owned() } else { flags.join(", ") };
    writeln!(out, "flags       {flags} ({:#018x})", header.flags.0)?;
    writeln!(out, "pages       {}", header.pages)?;
    writeln!(out, "\nkey slots")?;
    for (number, slot) in header.slots.iter().enumerate() {
        let fits = matching_keys(owners, &slot.host_key).join(", ");
        let fits = if fits.is_empty() { fits } else { format!("  {} {fits}", style.good("fits")) };
        writeln!(out, "  {:>2}  {}{fits}", number + 1, slot.host_key)?;
    }
    for (name, key) in unused {
        writeln!(out, "  {} {name}: no slot for its key {key}", style.bad("FAIL"))?;
    }
    writeln!(out, "\ncomponents")?;
    match &image.ipib {
        None => writeln!(out, "  not listed: an older tool made the image")?,
        Some(ipib) => {
            for component in &ipib.components {
                let kind = component.kind().to_string();
                let bytes = size(component.size);
                writeln!(out, "  {kind:<14} at {:#010x}  {bytes}", component.address)?;
            }
        }
    }
    writeln!(out, "\ndigests (SHA-512)")?;
    for (name, digest) in [
        ("content", header.content_digest),
        ("addresses", header.address_digest),
        ("tweaks", header.tweak_digest),
    ] {
        writeln!(out, "  {name:<10} {}", hex(&digest))?;
    }
    match verdict {
        None => writeln!(out, "  not compared: --verify reads the whole image")?,
        Some(verdict) if verdict.untouched() => writeln!(out, "  {} {verdict}", style.good("ok"))?,
        Some(verdict) => writeln!(out, "  {} {verdict}", style.bad("FAIL"))?,
    }
    Ok(out)
}

fn report_json(path: &Path, image: &SealedImage, owners: &[Owner], verdict: Option<Verdict>) -> Value {
    let header = &image.header;
    let slots: Vec<Value> = header
        .slots
        .iter()
        .map(|slot| {
            let fits = matching_keys(owners, &slot.host_key);
            json!({"host_key_hash": slot.host_key.to_string(), "fits": fits})
        })
        .collect();
    let components: Vec<Value> = image
        .ipib
        .iter()
        .flat_map(|ipib| &ipib.components)
        .map(|c| json!({"kind": c.kind().to_string(), "address": c.address, "size": c.size}))
        .collect();
    json!({
        "image": path.display().to_string(),
        "size": image.size,
        "header": {"version": header.version, "size": header.size, "offset": image.header_at},
        "tag": tag(image),
        "flags": {"value": format!("{:#018x}", header.flags.0), "names": header.flags.names()},
        "pages": header.pages,
        "key_slots": slots,
        "components": components,
        "digests": {"content": hex(&header.content_digest), "addresses": hex(&header.address_digest),
            "tweaks": hex(&header.tweak_digest)},
        "untouched": verdict.map(|verdict| verdict.untouched()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &[u8] = include_bytes!("../image/testdata/by-hand.img");

    fn image() -> SealedImage {
        image::read(IMAGE).expect("image")
    }

    #[test]
    fn the_whole_header_is_shown() {
        let image = image();
        let slot = image.header.slots[0].host_key;
        let owners = [
            ("host key document a.crt".to_owned(), slot),
            ("host key document b.crt".to_owned(), KeyHash([9; 32])),
            ("this machine's host key".to_owned(), KeyHash([8; 32])),
        ];
        let report = inspect_report(Path::new("/i.img"), &image, &owners, None, Style::default());
        assert_eq!(report.text, include_str!("testdata/inspect.txt"), "{}", report.text);
        assert!(!report.yes, "one document fits nothing");
        assert_eq!(report.json["key_slots"][0]["fits"][0], "host key document a.crt");
        assert_eq!(report.json["untouched"], Value::Null);
    }

    #[test]
    fn changed_content_is_reported() {
        let image = image();
        let verdict = Verdict { content: true, addresses: true, tweaks: true, pages: (7, 7) };
        let of = |verdict| inspect_report(Path::new("/i"), &image, &[], Some(verdict), Style::default());
        assert!(of(verdict).yes && of(verdict).text.contains("  ok all 7 pages are as they were sealed\n"));
        let bad = of(Verdict { content: false, ..verdict });
        assert!(!bad.yes && bad.text.contains("  FAIL modified or truncated"), "{}", bad.text);
    }

    #[test]
    fn the_error_says_why_a_file_is_no_image() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("kernel");
        std::fs::write(&path, b"kernel").expect("write");
        let e = open_image(&path).expect_err("no image").to_string();
        assert!(e.starts_with(&format!("image {}: not a Secure Execution image", path.display())), "{e}");
    }
}
