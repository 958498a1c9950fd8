//! `kata-se check`: whether a secure pod could start here now.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::cli::check_node;
use crate::cli::output::{Report, Style, findings_json};
use crate::config::{Boot, Config};
use crate::error::{Error, Result};
use crate::host::config;
use crate::host::facts::{self, Count, Root};
use crate::host::probe::{self, PreflightInputs};
use crate::image::PlainFlags;
use crate::plan::checks;
use crate::plan::finding::{Finding, Severity, fatal, pass, warning};

/// Checks this machine, the configuration and the image. Prints one line per check; the exit code is 0 only if a
/// secure pod could start now.
///
/// The shim runs the same checks before it starts a pod.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The sealed image to check instead of the configured one.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// The configuration file to use instead of the shim's.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Check {
    pub(crate) fn run(&self, style: Style) -> Result<Report> {
        let root = Root::of_this_machine();
        let config = match config::load(self.config.as_deref()) {
            Ok(config) => config,
            Err(e) => {
                let mut findings = vec![unusable(&e)];
                findings.extend(checks::machine(&facts::read(&root, Count::Always)));
                return Ok(check_report(&findings, &[], None, style));
            }
        };
        let mut findings = vec![read_from(&config)];
        let image = match &config.boot {
            Boot::Sealed { image } => Some(self.image.as_ref().unwrap_or(image)),
            Boot::Plain { .. } => self.image.as_ref(),
        };
        let Some(image) = image else {
            findings.extend(checks::machine(&facts::read(&root, Count::Always)));
            findings.extend(check_node::documents(&probe::documents(&config.host_key_documents)));
            findings.extend(check_node::check(&root, &config));
            return Ok(check_report(&findings, &config.files, None, style));
        };
        let inputs = probe::collect(&root, Count::Always, image, &config.host_key_documents);
        findings.extend(inputs.findings(config.memory_mib, config.vcpus));
        findings.extend(check_node::documents(&inputs.documents));
        findings.push(probe::ownership(config.files.iter().chain([image])));
        findings.extend(check_node::check(&root, &config));
        findings.push(debug_access(&inputs));
        Ok(check_report(&findings, &config.files, Some(image), style))
    }
}

/// Which configuration it is, and whether it is one for secure pods.
fn read_from(config: &Config) -> Finding {
    let files: Vec<_> = config.files.iter().map(|file| file.display().to_string()).collect();
    let files = if files.is_empty() { "there is no file: the defaults".to_owned() } else { files.join(", ") };
    match config.boot {
        Boot::Sealed { .. } => pass("config", files),
        Boot::Plain { .. } => fatal(
            "config",
            "the configuration starts guests that are not protected",
            &format!("guest.confidential = false in {files}"),
            "remove this key on a node for secure pods; --image names an image to check",
        ),
    }
}

fn unusable(e: &Error) -> Finding {
    fatal(
        "config",
        "the configuration cannot be used, and no pod starts",
        e.message(),
        "correct it, and check again: image, programs and devices depend on it",
    )
}

fn check_report(findings: &[Finding], files: &[PathBuf], image: Option<&Path>, style: Style) -> Report {
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (fatal, warnings) = (count(Severity::Fatal), count(Severity::Warning));
    let last = if fatal > 0 {
        style.bad(&format!("No secure pod can start here: {fatal} of {} checks failed.", findings.len()))
    } else if warnings > 0 {
        style.doubtful(&format!("A secure pod could start here; {warnings} checks have a warning."))
    } else {
        style.good("A secure pod could start here.")
    };
    let image = image.map(|image| image.display().to_string());
    let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    Report {
        text: format!("{}\n{last}\n", style.findings(findings)),
        json: json!({"can_start": fatal == 0, "configuration": files, "image": image,
            "findings": findings_json(findings)}),
        yes: fatal == 0,
    }
}

