//! `kata-se host-key verify`: whether host key documents are really those of IBM machines.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::inspect::read_documents;
use crate::cli::output::{Report, Style};
use crate::error::{Error, Result};
use crate::host::files::read_bounded;
use crate::hostkey::{Certificate, Document, RevocationList, Trust};
use crate::limits;

/// Checks that host key documents are signed by IBM's signing key, that its chain leads to the root, and that all
/// certificates are valid now and not revoked. Nothing is downloaded: name every certificate and revocation list.
///
/// The forger of a document can open images that are sealed for it.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The host key documents (PEM or DER).
    #[arg(value_name = "FILE", required = true)]
    documents: Vec<PathBuf>,
    #[command(flatten)]
    trust: TrustFiles,
}

/// What documents are checked against.
#[derive(Debug, Args)]
pub(crate) struct TrustFiles {
    /// IBM's host key signing key certificate, in a file that may have intermediate ones, too.
    #[arg(long, value_name = "FILE")]
    pub(crate) signing_key: PathBuf,
    /// A certificate between the signing key and the root. Can be repeated.
    #[arg(long = "intermediate", value_name = "FILE")]
    pub(crate) intermediates: Vec<PathBuf>,
    /// The trusted root certificate.
    #[arg(long, value_name = "FILE")]
    pub(crate) root: PathBuf,
    /// A revocation list (PEM or DER); one of each issuer is needed: the signing key, each intermediate and the
    /// root. Can be repeated.
    #[arg(long = "crl", value_name = "FILE")]
    pub(crate) crls: Vec<PathBuf>,
}

impl Verify {
    pub(crate) fn run(&self, style: Style) -> Result<Report> {
        let trust = self.trust.read()?;
        Ok(verify_report(&read_documents(&self.documents)?, &trust, now()?, style))
    }
}

/// The time since the epoch.
pub(crate) fn now() -> Result<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_err(|e| Error::precondition(format!("this machine's clock is before 1970: {e}: set it")))
}

impl TrustFiles {
    pub(crate) fn read(&self) -> Result<Trust> {
        let mut lists = Vec::new();
        for path in &self.crls {
            let name = format!("revocation list {}", path.display());
            lists.extend(RevocationList::parse_all(
                &name,
                &read_bounded(path, limits::image::REVOCATION_LIST_BYTES)?,
            )?);
        }
        let mut intermediates = Vec::new();
        for path in &self.intermediates {
            intermediates.extend(read_certificates("intermediate certificate", path)?);
        }
        let (what, path) = ("signing key certificate", &self.signing_key);
        let mut signing = read_certificates(what, path)?;
        // As pvimg knows it among all the certificates that it is given (s390-tools:
        // rust/pv/src/verify/helper.rs, extract_ibm_sign_key). One alone is told what is wrong with its name.
        if signing.len() > 1 {
            let (ibm, others) = signing.into_iter().partition(Certificate::is_signing_key);
            intermediates.extend::<Vec<_>>(others);
            signing = ibm;
        }
        let (of_root, root) = ("root certificate", &self.root);
        Ok(Trust {
            signing_key: only(what, path, signing)?,
            intermediates,
            root: only(of_root, root, read_certificates(of_root, root)?)?,
            lists,
        })
    }
}

fn read_certificates(what: &str, path: &Path) -> Result<Vec<Certificate>> {
    Certificate::parse_all(
        &format!("{what} {}", path.display()),
        &read_bounded(path, limits::image::CERTIFICATE_BYTES)?,
    )
}

fn only(what: &str, path: &Path, mut found: Vec<Certificate>) -> Result<Certificate> {
    match (found.len(), found.pop()) {
        (1, Some(certificate)) => Ok(certificate),
        (count, _) => {
            Err(Error::invalid(format!("{what} {}: {count} are in this file, expected one", path.display())))
        }
    }
}

/// Why each document is not trusted; None if it is.
pub(crate) fn check_documents(documents: &[Document], trust: &Trust, now: Duration) -> Vec<Option<Error>> {
    match trust.check(now) {
        Ok(chain) => documents.iter().map(|document| chain.check(document).err()).collect(),
        Err(e) => documents.iter().map(|_| Some(e.clone())).collect(),
    }
}

