//! CRI's `runtime.v1.PodSandboxConfig`, which containerd passes with CreateSandbox: what a pod's start
//! needs of it. What the CRI plugin makes for its own pause container is decided here as it does there
//! (its `podsandbox/sandbox_run_linux.go` and `helpers.go`).

use std::collections::HashMap;
use std::path::PathBuf;

use crate::error::{Context, Error, Result};
use crate::ids::SandboxId;
use crate::limits;
use crate::oci::pod_spec::{PodSpec, Resolver};
use crate::oci::spec::hostname;
use crate::oci::unsupported;
use crate::shim::wire::{Field, each};

/// The message's name in the options of CreateSandbox.
pub(crate) const TYPE: &str = "runtime.v1.PodSandboxConfig";

/// What the CRI plugin gives its pause container.
const OOM_SCORE_ADJ: i32 = -998;

/// Of `NamespaceMode`: the host's.
const NODE: i64 = 2;

/// `LinuxContainerResources`.
#[derive(Default)]
struct Resources {
    period: i64,
    quota: i64,
    memory: i64,
}

/// A pod of this configuration.
pub(crate) fn parse(message: &[u8], id: &SandboxId) -> Result<PodSpec> {
    let mut spec = PodSpec { oom_score_adj: Some(OOM_SCORE_ADJ), ..PodSpec::default() };
    let mut dns = Vec::new();
    let mut resources = Resources::default();
    each(message, |number, field| {
        match number {
            2 => spec.hostname = hostname(&field.text()?),
            4 => dns_config(&field.bytes()?, &mut dns).context("dns_config")?,
            7 => entry(&field.bytes()?, &mut spec.annotations).context("annotations")?,
            8 => linux(&field.bytes()?, id, &mut spec, &mut resources).context("linux")?,
            _ => {}
        }
        Ok(())
    })?;
    spec.sysctls.keys().try_for_each(|name| sysctl(name))?;
    spec.resolver = resolver(dns);
    let period = u64::try_from(resources.period).unwrap_or(0);
    spec.requested = crate::oci::requests::from_limits(resources.memory, resources.quota, period);
    Ok(spec)
}

/// Without a configuration a pod asks as its host does.
fn resolver(lines: Vec<String>) -> Resolver {
    if lines.is_empty() { Resolver::File(PathBuf::from("/etc/resolv.conf")) } else { Resolver::Lines(lines) }
}

/// The lines of a resolv.conf.
fn dns_config(message: &[u8], lines: &mut Vec<String>) -> Result<()> {
    let mut words: [Vec<String>; 3] = Default::default();
    let mut bytes = 0;
    each(message, |number, field| {
        let Some(list) = (number as usize).checked_sub(1).and_then(|at| words.get_mut(at)) else {
            return Ok(());
        };
        let word = field.text()?;
        if word.is_empty() || word.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Error::invalid(format!("{word:?}: is not one word")));
        }
        bytes += word.len() as u64;
        list.push(word);
        Ok(())
    })?;
    if bytes > limits::RESOLV_CONF_BYTES {
        return Err(Error::invalid(format!("{bytes} bytes, allowed are {}", limits::RESOLV_CONF_BYTES)));
    }
    let [servers, searches, options] = words;
    if !searches.is_empty() {
        lines.push(format!("search {}", searches.join(" ")));
    }
    lines.extend(servers.iter().map(|server| format!("nameserver {server}")));
    if !options.is_empty() {
        lines.push(format!("options {}", options.join(" ")));
    }
    Ok(())
}

/// `LinuxPodSandboxConfig`.
fn linux(message: &[u8], id: &SandboxId, spec: &mut PodSpec, resources: &mut Resources) -> Result<()> {
    each(message, |number, field| {
        match number {
            1 => spec.cgroups_path = cgroups_path(&field.text()?, id),
            2 => security_context(&field.bytes()?)?,
            3 => entry(&field.bytes()?, &mut spec.sysctls).context("sysctls")?,
            5 => each(&field.bytes()?, |number, field| {
                match number {
                    1 => resources.period = field.number()?,
                    2 => resources.quota = field.number()?,
                    4 => resources.memory = field.number()?,
                    _ => {}
                }
                Ok(())
            })
            .context("resources")?,
            _ => {}
        }
        Ok(())
    })
}

/// Only settings of the namespaces that a pod has can be the pod's: agents take no others.
fn sysctl(name: &str) -> Result<()> {
    const KERNEL: [&str; 9] =
        ["domainname", "msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];
    let of_kernel = name.strip_prefix("kernel.").is_some_and(|name| KERNEL.contains(&name));
    if of_kernel || name.starts_with("fs.mqueue.") || name.starts_with("net.") {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "sysctl {name:?}: is not one of a pod's own network, message queues or shared memory: leave it out"
    )))
}

/// The pod's own below its parent; a slice by systemd's notation. None: no parent was named.
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

/// `LinuxSandboxSecurityContext`: what a VM cannot share with its host.
fn security_context(message: &[u8]) -> Result<()> {
    let mut hosts = [false; 3];
    each(message, |number, field| {
        if number != 1 {
            return Ok(());
        }
        each(&field.bytes()?, |number, field| {
            if let Some(host) = (number as usize).checked_sub(1).and_then(|at| hosts.get_mut(at)) {
                *host = field.number()? == NODE;
            }
            Ok(())
        })
    })
    .context("security_context")?;
    unsupported::host_namespaces(hosts)
}

/// One entry of a map of texts.
fn entry(message: &[u8], map: &mut HashMap<String, String>) -> Result<()> {
    let (mut key, mut value) = (String::new(), String::new());
    each(message, |number, field: Field| {
        match number {
            1 => key = field.text()?,
            2 => value = field.text()?,
            _ => {}
        }
        Ok(())
    })?;
    map.insert(key, value);
    Ok(())
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
        parse(&message.concat(), &SandboxId::parse("s1").expect("id"))
    }

    fn pair(of: u8, key: &str, value: &str) -> Vec<u8> {
        field(of, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
    }

    #[test]
    fn a_pods_configuration_says_what_its_pause_container_would() {
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
        assert_eq!(spec.annotation("a"), Some("b"));
        assert_eq!(spec.annotation("c"), Some(""));
        assert_eq!(spec.cgroups_path.as_deref(), Some("/kubepods/burstable/pod1/s1"));
        assert_eq!(spec.sysctls.get("net.core.somaxconn").map(String::as_str), Some("9"));
        assert_eq!((spec.requested.memory_bytes, spec.requested.cpus), (128, 2));
    }

    #[test]
    fn a_pod_that_says_nothing_is_one_too() {
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
    fn the_hosts_namespaces_are_refused_and_so_is_nonsense() {
        for (namespace, setting) in [(1, "hostNetwork"), (2, "hostPID"), (3, "hostIPC")] {
            let e = of(&[field(8, &field(2, &field(1, &number(namespace, 2))))]).expect_err(setting);
            assert!(e.to_string().contains(setting), "{e}");
        }
        let e = of(&[field(8, &pair(3, "vm.swappiness", "1"))]).expect_err("sysctl");
        assert!(e.to_string().starts_with("sysctl \"vm.swappiness\": "), "{e}");
        let e = of(&[field(4, &field(1, b"10.0.0.1\nsearch x"))]).expect_err("forged line");
        assert_eq!(e.to_string(), "dns_config: \"10.0.0.1\\nsearch x\": is not one word");
        for bad in [number(2, 1), field(8, &number(1, 1)), field(7, b"\xff"), field(4, &field(1, b""))] {
            assert!(of(std::slice::from_ref(&bad)).is_err(), "{bad:?}");
        }
    }
}
