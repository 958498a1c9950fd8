//! `kata-se runtimeclass`: the RuntimeClass for Kubernetes. Its overhead is computed from the configuration, so that
//! the two agree.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::cli::output::Report;
use crate::config::{Boot, Config};
use crate::error::{Error, Result};
use crate::host::config;
use crate::plan::overhead::overhead;

/// The handler of the sample configurations, which stands for protected guests.
const CONFIDENTIAL: &str = "kata-se";

/// Prints the RuntimeClass for this configuration: `kata-se runtimeclass | kubectl apply -f -`.
///
/// Its overhead is what a pod uses on the node beyond its containers' limits; the kubelet limits the pod's cgroup to
/// the sum. Generate it again after a change of guest.memory_mib or guest.max_memory_mib.
#[derive(Debug, Args)]
pub(crate) struct RuntimeClass {
    /// The configuration file to use instead of the shim's.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The name of the class and the handler: that of the runtime in containerd's or CRI-O's configuration.
    #[arg(long, value_name = "NAME", default_value = CONFIDENTIAL)]
    handler: String,
    /// The size of the largest pod: the sum of its containers' memory limits, in MiB. Defaults to what
    /// guest.max_memory_mib leaves for them, or 8192.
    #[arg(long, value_name = "MIB")]
    limits_mib: Option<u32>,
}

impl RuntimeClass {
    pub(crate) fn run(&self) -> Result<Report> {
        runtime_class_report(&config::load(self.config.as_deref())?, &self.handler, self.limits_mib)
    }
}

fn runtime_class_report(config: &Config, handler: &str, limits_mib: Option<u32>) -> Result<Report> {
    // Kubernetes' rule for both names (RFC 1123 label).
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends = handler.starts_with(letters) && handler.ends_with(letters);
    if !ends || handler.len() > 63 || !handler.chars().all(|c| letters(c) || c == '-') {
        return Err(Error::precondition(format!(
            "handler {handler:?}: may have lower case letters, digits and '-' between them, 63 at most"
        )));
    }
    if handler == CONFIDENTIAL && matches!(config.boot, Boot::Plain { .. }) {
        return Err(Error::precondition(format!(
            "handler {handler:?}: its pods rely on protection, and guests of this configuration have none \
             (guest.confidential = false): give them a handler of their own: --handler kata-se-unprotected"
        )));
    }
    let of = overhead(config, limits_mib);
    let (base, limits, memory, cpu) = (config.memory_mib, of.limits_mib, of.memory_mib, of.cpu_millis);
    let text = format!(
        "# Made by `kata-se runtimeclass` from the configuration: generate it again when that changes.\n\
         # The overhead is {base} MiB of the guest itself (guest.memory_mib) and what VM and shim use on the host.\n\
         # It covers pods whose memory limits sum up to {limits} MiB: use --limits-mib for larger ones.\n\
         apiVersion: node.k8s.io/v1\n\
         kind: RuntimeClass\n\
         metadata:\n  name: {handler}\n\
         handler: {handler}\n\
         overhead:\n  podFixed:\n    memory: {memory}Mi\n    cpu: {cpu}m\n\
         scheduling:\n  nodeSelector:\n    kubernetes.io/arch: s390x\n    \
         # Where node-feature-discovery runs, only nodes with Secure Execution:\n    \
         # feature.node.kubernetes.io/cpu-security.se.enabled: \"true\"\n"
    );
    let json = json!({"handler": handler, "memory_mib": memory, "cpu_millis": cpu, "limits_mib": limits});
    Ok(Report { text, json, yes: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    #[test]
    fn the_shipped_file_matches_the_default_configuration() {
        let config = file::parse(&[]).expect("defaults");
        let report = runtime_class_report(&config, "kata-se", None).expect("answer");
        assert_eq!(report.text, include_str!("../../configs/runtimeclass.yaml"), "{}", report.text);
        assert_eq!(report.json["memory_mib"], 2385);
    }

    #[test]
    fn guests_that_are_not_protected_have_a_handler_of_their_own() {
        let plain = include_str!("../../configs/kata-se-emulated.toml");
        let config = file::parse(&[(PathBuf::from("/c.toml"), plain.to_owned())]).expect("emulated");
        let e = runtime_class_report(&config, "kata-se", None).expect_err("refused").to_string();
        assert!(e.contains("guest.confidential = false") && e.contains("kata-se-unprotected"), "{e}");
        let report = runtime_class_report(&config, "kata-se-unprotected", None).expect("answer");
        assert!(report.text.contains("handler: kata-se-unprotected\n"), "{}", report.text);
    }

    #[test]
    fn a_name_that_kubernetes_rejects_is_refused() {
        let config = file::parse(&[]).expect("defaults");
        for bad in ["", "Kata", "a\nb", "-a", "a-", "a: b", &"a".repeat(64)] {
            assert!(runtime_class_report(&config, bad, None).is_err(), "{bad:?}");
        }
    }
}