/// Whether the image allows access for debugging. The shim itself never enables any for a protected guest.
fn debug_access(inputs: &PreflightInputs) -> Finding {
    if let Ok(opened) = &inputs.image {
        if opened.image.header.flags.has(PlainFlags::DUMP) {
            return warning(
                "debug-access",
                "the image lets its guests be dumped",
                "flag \"dump allowed\"",
                "dumps are encrypted for the image's owner: rebuild the image without the flag if they are not needed",
            );
        }
    }
    pass("debug-access", "disabled: no debug console, no gdb, no QMP socket, no dump")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::host_facts::{Fact, HostFacts, Kvm};

    fn inputs(architecture: &str) -> PreflightInputs {
        let machine = HostFacts {
            architecture: architecture.into(),
            uv_facility: Fact::Known(true),
            prot_virt_host: Fact::Known(false),
            prot_virt_guest: Fact::Absent,
            max_cpus: Fact::Known(248),
            max_guests: Fact::Known(100),
            max_address: Fact::Known(u64::MAX),
            header_versions: Fact::Known(1 << 62),
            header_flags: Fact::Known(0xf0),
            keys: Fact::Absent,
            kvm: Kvm::Unprotected,
            running_guests: Some(3),
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/image/testdata/by-hand.img");
        PreflightInputs { machine, documents: vec![], image: probe::open_image(&path) }
    }

    #[test]
    fn on_another_architecture_the_report_is_short() {
        let report =
            check_report(&inputs("x86_64").findings(2048, 1), &[], Some(Path::new("/i")), Style::default());
        assert!(!report.yes);
        assert_eq!(report.text, include_str!("testdata/check-x86_64.txt"), "{}", report.text);
        assert_eq!(report.json["can_start"], false);
        assert_eq!(report.json["findings"][0]["check"], "machine");
        assert_eq!(report.json["findings"][0]["result"], "fatal");
    }

    #[test]
    fn on_a_z_that_is_not_set_up_the_report_names_each_step() {
        let inputs = inputs("s390x");
        let mut findings = inputs.findings(2048, 1);
        let missing = "[qemu]\npath = \"/nonexistent/qemu\"\n".to_owned();
        let config = crate::config::file::parse(&[(PathBuf::new(), missing)]).expect("configuration");
        findings.push(check_node::qemu(&config, None));
        findings.push(debug_access(&inputs));
        let report = check_report(&findings, &[], Some(Path::new("/i")), Style::default());
        assert_eq!(report.text, include_str!("testdata/check-s390x.txt"), "{}", report.text);
    }

    #[test]
    fn colours_are_optional() {
        let findings = inputs("x86_64").findings(2048, 1);
        let plain = check_report(&findings, &[], Some(Path::new("/i")), Style::default()).text;
        let coloured = check_report(&findings, &[], Some(Path::new("/i")), Style { colour: true }).text;
        assert!(!plain.contains('\x1b') && coloured.contains("\x1b[31mFAIL\x1b[0m"));
        let warnings = [warning("key", "a", "b", "c")];
        assert!(check_report(&warnings, &[], Some(Path::new("/i")), Style::default()).yes);
    }

    #[test]
    fn the_configuration_is_named_and_a_broken_one_ends_nothing() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("config.toml");
        let check = |text: &str| {
            std::fs::write(&file, text).expect("write");
            let check = Check { image: None, config: Some(file.clone()) };
            check.run(Style::default()).expect("a report")
        };
        let name = file.display().to_string();
        let report = check("[guest]\nvcpus = 2\n");
        assert!(report.text.starts_with(&format!("ok    config       {name}\n")), "{}", report.text);
        assert_eq!(report.json["configuration"], json!([name]));
        for (text, wanted) in [
            ("[guest]\nvcpu = 2\n", "FAIL  config       the configuration cannot be used"),
            (
                include_str!("../../configs/kata-se-emulated.toml"),
                "FAIL  config       the configuration starts guests",
            ),
        ] {
            let report = check(text);
            assert!(
                !report.yes && report.text.starts_with(wanted) && report.text.contains(&name),
                "{}",
                report.text
            );
            assert!(report.text.contains("  machine  "), "{}", report.text);
            assert_eq!(report.json["image"], json!(null));
        }
        let defaults = crate::config::file::parse(&[]).expect("defaults");
        assert_eq!(read_from(&defaults).text.to_string(), "there is no file: the defaults");
    }
}
