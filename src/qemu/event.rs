//! QMP events as our own: pure. An unknown event is data, not an error.

use std::fmt;

use serde_json::Value;

use crate::error::one_line;
use crate::limits;

/// An event of QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum QmpEvent {
    /// The device with this id is unplugged completely.
    DeviceDeleted {
        device: String,
    },
    /// QEMU is about to end; `guest`: at the guest's request.
    Shutdown {
        guest: bool,
        reason: String,
    },
    GuestPanicked(GuestPanic),
    /// A disk failed (QEMU: qapi/block-core.json, BLOCK_IO_ERROR), in one line.
    DiskFailed {
        text: String,
    },
    /// The guest does not run any more: because of a failed disk, or an error inside QEMU or KVM. We never
    /// ask for it.
    Stopped,
    Other,
}

/// What QEMU knows about a crashed guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GuestPanic {
    /// A CPU stopped for good (QEMU: qapi/run-state.json, GuestPanicInformationS390). The address shows why
    /// the loader in front of a sealed image gave up.
    Cpu { core: u64, psw_mask: u64, psw_address: u64, reason: String },
    /// Another kind in QEMU's words, shortened.
    Other { text: String },
}

impl fmt::Display for GuestPanic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu { core, psw_mask, psw_address, reason } => {
                write!(f, "CPU {core}: {reason}, PSW {psw_mask:#x} {psw_address:#x}")
            }
            Self::Other { text } => f.write_str(text),
        }
    }
}

/// Reads one event object.
pub(crate) fn event(object: &Value) -> QmpEvent {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    match object.get("event").and_then(Value::as_str) {
        // The first of the two events of one unplug is that of the device's back end and names no device.
        Some("DEVICE_DELETED") if object.pointer("/data/device").is_some() => {
            QmpEvent::DeviceDeleted { device: short(text("/data/device")) }
        }
        Some("SHUTDOWN") => QmpEvent::Shutdown {
            guest: object.pointer("/data/guest").and_then(Value::as_bool).unwrap_or(false),
            reason: short(text("/data/reason")),
        },
        Some("GUEST_PANICKED") => QmpEvent::GuestPanicked(panic(object)),
        Some("BLOCK_IO_ERROR") => QmpEvent::DiskFailed { text: disk_error(object.get("data")) },
        Some("STOP") => QmpEvent::Stopped,
        _ => QmpEvent::Other,
    }
}

/// Which disk, doing what, why, and what QEMU does then.
fn disk_error(data: Option<&Value>) -> String {
    let text = |key: &str| data.and_then(|data| data.get(key)).and_then(Value::as_str).unwrap_or_default();
    let no_space = data.and_then(|data| data.get("nospace")).and_then(Value::as_bool).unwrap_or(false);
    // A disk that was plugged has a node and no name of its own.
    let disk = if text("node-name").is_empty() { text("device") } else { text("node-name") };
    let no_space = if no_space { " (its storage is full)" } else { "" };
    short(&format!(
        "I/O error of disk {disk}: {}: {}{no_space}; QEMU's action: {}",
        text("operation"),
        text("reason"),
        text("action")
    ))
}

fn panic(object: &Value) -> GuestPanic {
    let Some(info) = object.pointer("/data/info") else {
        let action = object.pointer("/data/action").and_then(Value::as_str).unwrap_or("no further detail");
        return GuestPanic::Other { text: short(action) };
    };
    let number = |key: &str| info.get(key).and_then(Value::as_u64);
    match (number("core"), number("psw-mask"), number("psw-addr")) {
        (Some(core), Some(psw_mask), Some(psw_address)) => GuestPanic::Cpu {
            core,
            psw_mask,
            psw_address,
            reason: short(info.get("reason").and_then(Value::as_str).unwrap_or("unknown reason")),
        },
        _ => GuestPanic::Other { text: short(&info.to_string()) },
    }
}

fn short(text: &str) -> String {
    one_line(&text.chars().take(limits::text::QUOTED_LINE_CHARS).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn known_events_are_read_and_others_pass() {
        let deleted = json!({"event": "DEVICE_DELETED", "data": {"device": "disk7", "path": "/x"}});
        assert_eq!(event(&deleted), QmpEvent::DeviceDeleted { device: "disk7".into() });
        let backend = json!({"event": "DEVICE_DELETED", "data": {"path": "/x/virtio-backend"}});
        assert_eq!(event(&backend), QmpEvent::Other);
        let shutdown = json!({"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}});
        assert_eq!(event(&shutdown), QmpEvent::Shutdown { guest: true, reason: "guest-shutdown".into() });
        let long = json!({"event": "SHUTDOWN", "data": {"reason": "x".repeat(900_000)}});
        let QmpEvent::Shutdown { reason, .. } = event(&long) else { panic!("not a shutdown") };
        assert_eq!(reason.len(), limits::text::QUOTED_LINE_CHARS);
        assert_eq!(event(&json!({"event": "NEWER_THAN_US", "data": [1]})), QmpEvent::Other);
    }

    #[test]
    fn a_failed_disk_is_told_with_operation_reason_and_action() {
        let mut data = json!({"device": "", "node-name": "hot-5", "operation": "write", "action": "stop",
            "nospace": true, "reason": "No space left on device", "qom-path": "/machine/peripheral/disk-5"});
        let of = |data: &Value| event(&json!({"event": "BLOCK_IO_ERROR", "data": data}));
        let text = "I/O error of disk hot-5: write: No space left on device (its storage is full); \
                    QEMU's action: stop";
        assert_eq!(of(&data), QmpEvent::DiskFailed { text: text.into() });
        data["nospace"] = false.into();
        data["node-name"] = "".into();
        data["device"] = "d\n1".into();
        let text = "I/O error of disk d\\n1: write: No space left on device; QEMU's action: stop";
        assert_eq!(of(&data), QmpEvent::DiskFailed { text: text.into() });
        assert!(matches!(of(&json!(3)), QmpEvent::DiskFailed { .. }));
        assert_eq!(event(&json!({"event": "STOP"})), QmpEvent::Stopped);
    }

    #[test]
    fn a_stopped_cpu_is_reported_with_its_psw() {
        let info = json!({"type": "s390", "core": 0, "psw-mask": 0x0002_0001_8000_0000_u64,
            "psw-addr": 0x4608, "reason": "disabled-wait"});
        let stopped = json!({"event": "GUEST_PANICKED", "data": {"action": "shutdown", "info": info}});
        let QmpEvent::GuestPanicked(panic) = event(&stopped) else { panic!("not a panic") };
        assert_eq!(panic.to_string(), "CPU 0: disabled-wait, PSW 0x2000180000000 0x4608");
        for (data, wanted) in [
            (json!({"action": "pause"}), "pause"),
            (json!({}), "no further detail"),
            (json!({"info": {"type": "s390", "core": -1}}), r#"{"core":-1,"type":"s390"}"#),
            (json!({"info": {"reason": "a\nb"}}), r#"{"reason":"a\nb"}"#),
        ] {
            let other = event(&json!({"event": "GUEST_PANICKED", "data": data}));
            assert_eq!(other, QmpEvent::GuestPanicked(GuestPanic::Other { text: wanted.into() }));
        }
    }
}
