//! Disks as QEMU keeps them: descriptors in sets, block nodes that hold one, devices that use a node, each on a bus
//! of its own (virtio-blk) or at an address of a SCSI controller.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::{Map, Value, json};

/// The largest target and unit of a virtio-scsi controller (QEMU: hw/scsi/virtio-scsi.c).
const SCSI_MOST: (u64, u64) = (255, 16383);

/// Characters of a SCSI disk's serial number (QEMU: hw/scsi/scsi-disk.c).
const SCSI_SERIAL: usize = 36;

const NODE_KEYS: [&str; 6] = ["driver", "node-name", "read-only", "discard", "cache", "file"];
const FILE_KEYS: [&str; 6] = ["driver", "filename", "read-only", "locking", "discard", "cache"];
const BLK_KEYS: [&str; 6] = ["driver", "id", "drive", "devno", "serial", "iommu_platform"];
const SCSI_KEYS: [&str; 8] = ["driver", "id", "bus", "drive", "channel", "scsi-id", "lun", "serial"];

/// What of it the command line made, before any command.
#[derive(Debug, Default)]
pub(crate) struct Cold {
    /// SCSI controllers by their ids.
    pub(crate) controllers: Vec<String>,
    /// Device numbers in use.
    pub(crate) devnos: Vec<String>,
}

#[derive(Default)]
pub(crate) struct Disks {
    made: usize,
    controllers: Vec<String>,
    /// Of devices on the command line.
    devnos: Vec<String>,
    sets: BTreeMap<String, OwnedFd>,
    nodes: BTreeMap<String, Node>,
    devices: BTreeMap<String, Device>,
}

struct Node {
    /// Open as long as the node is there.
    _file: OwnedFd,
    read_only: bool,
}

struct Device {
    node: String,
    /// A device number, or bus, target and unit.
    place: String,
    is_scsi: bool,
}

type Answer = Result<Value, String>;

impl Disks {
    pub(crate) fn new(cold: &Cold) -> Self {
        Self { controllers: cold.controllers.clone(), devnos: cold.devnos.clone(), ..Self::default() }
    }

    /// Answers a command; None: it is not about disks. Errors have QEMU's wording.
    pub(crate) fn command(
        &mut self,
        command: &str,
        arguments: &Value,
        passed: Option<OwnedFd>,
    ) -> Option<Answer> {
        Some(match command {
            "add-fd" => self.add_fd(passed),
            "remove-fd" => {
                let (set, fd) = (arguments["fdset-id"].to_string(), &arguments["fd"]);
                self.sets
                    .remove(&set)
                    .map(|_| json!({}))
                    .ok_or(format!("File descriptor named 'fdset-id:{set}, fd:{fd}' not found"))
            }
            "blockdev-add" => self.add_node(arguments),
            "device_add" => self.add_device(arguments),
            "blockdev-del" => self.remove_node(text(&arguments["node-name"])),
            "device_del" => {
                let id = text(&arguments["id"]);
                let removed = self.devices.remove(id).ok_or(format!("Device '{id}' not found"));
                // For `deleted`: what the answer leaves out.
                removed.map(|device| json!({"is_scsi": device.is_scsi}))
            }
            _ => return None,
        })
    }

    fn add_fd(&mut self, passed: Option<OwnedFd>) -> Answer {
        let fd = passed.ok_or("No file descriptor supplied via SCM_RIGHTS")?;
        self.made += 1;
        self.sets.insert(self.made.to_string(), fd);
        Ok(json!({"fdset-id": self.made, "fd": 100 + self.made}))
    }