fn verify_report(documents: &[Document], trust: &Trust, now: Duration, style: Style) -> Report {
    let verdicts = check_documents(documents, trust, now);
    let mut text = String::new();
    let mut found: Vec<Value> = Vec::new();
    for (document, wrong) in documents.iter().zip(&verdicts) {
        let name = &document.certificate.name;
        let line = match wrong {
            None => {
                let path = trust.check(now).map(|chain| chain.path.join(" < ")).unwrap_or_default();
                writeln!(text, "{}  {name}: trusted, key {}: {path}", style.good("ok  "), document.key)
            }
            Some(e) => writeln!(text, "{}  {name}: not trusted: {e}", style.bad("FAIL")),
        };
        debug_assert!(line.is_ok(), "writing to a string");
        found.push(json!({"document": name, "host_key_hash": document.key.to_string(),
            "trusted": wrong.is_none(), "reason": wrong.as_ref().map(ToString::to_string)}));
    }
    Report { text, json: json!({"documents": found}), yes: verdicts.iter().all(Option::is_none) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostkey::chain::tests::{NOW, files};

    fn verify_test_files() -> (tempfile::TempDir, Verify) {
        let dir = tempfile::tempdir().expect("dir");
        for (name, bytes) in files() {
            std::fs::write(dir.path().join(name), bytes).expect("write");
        }
        let at = |name: &str| dir.path().join(name);
        let trust = TrustFiles {
            signing_key: at("signing.crt"),
            intermediates: vec![at("middle.crt")],
            root: at("root.crt"),
            crls: vec![at("0.crl"), at("1.crl"), at("2.crl")],
        };
        let verify = Verify { documents: vec![at("HKD.crt")], trust };
        (dir, verify)
    }

    #[test]
    fn a_trusted_document_is_reported_with_its_chain_and_another_with_the_reason() {
        let (dir, mut verify) = verify_test_files();
        let folder = format!("{}/", dir.path().display());
        let of = |verify: &Verify, now| {
            let trust = verify.trust.read().expect("trust");
            verify_report(
                &read_documents(&verify.documents).expect("documents"),
                &trust,
                now,
                Style::default(),
            )
        };
        let good = of(&verify, NOW);
        assert!(good.yes);
        assert_eq!(good.text.replace(&folder, ""), include_str!("testdata/host-key.txt"), "{}", good.text);
        assert_eq!(good.json["documents"][0]["trusted"], true);
        let late = of(&verify, NOW + Duration::from_secs(400 * 86_400));
        assert!(
            !late.yes && late.text.contains("not trusted: ") && late.text.contains("has passed"),
            "{}",
            late.text
        );
        verify.trust.crls.truncate(2);
        let without = of(&verify, NOW);
        assert!(
            !without.yes && without.text.contains("revocation: no list of signing key"),
            "{}",
            without.text
        );
        assert_eq!(without.text.lines().count(), 1);
    }

    #[test]
    fn the_signing_key_is_found_among_the_certificates_of_its_file() {
        let (dir, mut verify) = verify_test_files();
        let at = |name: &str| dir.path().join(name);
        let read = |name: &str| {
            let der = std::fs::read(at(name)).expect("read");
            crate::hostkey::pem::encode("CERTIFICATE", &der).expect("pem")
        };
        std::fs::write(at("bundle.crt"), [read("middle.crt"), read("signing.crt")].concat()).expect("write");
        verify.trust.signing_key = at("bundle.crt");
        verify.trust.intermediates.clear();
        let trust = verify.trust.read().expect("trust");
        trust.check(NOW).expect("chain");
        std::fs::write(at("bundle.crt"), read("middle.crt").repeat(2)).expect("write");
        let e = verify.trust.read().expect_err("no key of IBM's").to_string();
        assert!(e.ends_with("/bundle.crt: 0 are in this file, expected one"), "{e}");
    }

    #[test]
    fn the_error_names_a_wrong_file() {
        let (dir, mut verify) = verify_test_files();
        verify.trust.root = dir.path().join("0.crl");
        let e = verify.trust.read().expect_err("a list is no root").to_string();
        assert!(
            e.starts_with(&format!(
                "root certificate {}: not an X.509 certificate",
                dir.path().join("0.crl").display()
            )),
            "{e}"
        );
        verify.trust.root = dir.path().join("none");
        assert!(verify.trust.read().expect_err("none").to_string().contains("/none: No such file"));
    }
}
