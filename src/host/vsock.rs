//! The kernel's vhost-vsock device: a context id that no other guest has.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;

use crate::error::{Context, Error, Result};
use crate::host::sys;
use crate::limits;

/// Opens /dev/vhost-vsock and claims a free guest context id on it (above 2, below 2^32 - 1).
pub(crate) fn claim() -> Result<(File, u32)> {
    let path = Path::new("/dev/vhost-vsock");
    let device = OpenOptions::new().read(true).write(true).open(path).with_context(|| {
        format!("open {} (load the module vhost_vsock, or set vsock.device = \"vhost-user\")", path.display())
    })?;
    for _ in 0..limits::host::VSOCK_CID_TRIES {
        let random = RandomState::new().build_hasher().finish();
        let cid = u32::try_from(random % 0xffff_fff0).unwrap_or(0).saturating_add(3);
        match sys::vhost_vsock_set_cid(&device, cid.into()) {
            Ok(()) => return Ok((device, cid)),
            Err(e) if e.raw_os_error() == Some(nix::libc::EADDRINUSE) => {}
            Err(e) => return Err(e).with_context(|| format!("claim guest CID {cid}")),
        }
    }
    Err(Error::unavailable(format!(
        "claim guest CID: {} random ones are all in use",
        limits::host::VSOCK_CID_TRIES
    )))
}
