//! Where the agent runs: in a guest it owns everything; on the host it emulates a guest below a folder.

use std::path::{Path, PathBuf};

use crate::check::GUEST_DIR;
use crate::crun::Crun;
use crate::device::Devices;
use crate::plain::Plain;
use crate::storage;

#[derive(Debug)]
pub(crate) enum Environment {
    Guest { crun: Crun, devices: Devices },
    Host { plain: Plain, devices: Devices },
}

impl Environment {
    pub(crate) fn is_guest(&self) -> bool {
        matches!(self, Self::Guest { .. })
    }

    /// The file behind a guest's path.
    pub(crate) fn path(&self, guest: &str) -> PathBuf {
        match self {
            Self::Guest { .. } => guest.into(),
            Self::Host { plain, .. } => plain.path(guest),
        }
    }

    /// The file behind the source of a bind mount: on the host only the protocol's own paths are emulated.
    pub(crate) fn source(&self, guest: &str) -> PathBuf {
        if guest.starts_with(GUEST_DIR) { self.path(guest) } else { guest.into() }
    }

    pub(crate) fn devices(&self) -> &Devices {
        match self {
            Self::Guest { devices, .. } | Self::Host { devices, .. } => devices,
        }
    }

    pub(crate) fn mount(
        &self,
        source: &Path,
        target: &Path,
        fstype: &str,
        options: &[String],
    ) -> nix::Result<()> {
        match self {
            Self::Guest { .. } => storage::mount_with(source, target, fstype, options),
            Self::Host { .. } => Ok(()),
        }
    }

    pub(crate) fn unmount(&self, guest: &str) -> nix::Result<()> {
        match self {
            Self::Guest { .. } => storage::unmount(Path::new(guest)),
            Self::Host { .. } => Ok(()),
        }
    }
}
