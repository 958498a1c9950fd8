//! CRI's `runtime.v1.PodSandboxConfig`, which containerd passes with CreateSandbox, as the spec of a pod.
//!
//! For a pause container containerd's CRI plugin would derive the same settings; we follow its
//! `podsandbox/sandbox_run_linux.go` and `helpers.go`.

use std::path::PathBuf;

use containerd_shim_protos::protobuf::{EnumOrUnknown, Message};

use crate::error::{Context, Error, Result};
use crate::ids::SandboxId;
use crate::limits;
use crate::oci::pod_spec::{PodSpec, Resolver};
use crate::oci::spec::hostname;
use crate::oci::{requests, unsupported};
use crate::shim::messages::cri::{DNSConfig, LinuxSandboxSecurityContext, NamespaceMode, PodSandboxConfig};

/// The message's type name in the options of CreateSandbox.
pub(crate) const TYPE: &str = "runtime.v1.PodSandboxConfig";

/// The CRI plugin's value for its pause container.
const OOM_SCORE_ADJ: i32 = -998;

/// The pod that this configuration describes.
pub(crate) fn pod_spec(message: &[u8], id: &SandboxId) -> Result<PodSpec> {
    let config = PodSandboxConfig::parse_from_bytes(message)
        .map_err(|e| Error::invalid(format!("not a message of this type: {e}")))?;
    let linux = config.linux.unwrap_or_default();
    refuse_host_namespaces(&linux.security_context).context("linux")?;
    unsupported::sysctls(&linux.sysctls)?;
    let resources = linux.resources.unwrap_or_default();
    let period = u64::try_from(resources.cpu_period).unwrap_or(0);
    let requested = requests::from_limits(resources.memory_limit_in_bytes, resources.cpu_quota, period);
    Ok(PodSpec {
        hostname: hostname(&config.hostname),
        resolver: resolver(resolv_conf(&config.dns_config).context("dns_config")?),
        annotations: config.annotations,
        cgroups_path: cgroups_path(&linux.cgroup_parent, id),
        sysctls: linux.sysctls,
        requested,
        oom_score_adj: Some(OOM_SCORE_ADJ),
        ..PodSpec::default()
    })
}

/// A pod without a DNS configuration uses its host's.
fn resolver(lines: Vec<String>) -> Resolver {
    if lines.is_empty() { Resolver::File(PathBuf::from("/etc/resolv.conf")) } else { Resolver::Lines(lines) }
}

/// The lines of a resolv.conf.
fn resolv_conf(dns: &DNSConfig) -> Result<Vec<String>> {
    let mut bytes = 0;
    for word in dns.servers.iter().chain(&dns.searches).chain(&dns.options) {
        if word.is_empty() || word.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Error::invalid(format!("{word:?}: is not one word")));
        }
        bytes += word.len() as u64;
    }
    if bytes > limits::spec::RESOLV_CONF_BYTES {
        return Err(Error::invalid(format!(
            "{bytes} bytes, allowed are {}",
            limits::spec::RESOLV_CONF_BYTES
        )));
    }
    let mut lines = Vec::new();
    if !dns.searches.is_empty() {
        lines.push(format!("search {}", dns.searches.join(" ")));
    }
    lines.extend(dns.servers.iter().map(|server| format!("nameserver {server}")));
    if !dns.options.is_empty() {
        lines.push(format!("options {}", dns.options.join(" ")));
    }
    Ok(lines)
}

/// The pod's cgroup below its parent, in systemd's notation if the parent is a slice. None without a parent.
fn cgroups_path(parent: &str, id: &SandboxId) -> Option<String> {
    let base = parent.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    if parent.is_empty() {
        None
    } else if base.ends_with(".slice") {
        Some(format!("{base}:cri-containerd:{id}"))
    } else {
        Some(format!("{}/{id}", parent.trim_end_matches('/')))
    }
}

