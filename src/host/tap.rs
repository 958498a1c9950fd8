//! Tap devices, non-persistent: gone when their last descriptor is closed.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;

use crate::error::{Context, Result};
use crate::host::sys;
use crate::ids::PodKey;

/// Prefix of our taps' names; no other link is ever removed.
const PREFIX: &str = "ks";

/// The name of a pod's tap, at most 15 bytes.
pub(crate) fn name(key: &PodKey, index: usize) -> String {
    format!("{PREFIX}{}-{index}", key.short())
}

/// Whether `name` is that of a tap of ours.
pub(crate) fn is_ours(name: &str) -> bool {
    name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).is_some_and(|(key, index)| {
        key.len() == 8 && key.bytes().all(|b| b.is_ascii_hexdigit()) && index.parse::<u16>().is_ok()
    })
}

/// Creates a tap in the calling thread's network namespace.
pub(crate) fn make(name: &str) -> Result<OwnedFd> {
    let path = "/dev/net/tun";
    let tun: File = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("open {path} (module tun)"))?;
    sys::make_tap(&tun, name).with_context(|| format!("make tap {name}"))?;
    Ok(tun.into())
}
