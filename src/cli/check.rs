//! `kata-se check`: whether a secure pod could start here now.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::cli::output::{Report, Style, findings_json};
use crate::config::{Boot, Config, VsockConfig};
use crate::error::{Error, Result};
use crate::host::config;
use crate::host::facts::{Count, Root};
use crate::host::probe::{self, PreflightInputs};
use crate::image::PlainFlags;
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
        let config = config::load(self.config.as_deref())?;
        let mut findings = Vec::new();
        let image = match (&self.image, &config.boot) {
            (Some(image), _) | (None, Boot::Sealed { image }) => image.clone(),
            (None, Boot::Plain { .. }) => {
                return Err(Error::precondition(
                    "the configuration starts guests that are not protected (guest.confidential = false): name \
                     the image to check with --image",
                ));
            }
        };
        if let Boot::Plain { .. } = config.boot {
            findings.push(fatal(
                "config",
                "the configuration starts guests that are not protected",
                "guest.confidential = false",
                "remove this key on a node for secure pods",
            ));
        }
        let root = Root::of_this_machine();
        let inputs = probe::collect(&root, Count::Always, &image, &config.host_key_documents);
        findings.extend(inputs.findings(config.memory_mib, config.vcpus));
        findings.push(probe::ownership(config.files.iter().chain([&image])));
        findings.extend(check_programs(&config));
        findings.push(debug_access(&inputs));
        Ok(check_report(&findings, &image, style))
    }
}

fn check_report(findings: &[Finding], image: &Path, style: Style) -> Report {
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (fatal, warnings) = (count(Severity::Fatal), count(Severity::Warning));
    let last = if fatal > 0 {
        style.bad(&format!("No secure pod can start here: {fatal} of {} checks failed.", findings.len()))
    } else if warnings > 0 {
        style.doubtful(&format!("A secure pod could start here; {warnings} checks have a warning."))
    } else {
        style.good("A secure pod could start here.")
    };
    let image = image.display().to_string();
    Report {
        text: format!("{}\n{last}\n", style.findings(findings)),
        json: json!({"can_start": fatal == 0, "image": image, "findings": findings_json(findings)}),
        yes: fatal == 0,
    }
}

/// Programs and devices that the shim needs besides the image.
fn check_programs(config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        check_program("qemu", "qemu.path", &config.qemu.path, "install QEMU 8 or newer"),
        check_program("mkfs", "rootfs.mkfs", &config.rootfs.mkfs, "install erofs-utils"),
    ];
    findings.push(match &config.vsock {
        VsockConfig::Vhost => {
            let device = Path::new("/dev/vhost-vsock");
            match std::fs::File::options().read(true).write(true).open(device) {
                Ok(_) => pass("vsock", "/dev/vhost-vsock can be opened"),
                Err(e) => fatal(
                    "vsock",
                    "guests cannot be reached",
                    &format!("{}: {e}", device.display()),
                    "load the module: modprobe vhost_vsock",
                ),
            }
        }
        VsockConfig::VhostUser { program: path } => {
            check_program("vsock", "vsock.program", path, "install it")
        }
    });
    findings
}

fn check_program(check: &'static str, key: &str, path: &Path, advice: &str) -> Finding {
    use std::os::unix::fs::PermissionsExt;
    let why = match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => {
            return pass(check, path.display().to_string());
        }
        Ok(_) => "not a program".to_owned(),
        Err(e) => e.to_string(),
    };
    let evidence = format!("{key} = {}: {why}", path.display());
    fatal(
        check,
        "a program that every pod needs is missing",
        &evidence,
        &format!("{advice}, or correct {key}"),
    )
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
        let report = check_report(&inputs("x86_64").findings(2048, 1), Path::new("/i"), Style::default());
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
        findings.push(check_program(
            "qemu",
            "qemu.path",
            Path::new("/nonexistent/qemu"),
            "install QEMU 8 or newer",
        ));
        findings.push(debug_access(&inputs));
        let report = check_report(&findings, Path::new("/i"), Style::default());
        assert_eq!(report.text, include_str!("testdata/check-s390x.txt"), "{}", report.text);
    }

    #[test]
    fn colours_are_optional() {
        let findings = inputs("x86_64").findings(2048, 1);
        let plain = check_report(&findings, Path::new("/i"), Style::default()).text;
        let coloured = check_report(&findings, Path::new("/i"), Style { colour: true }).text;
        assert!(!plain.contains('\x1b') && coloured.contains("\x1b[31mFAIL\x1b[0m"));
        let warnings = [warning("key", "a", "b", "c")];
        assert!(check_report(&warnings, Path::new("/i"), Style::default()).yes);
    }
}
