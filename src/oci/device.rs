//! Block devices of the host that a spec names, as the kubelet does for raw block volumes (`volumeDevices`): each
//! becomes a disk of the guest. Other devices are refused in `unsupported`.

use std::collections::BTreeSet;
use std::path::{Component, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};

use crate::error::{Error, Result};
use crate::limits;
use crate::scsi::ScsiAddress;

/// Where the guest keeps image layers, if a container has such a device (Kata's contract).
pub(crate) const TRUSTED_STORE: &str = "/dev/trusted_store";

/// A block device of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

impl std::fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// One that a container is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockDevice {
    /// Its name in the container.
    pub path: PathBuf,
    pub number: DeviceNumber,
    pub read_only: bool,
}

/// A device for the agent, which finds it in the guest and puts its numbers into the spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestDevice {
    pub driver: String,
    pub id: String,
    pub container_path: String,
}

impl GuestDevice {
    /// A disk of the VM's SCSI controller.
    pub(crate) fn scsi(device: &BlockDevice, address: ScsiAddress) -> Self {
        Self {
            driver: "scsi".into(),
            id: address.to_string(),
            container_path: device.path.display().to_string(),
        }
    }
}

/// The block devices of a spec, checked.
pub(crate) fn block_devices(spec: &Spec) -> Result<Vec<BlockDevice>> {
    let linux = spec.linux().as_ref();
    let devices = linux.and_then(|linux| linux.devices().as_ref()).into_iter().flatten();
    let rules = linux.and_then(|linux| linux.resources().as_ref()).and_then(|r| r.devices().as_deref());
    let rules = rules.unwrap_or_default();
    let mut paths = BTreeSet::new();
    let mut found = Vec::new();
    for device in devices.filter(|device| is_block(device)) {
        let path = device.path();
        let what = format!("device {}", path.display());
        let is_plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
        if !is_plain || path.to_str().is_none() {
            return Err(Error::invalid(format!(
                "{what}: its name is not an absolute path in UTF-8 without \"..\""
            )));
        }
        if !paths.insert(path) {
            return Err(Error::invalid(format!(
                "{what}: is named twice: a container has one device of a name"
            )));
        }
        let number = |n: i64| {
            u32::try_from(n).ok().ok_or_else(|| Error::invalid(format!("{what}: {n} is no device number")))
        };
        let number = DeviceNumber { major: number(device.major())?, minor: number(device.minor())? };
        found.push(BlockDevice { path: path.clone(), number, read_only: !is_writable(device, rules) });
    }
    if found.len() > limits::volumes::BLOCK_DEVICES {
        return Err(Error::invalid(format!(
            "{} block devices for one container, at most {} are allowed: for privileged containers set \
             privileged_without_host_devices = true for this runtime",
            found.len(),
            limits::volumes::BLOCK_DEVICES
        )));
    }
    Ok(found)
}

pub(super) fn is_block(device: &LinuxDevice) -> bool {
    device.typ() == LinuxDeviceType::B
}

/// By the rules that a host would give to the device's cgroup, the last that fits; without one nobody may open it.
fn is_writable(device: &LinuxDevice, rules: &[LinuxDeviceCgroup]) -> bool {
    // A number that is absent, or negative, stands for all.
    let fits = |wanted: Option<i64>, number: i64| wanted.is_none_or(|wanted| wanted < 0 || wanted == number);
    let of_device = |rule: &&LinuxDeviceCgroup| {
        let typ = rule.typ().unwrap_or(LinuxDeviceType::A);
        matches!(typ, LinuxDeviceType::A | LinuxDeviceType::B)
            && fits(rule.major(), device.major())
            && fits(rule.minor(), device.minor())
            && rule.access().as_deref().unwrap_or("rwm").contains('w')
    };
    rules.iter().rfind(of_device).is_some_and(LinuxDeviceCgroup::allow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn found(devices: Value, rules: Value) -> Result<Vec<BlockDevice>> {
        let spec = json!({
            "ociVersion": "1.0.2",
            "linux": {"devices": devices, "resources": {"devices": rules}},
        });
        block_devices(&serde_json::from_value(spec).expect("spec"))
    }

    fn device(path: &str, minor: i64) -> Value {
        json!({"path": path, "type": "b", "major": 8, "minor": minor})
    }

    #[test]
    fn block_devices_are_found_and_are_as_writable_as_their_rules() {
        let deny = json!({"allow": false, "access": "rwm"});
        let rule = |allow: bool, minor: Value, access: &str| json!({"allow": allow, "type": "b", "major": 8, "minor": minor, "access": access});
        for (rules, read_only) in [
            (json!([]), true),
            (json!([deny]), true),
            (json!([deny, rule(true, 1.into(), "rwm")]), false),
            (json!([deny, rule(true, 1.into(), "mrw")]), false),
            (json!([deny, rule(true, 1.into(), "rm")]), true),
            (json!([deny, rule(true, 2.into(), "rwm")]), true),
            (json!([rule(true, 1.into(), "rwm"), deny]), true),
            (json!([deny, rule(true, Value::Null, "rwm")]), false),
            (json!([{"allow": true, "type": "a", "access": "rwm"}]), false),
            (json!([{"allow": true, "type": "c", "access": "rwm"}]), true),
        ] {
            let all = found(
                json!([{"path": "/dev/n", "type": "c", "major": 1, "minor": 3}, device("/dev/x", 1)]),
                rules.clone(),
            );
            let number = DeviceNumber { major: 8, minor: 1 };
            let wanted = BlockDevice { path: "/dev/x".into(), number, read_only };
            assert_eq!(all, Ok(vec![wanted]), "{rules}");
        }
    }

    #[test]
    fn what_the_agent_could_not_take_is_refused_by_name() {
        for (devices, wanted) in [
            (json!([device("/dev/x", 1), device("/dev/x", 2)]), "device /dev/x: is named twice"),
            (json!([device("/dev/../x", 1)]), "device /dev/../x: its name is not"),
            (json!([device("x", 1)]), "device x: its name is not"),
            (json!([device("/dev/x", -1)]), "device /dev/x: -1 is no device number"),
            (
                (0..300).map(|n| device(&format!("/dev/x{n}"), n)).collect(),
                "300 block devices for one container, at most 256 are allowed",
            ),
        ] {
            let e = found(devices, json!([])).expect_err(wanted).to_string();
            assert!(e.starts_with(wanted), "{e}");
        }
    }
}