/// A VM cannot share its host's namespaces.
fn refuse_host_namespaces(context: &LinuxSandboxSecurityContext) -> Result<()> {
    let namespaces = &context.namespace_options;
    let host = |mode: EnumOrUnknown<NamespaceMode>| mode == NamespaceMode::NODE.into();
    unsupported::host_namespaces([host(namespaces.network), host(namespaces.pid), host(namespaces.ipc)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length-delimited field of less than 128 bytes.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(content.len()).expect("short")], content].concat()
    }

    fn number(number: u8, value: u8) -> Vec<u8> {
        vec![number << 3, value]
    }

    fn of(message: &[Vec<u8>]) -> Result<PodSpec> {
        pod_spec(&message.concat(), &SandboxId::parse("s1").expect("id"))
    }

    fn pair(of: u8, key: &str, value: &str) -> Vec<u8> {
        field(of, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
    }

    #[test]
    fn a_pods_configuration_gives_what_its_pause_container_would() {
        let dns = [field(1, b"10.0.0.10"), field(2, b"ns.svc"), field(2, b"svc"), field(3, b"ndots:5")];
        // 150 ms in 100 ms and 128 bytes: the number's second byte.
        let resources =
            [vec![1 << 3, 0xa0, 0x8d, 0x06], vec![2 << 3, 0xf0, 0x93, 0x09], vec![4 << 3, 0x80, 0x01]];
        let linux = [
            field(1, b"/kubepods/burstable/pod1"),
            field(2, &field(1, &[number(1, 0), number(2, 1)].concat())),
            pair(3, "net.core.somaxconn", "9"),
            field(5, &resources.concat()),
        ];
        let spec = of(&[
            field(1, &field(1, b"name")),
            field(2, b"web-0"),
            field(4, &dns.concat()),
            pair(7, "a", "b"),
            pair(7, "c", ""),
            field(8, &linux.concat()),
        ])
        .expect("spec");
        assert_eq!(spec.hostname.as_deref(), Some("web-0"));
        let lines = ["search ns.svc svc", "nameserver 10.0.0.10", "options ndots:5"].map(str::to_owned);
        assert_eq!(spec.resolver, Resolver::Lines(lines.to_vec()));
        assert_eq!(spec.annotations.get("a").map(String::as_str), Some("b"));
        assert_eq!(spec.annotations.get("c").map(String::as_str), Some(""));
        assert_eq!(spec.cgroups_path.as_deref(), Some("/kubepods/burstable/pod1/s1"));
        assert_eq!(spec.sysctls.get("net.core.somaxconn").map(String::as_str), Some("9"));
        assert_eq!((spec.requested.memory_bytes, spec.requested.cpus), (128, 2));
    }

    #[test]
    fn an_empty_configuration_is_valid() {
        let spec = of(&[]).expect("spec");
        assert_eq!((spec.hostname, spec.cgroups_path), (None, None));
        assert_eq!(spec.resolver, Resolver::File("/etc/resolv.conf".into()));
    }

    #[test]
    fn cgroups_are_named_as_the_cri_plugin_names_them() {
        let id = SandboxId::parse("s1").expect("id");
        for (parent, wanted) in [
            ("", None),
            ("/kubepods/pod1", Some("/kubepods/pod1/s1")),
            ("/kubepods.slice/kubepods-pod1.slice", Some("kubepods-pod1.slice:cri-containerd:s1")),
            ("kubepods.slice/", Some("kubepods.slice:cri-containerd:s1")),
        ] {
            assert_eq!(cgroups_path(parent, &id).as_deref(), wanted, "{parent}");
        }
    }

    #[test]
    fn host_namespaces_and_malformed_messages_are_refused() {
        for (namespace, setting) in [(1, "hostNetwork"), (2, "hostPID"), (3, "hostIPC")] {
            let e = of(&[field(8, &field(2, &field(1, &number(namespace, 2))))]).expect_err(setting);
            assert!(e.to_string().contains(setting), "{e}");
        }
        let e = of(&[field(8, &pair(3, "vm.swappiness", "1"))]).expect_err("sysctl");
        assert!(e.to_string().starts_with("sysctl \"vm.swappiness\": "), "{e}");
        let e = of(&[field(4, &field(1, b"10.0.0.1\nsearch x"))]).expect_err("forged line");
        assert_eq!(e.to_string(), "dns_config: \"10.0.0.1\\nsearch x\": is not one word");
        for bad in [field(2, b"\xff"), field(8, b"\x0a\x05hi"), field(7, b"\xff"), field(4, &field(1, b""))] {
            assert!(of(std::slice::from_ref(&bad)).is_err(), "{bad:?}");
        }
    }
}
