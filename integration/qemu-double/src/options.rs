//! The command line, checked as QEMU would.

use std::path::PathBuf;

use qemu_double::command_line;

use crate::cold::ColdDisks;
use crate::disks::Cold;

/// The options that matter here.
#[derive(Debug, Default)]
pub(crate) struct Options {
    pub(crate) qmp: i32,
    pub(crate) console: i32,
    /// Where the vsock device would be: the agent listens beside it.
    pub(crate) vsock: PathBuf,
    /// The guest is to be a protected one.
    pub(crate) confidential: bool,
    pub(crate) cold: Cold,
    pub(crate) disks: ColdDisks,
}

/// Errors have QEMU's wording.
pub(crate) fn parse(args: &[String]) -> Result<Options, String> {
    let mut options = Options::default();
    for (name, value) in command_line::split(args)? {
        let Some(value) = value else { continue };
        options.disks.option(&name, &value)?;
        let of = |key: &str| value.split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        let number = || of("fd").and_then(|n| n.parse().ok()).unwrap_or(-1);
        match (name.as_str(), of("id")) {
            ("-kernel" | "-initrd", _) if std::fs::File::open(&value).is_err() => {
                return Err(format!("could not load kernel '{value}'"));
            }
            ("-device", id) => {
                if let (true, Some(id)) = (value.starts_with("virtio-scsi-ccw,"), id) {
                    options.cold.controllers.push(id.to_owned());
                }
                if let Some(devno) = of("devno") {
                    if options.cold.devnos.iter().any(|used| used == devno) {
                        return Err(format!("-device {value}: Device {devno} already exists"));
                    }
                    options.cold.devnos.push(devno.to_owned());
                }
            }
            ("-machine", _) => options.confidential = of("confidential-guest-support").is_some(),
            ("-chardev", Some("qmp")) => options.qmp = number(),
            ("-chardev", Some("console")) => options.console = number(),
            ("-chardev", Some("vsock")) => options.vsock = of("path").unwrap_or_default().into(),
            _ => {}
        }
    }
    Ok(options)
}
