//! The sum of the limits of a pod's containers: from the annotations in which containerd passes on the
//! kubelet's sums, or, for a container without a pod, from its own limits.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::limits;
use crate::oci::resources::CPU_PERIOD;
use crate::oci::role::Role;
use crate::oci::spec::Bundle;
use crate::plan::size::Requested;

/// Set by containerd; CRI-O has no such annotations.
const CPU_QUOTA_KEY: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD_KEY: &str = "io.kubernetes.cri.sandbox-cpu-period";
const MEMORY_KEY: &str = "io.kubernetes.cri.sandbox-memory";

/// The sum for the pod of this first container; nothing for a further container, whose VM exists already.
pub(crate) fn requested(bundle: &Bundle) -> Result<Requested> {
    match bundle.role {
        Role::Member { .. } => Ok(Requested::default()),
        Role::Sandbox => {
            let none = HashMap::new();
            let annotations = bundle.spec.annotations().as_ref().unwrap_or(&none);
            let number = |key| number(annotations, key);
            let (quota, period) = (number(CPU_QUOTA_KEY)?, number(CPU_PERIOD_KEY)?);
            Ok(from_limits(number(MEMORY_KEY)?, quota, u64::try_from(period).unwrap_or(0)))
        }
        Role::Single => {
            let linux = bundle.spec.linux().as_ref();
            let resources = linux.and_then(|linux| linux.resources().as_ref());
            let memory = resources.and_then(|r| r.memory().as_ref()).and_then(|m| m.limit());
            let cpu = resources.and_then(|r| r.cpu().as_ref());
            let (quota, period) = (cpu.and_then(|cpu| cpu.quota()), cpu.and_then(|cpu| cpu.period()));
            Ok(from_limits(memory.unwrap_or(0), quota.unwrap_or(0), period.unwrap_or(0)))
        }
    }
}

/// From bytes and a CPU quota; zero and negative numbers mean no limit.
pub(crate) fn from_limits(memory: i64, quota: i64, period: u64) -> Requested {
    let quota = u64::try_from(quota).unwrap_or(0);
    let cpus = quota.div_ceil(if period == 0 { CPU_PERIOD } else { period });
    Requested {
        memory_bytes: u64::try_from(memory).unwrap_or(0),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
    }
}

fn number(annotations: &HashMap<String, String>, key: &str) -> Result<i64> {
    let Some(text) = annotations.get(key) else { return Ok(0) };
    text.parse().map_err(|e| {
        let start: String = text.chars().take(limits::text::QUOTED_CHARS).collect();
        Error::invalid(format!("annotation {key} = {start:?}: {e}: expected a whole number"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ContainerId;
    use serde_json::{Value, json};

    fn of(annotations: &Value, resources: &Value) -> Result<Requested> {
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "annotations": annotations,
            "linux": {"resources": resources},
        });
        let id = ContainerId::parse("c1").expect("id");
        requested(&crate::oci::spec::parse(config.to_string().as_bytes(), &id).expect("bundle"))
    }

    fn pod(quota: &str, period: &str, memory: &str) -> Result<Requested> {
        let own = json!({"memory": {"limit": 999}, "cpu": {"quota": 999_999_999}});
        of(
            &json!({"io.kubernetes.cri.container-type": "sandbox", CPU_QUOTA_KEY: quota,
                CPU_PERIOD_KEY: period, MEMORY_KEY: memory}),
            &own,
        )
    }

    #[test]
    fn a_pods_limits_are_in_its_annotations() {
        for (quota, period, memory, wanted) in [
            ("150000", "100000", "104857600", (100 << 20, 2)),
            ("200000", "100000", "0", (0, 2)),
            ("1", "100000", "1", (1, 1)),
            ("300000", "0", "0", (0, 3)),
            ("-1", "100000", "-1", (0, 0)),
            ("9223372036854775807", "1", "9223372036854775807", ((1 << 63) - 1, u32::MAX)),
        ] {
            let (memory_bytes, cpus) = wanted;
            assert_eq!(
                pod(quota, period, memory),
                Ok(Requested { memory_bytes, cpus }),
                "{quota}/{period} {memory}"
            );
        }
        let e = pod("NaN", "", "1e309").expect_err("no number").to_string();
        assert!(
            e.starts_with("annotation io.kubernetes.cri.sandbox-cpu-quota = \"NaN\": invalid digit"),
            "{e}"
        );
        let e = pod("1", "1", "9223372036854775808").expect_err("too large").to_string();
        assert!(e.contains("sandbox-memory") && e.contains("number too large"), "{e}");
    }

    #[test]
    fn a_single_container_has_its_own_limits() {
        let own = json!({"memory": {"limit": 33_554_432}, "cpu": {"quota": 250_000, "period": 100_000}});
        assert_eq!(of(&json!({}), &own), Ok(Requested { memory_bytes: 32 << 20, cpus: 3 }));
        assert_eq!(of(&json!({}), &json!({})), Ok(Requested::default()));
        let member =
            json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "s1"});
        assert_eq!(of(&member, &own), Ok(Requested::default()), "its pod's VM exists already");
    }
}