    fn add_node(&mut self, arguments: &Value) -> Answer {
        let file = &arguments["file"];
        known(arguments, &NODE_KEYS).map_err(|key| format!("Parameter '{key}' is unexpected"))?;
        known(file, &FILE_KEYS).map_err(|key| format!("Parameter 'file.{key}' is unexpected"))?;
        let (name, path) = (text(&arguments["node-name"]), text(&file["filename"]));
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.len() < 32
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        if !is_name {
            return Err(format!("Invalid node-name: '{name}'"));
        }
        if text(&arguments["driver"]) != "raw" {
            return Err(format!("Unknown driver '{}'", text(&arguments["driver"])));
        }
        if self.nodes.contains_key(name) {
            return Err(format!("Duplicate nodes with node-name='{name}'"));
        }
        let set = path.strip_prefix("/dev/fdset/").and_then(|set| self.sets.get(set));
        let fd = set.ok_or(format!("Failed to find fdset {path}"))?;
        let read_only = file["read-only"] == true;
        let mode = if read_only { OFlag::O_RDONLY } else { OFlag::O_RDWR };
        let direct = if file["cache"]["direct"] == true { OFlag::O_DIRECT } else { OFlag::empty() };
        let relevant = OFlag::O_ACCMODE | OFlag::O_DIRECT;
        let has = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain).unwrap_or(OFlag::empty());
        if has & relevant != mode | direct {
            let wanted = (mode | direct).bits();
            return Err(format!("Failed to find file descriptor with matching flags={wanted:#x}"));
        }
        let opened = fd.try_clone().map_err(|e| format!("Could not open '{path}': {e}"))?;
        let copy = opened.try_clone().map_err(|e| e.to_string())?;
        let is_device = File::from(copy).metadata().is_ok_and(|meta| meta.file_type().is_block_device());
        match (text(&file["driver"]), is_device) {
            ("file", false) | ("host_device", true) => {}
            ("file", true) => {
                return Err(
                    "A regular file was expected by the 'file' driver, but something else was given".into()
                );
            }
            ("host_device", false) => {
                return Err("'host_device' driver expects either a character or block device".into());
            }
            (other, _) => return Err(format!("Unknown driver '{other}'")),
        }
        self.nodes.insert(name.to_owned(), Node { _file: opened, read_only });
        Ok(json!({}))
    }

    fn add_device(&mut self, arguments: &Value) -> Answer {
        let (id, driver) = (text(&arguments["id"]), text(&arguments["driver"]));
        if self.devices.contains_key(id) {
            return Err(format!("Duplicate device ID '{id}'"));
        }
        let (keys, is_scsi): (&[&str], bool) = match driver {
            "virtio-blk-ccw" => (&BLK_KEYS, false),
            "scsi-hd" => (&SCSI_KEYS, true),
            _ => return Err(format!("'{driver}' is not a valid device model name")),
        };
        if is_scsi {
            let bus = text(&arguments["bus"]);
            if !self.controllers.iter().any(|id| bus == format!("{id}.0")) {
                return Err(format!("Bus '{bus}' not found"));
            }
        }
        known(arguments, keys).map_err(|key| format!("Property '{driver}.{key}' not found"))?;
        let name = text(&arguments["drive"]);
        let node =
            self.nodes.get(name).ok_or(format!("Property '{driver}.drive' can't find value '{name}'"))?;
        let place = if is_scsi { scsi_place(arguments)? } else { text(&arguments["devno"]).to_owned() };
        if let Some((other, _)) = self.devices.iter().find(|(_, device)| device.place == place) {
            return Err(match is_scsi {
                true => format!("lun already used by '{other}'"),
                false => format!("Device {place} already exists"),
            });
        }
        if self.devnos.contains(&place) {
            return Err(format!("Device {place} already exists"));
        }
        if let Some((other, _)) =
            self.devices.iter().find(|(_, device)| device.node == name && !node.read_only)
        {
            return Err(format!(
                "Permission conflict on node '{name}': permissions 'write' are both required by block device \
                 '{other}' (uses node '{name}' as 'root' child) and unshared by block device '{id}' (uses node \
                 '{name}' as 'root' child)."
            ));
        }
        self.devices.insert(id.to_owned(), Device { node: name.to_owned(), place, is_scsi });
        Ok(json!({}))
    }

    fn remove_node(&mut self, name: &str) -> Answer {
        if self.devices.values().any(|device| device.node == name) {
            return Err(format!("Node {name} is in use"));
        }
        self.nodes
            .remove(name)
            .map(|_| json!({}))
            .ok_or(format!("Failed to find node with node-name='{name}'"))
    }
}

/// Bus, target and unit of a SCSI disk.
fn scsi_place(arguments: &Value) -> Result<String, String> {
    let number = |name: &str| arguments[name].as_u64();
    let (channel, id, lun) = (number("channel"), number("scsi-id"), number("lun"));
    // QEMU would choose those that are missing; the agent has to be told which.
    let (Some(channel), Some(id), Some(lun)) = (channel, id, lun) else {
        return Err("scsi-hd: channel, scsi-id and lun are all needed here".into());
    };
    if channel != 0 {
        return Err(format!("bad scsi channel id: {channel}"));
    }
    if id > SCSI_MOST.0 {
        return Err(format!("bad scsi device id: {id}"));
    }
    if lun > SCSI_MOST.1 {
        return Err(format!("bad scsi device lun: {lun}"));
    }
    if text(&arguments["serial"]).len() > SCSI_SERIAL {
        return Err(format!("The serial number can't be longer than {SCSI_SERIAL} characters"));
    }
    Ok(format!("{} {id}:{lun}", text(&arguments["bus"])))
}

