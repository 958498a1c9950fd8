//! The disks of the command line, refused as QEMU would, and kept for tests as a guest would read them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What `-add-fd`, `-blockdev` and `-device` say of disks, in their order.
#[derive(Debug, Default)]
pub(crate) struct ColdDisks {
    /// Descriptors by the number of their set.
    sets: BTreeMap<String, String>,
    /// Files of the nodes that no device uses yet.
    nodes: BTreeMap<String, PathBuf>,
    /// Each disk's file by its serial.
    disks: Vec<(String, PathBuf)>,
}

impl ColdDisks {
    /// Takes one option; errors have QEMU's wording.
    pub(crate) fn option(&mut self, name: &str, value: &str) -> Result<(), String> {
        let of = |key: &str| value.split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        let text = |key: &str| of(key).unwrap_or_default().to_owned();
        match name {
            "-add-fd" => {
                let fd = text("fd");
                if fs::metadata(format!("/proc/self/fd/{fd}")).is_err() {
                    return Err(format!("-add-fd {value}: fd is not valid"));
                }
                self.sets.insert(text("set"), fd);
            }
            "-blockdev" => {
                let (node, path) = (text("node-name"), text("file.filename"));
                let set = path.strip_prefix("/dev/fdset/").and_then(|set| self.sets.get(set));
                let fd = set.ok_or(format!("Could not open '{path}': No such file or directory"))?;
                if is_read_only(fd) != (of("read-only") == Some("on")) {
                    // A set gives only a descriptor of the same access mode.
                    return Err(format!("Could not open '{path}': Permission denied"));
                }
                self.nodes.insert(node, format!("/proc/self/fd/{fd}").into());
            }
            "-device" if value.starts_with("virtio-blk-ccw,") => {
                let drive = text("drive");
                let file = self.nodes.remove(&drive).ok_or(format!(
                    "-device {value}: Property 'virtio-blk-ccw.drive' can't find value '{drive}'"
                ))?;
                let serial = text("serial");
                if serial.len() > 20 {
                    return Err(format!("serial {serial}: the guest sees 20 bytes of it only"));
                }
                self.disks.push((serial, file));
            }
            _ => {}
        }
        Ok(())
    }

    /// Writes what a guest reads from each disk into a file of its serial.
    pub(crate) fn keep(&self, folder: &Path) -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        self.disks.iter().try_for_each(|(serial, file)| fs::write(folder.join(serial), fs::read(file)?))
    }
}

fn is_read_only(fd: &str) -> bool {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|digits| u32::from_str_radix(digits.trim(), 8).ok());
    flags.is_some_and(|flags| flags & 3 == 0)
}
