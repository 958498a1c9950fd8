//! Disks as QEMU keeps them: descriptors in sets, block nodes that hold one, devices that use a node.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use serde_json::{Value, json};

#[derive(Default)]
pub(crate) struct Disks {
    made: usize,
    sets: BTreeMap<String, OwnedFd>,
    nodes: BTreeMap<String, OwnedFd>,
    /// The device's name and its node's.
    devices: BTreeMap<String, String>,
}

impl Disks {
    /// Answers a command; None: it is not about disks. Errors have QEMU's wording.
    pub(crate) fn command(
        &mut self,
        command: &str,
        arguments: &Value,
        passed: Option<OwnedFd>,
    ) -> Option<Result<Value, String>> {
        Some(match command {
            "add-fd" => self.add_fd(passed),
            "remove-fd" => {
                let set = arguments["fdset-id"].to_string();
                self.sets
                    .remove(&set)
                    .map(|_| json!({}))
                    .ok_or(format!("File descriptor named '{set}' not found"))
            }
            "blockdev-add" => self.add_node(arguments),
            "device_add" => self.add_device(arguments),
            "blockdev-del" => self.remove_node(text(&arguments["node-name"])),
            "device_del" => {
                let id = text(&arguments["id"]);
                self.devices.remove(id).map(|_| json!({})).ok_or(format!("Device '{id}' not found"))
            }
            _ => return None,
        })
    }

    fn add_fd(&mut self, passed: Option<OwnedFd>) -> Result<Value, String> {
        let fd = passed.ok_or("No file descriptor supplied via SCM_RIGHTS")?;
        self.made += 1;
        self.sets.insert(self.made.to_string(), fd);
        Ok(json!({"fdset-id": self.made, "fd": 100 + self.made}))
    }

    fn add_node(&mut self, arguments: &Value) -> Result<Value, String> {
        let (name, path) = (text(&arguments["node-name"]), text(&arguments["file"]["filename"]));
        if self.nodes.contains_key(name) {
            return Err(format!("Duplicate nodes with node-name='{name}'"));
        }
        let set = path.strip_prefix("/dev/fdset/").and_then(|set| self.sets.get(set));
        let fd = set.and_then(|fd| fd.try_clone().ok()).ok_or(format!("Could not open '{path}'"))?;
        self.nodes.insert(name.to_owned(), fd);
        Ok(json!({}))
    }

    fn add_device(&mut self, arguments: &Value) -> Result<Value, String> {
        let (id, node) = (text(&arguments["id"]), text(&arguments["drive"]));
        if self.devices.contains_key(id) {
            return Err(format!("Duplicate device ID '{id}'"));
        }
        if !self.nodes.contains_key(node) {
            return Err(format!("Property 'virtio-blk-ccw.drive' can't find value '{node}'"));
        }
        self.devices.insert(id.to_owned(), node.to_owned());
        Ok(json!({}))
    }

    fn remove_node(&mut self, name: &str) -> Result<Value, String> {
        if self.devices.values().any(|node| node == name) {
            return Err(format!("Node {name} is in use"));
        }
        self.nodes
            .remove(name)
            .map(|_| json!({}))
            .ok_or(format!("Failed to find node with node-name='{name}'"))
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