/// The first key that is none of these.
fn known(object: &Value, keys: &[&str]) -> Result<(), String> {
    let none = Map::new();
    let object = object.as_object().unwrap_or(&none);
    object.keys().find(|key| !keys.contains(&key.as_str())).map_or(Ok(()), |key| Err(key.clone()))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// With one controller, and a node of a file that may be written.
    fn disks() -> Disks {
        let cold = Cold { controllers: vec!["scsi0".into()], devnos: vec!["fe.0.0001".into()] };
        let mut disks = Disks::new(&cold);
        for name in ["n1", "n2"] {
            let file = tempfile();
            let set = disks.command("add-fd", &json!({}), Some(file)).unwrap().unwrap();
            disks.command("blockdev-add", &node(name, &set["fdset-id"]), None).unwrap().unwrap();
        }
        disks
    }

    fn tempfile() -> OwnedFd {
        let path = std::env::temp_dir().join(format!("qemu-double-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).ok();
        file.into()
    }

    fn node(name: &str, set: &Value) -> Value {
        let file = json!({"driver": "file", "filename": format!("/dev/fdset/{set}"), "read-only": false});
        json!({"driver": "raw", "node-name": name, "read-only": false, "file": file})
    }

    fn scsi(change: Value) -> Value {
        let mut disk = json!({"driver": "scsi-hd", "id": "d1", "bus": "scsi0.0", "drive": "n1", "channel": 0,
            "scsi-id": 0, "lun": 3, "serial": "s"});
        for (key, value) in change.as_object().unwrap() {
            disk[key] = value.clone();
        }
        disk
    }

    /// The texts are those of QEMU 10.0.2, tried.
    #[test]
    fn what_qemu_refuses_is_refused_in_its_words() {
        let mut disks = disks();
        let mut add = |change: Value| disks.command("device_add", &scsi(change), None).unwrap();
        for (change, wanted) in [
            (json!({"bus": "scsi1.0"}), "Bus 'scsi1.0' not found"),
            (json!({"drive": "nope"}), "Property 'scsi-hd.drive' can't find value 'nope'"),
            (json!({"devno": "fe.0.0005"}), "Property 'scsi-hd.devno' not found"),
            (json!({"driver": "scsi-hx"}), "'scsi-hx' is not a valid device model name"),
            (json!({"scsi-id": 300}), "bad scsi device id: 300"),
            (json!({"lun": 20000}), "bad scsi device lun: 20000"),
            (json!({"channel": 1}), "bad scsi channel id: 1"),
            (json!({"serial": "y".repeat(100)}), "The serial number can't be longer than 36 characters"),
        ] {
            assert_eq!(add(change).unwrap_err(), wanted);
        }
        add(json!({})).unwrap();
        for (change, wanted) in [
            (json!({}), "Duplicate device ID 'd1'"),
            (json!({"id": "d2", "drive": "n2"}), "lun already used by 'd1'"),
            (json!({"id": "d2", "lun": 4}), "Permission conflict on node 'n1'"),
        ] {
            assert!(add(change).unwrap_err().starts_with(wanted), "{wanted}");
        }
        let blk = json!({"driver": "virtio-blk-ccw", "id": "b", "drive": "n2", "devno": "fe.0.0001"});
        let e = disks.command("device_add", &blk, None).unwrap().unwrap_err();
        assert_eq!(e, "Device fe.0.0001 already exists");
        let mut run = |command: &str, key: &str, value: &str| {
            disks.command(command, &json!({key: value}), None).unwrap()
        };
        assert_eq!(run("blockdev-del", "node-name", "n1").unwrap_err(), "Node n1 is in use");
        run("device_del", "id", "d1").unwrap();
        assert_eq!(run("device_del", "id", "d1").unwrap_err(), "Device 'd1' not found");
        run("blockdev-del", "node-name", "n1").unwrap();
    }

    #[test]
    fn a_node_has_a_descriptor_that_was_opened_as_it_is_used() {
        let mut disks = disks();
        let set = disks.command("add-fd", &json!({}), Some(tempfile())).unwrap().unwrap()["fdset-id"].clone();
        let mut add = |change: fn(&mut Value)| {
            let mut node = node("n3", &set);
            change(&mut node);
            disks.command("blockdev-add", &node, None).unwrap()
        };
        for (change, wanted) in [
            ((|n| n["file"]["bogus"] = 1.into()) as fn(&mut Value), "Parameter 'file.bogus' is unexpected"),
            (
                |n| n["file"]["read-only"] = true.into(),
                "Failed to find file descriptor with matching flags=0x0",
            ),
            (
                |n| n["file"]["cache"]["direct"] = true.into(),
                "Failed to find file descriptor with matching flags=0x4002",
            ),
            (|n| n["file"]["filename"] = "/dev/fdset/99".into(), "Failed to find fdset /dev/fdset/99"),
            (
                |n| n["file"]["driver"] = "host_device".into(),
                "'host_device' driver expects either a character",
            ),
            (|n| n["node-name"] = "n1".into(), "Duplicate nodes with node-name='n1'"),
            (|n| n["node-name"] = "1n".into(), "Invalid node-name: '1n'"),
        ] {
            let e = add(change).unwrap_err();
            assert!(e.starts_with(wanted), "{e}");
        }
        add(|_| ()).unwrap();
    }
}
