//! QMP events to our own: pure. An event that is not known is data, not an error.

use serde_json::Value;

/// What QEMU told without being asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QmpEvent {
    /// The device with this id is unplugged completely.
    DeviceDeleted {
        device: String,
    },
    /// QEMU is about to end; `guest`: the guest asked for it.
    Shutdown {
        guest: bool,
        reason: String,
    },
    GuestPanicked {
        text: String,
    },
    Other,
}

/// Reads one event object.
pub fn event(object: &Value) -> QmpEvent {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    match object.get("event").and_then(Value::as_str) {
        // The first of two events for one unplug names no device: it is its back end.
        Some("DEVICE_DELETED") if object.pointer("/data/device").is_some() => {
            QmpEvent::DeviceDeleted { device: text("/data/device") }
        }
        Some("SHUTDOWN") => QmpEvent::Shutdown {
            guest: object.pointer("/data/guest").and_then(Value::as_bool).unwrap_or(false),
            reason: text("/data/reason"),
        },
        Some("GUEST_PANICKED") => QmpEvent::GuestPanicked {
            text: match object.pointer("/data/info") {
                Some(info) => info.to_string().chars().take(300).collect(),
                None => text("/data/action"),
            },
        },
        _ => QmpEvent::Other,
    }
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
        assert_eq!(event(&json!({"event": "NEWER_THAN_US", "data": [1]})), QmpEvent::Other);
    }
}
