//! The `delete` command: cleans up after a dead shim. It reads the bundle and the journal only, can be repeated,
//! and never touches a running pod because of one of its containers.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Instant, SystemTime};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message, MessageField};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::error::{Context, Error, Result};
use crate::host::lock::{PodLock, kill_holder};
use crate::ids::PodKey;
use crate::limits;
use crate::oci::role::Role;
use crate::pod::{cleanup, dir};
use crate::shim::convert::timestamp;
use crate::shim::flags::Flags;
use crate::shim::{poll_pause, role_of};

/// Removes what is left of a container or, with a sandbox's id, of the whole pod.
pub(crate) fn delete(flags: &Flags) -> Result<Vec<u8>> {
    let (namespace, id) = flags.ids()?;
    let bundle = flags.bundle_dir()?;
    // Without a readable bundle we take the id for a sandbox's: no other pod can have this key.
    let role = role_of(&bundle, &id).unwrap_or(Role::Single);
    if !matches!(role, Role::Member { .. }) {
        let key = PodKey::new(&flags.address, &namespace, &id.to_sandbox());
        remove_pod(&dir::of(&dir::run_dir(), &key)).with_context(|| format!("delete sandbox {id}"))?;
    }
    unmount_rootfs(&bundle)?;
    let response = DeleteResponse {
        exit_status: crate::pod::state::KILLED,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..Default::default()
    };
    response.write_to_bytes().context("encode the response")
}

fn remove_pod(pod_dir: &Path) -> Result<()> {
    match fs::symlink_metadata(pod_dir) {
        Ok(meta) if meta.is_dir() => {}
        // A link in its place is not followed: `start` made none.
        Ok(_) => {
            return Err(Error::precondition(format!("{}: is no directory: remove it", pod_dir.display())));
        }
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("read {}", pod_dir.display())),
    }
    let Some(lock) = lock_dead_pod(&pod_dir.join(dir::LOCK))? else { return Ok(()) };
    lock.unsign();
    cleanup::run(pod_dir)?;
    match fs::remove_dir_all(pod_dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", pod_dir.display()))
        }
        _ => Ok(()),
    }
}

/// Waits for the lock, which a shim holds as long as it lives; one that does not exit in time is killed.
/// None: another process has removed the pod meanwhile.
fn lock_dead_pod(path: &Path) -> Result<Option<PodLock>> {
    let began = Instant::now();
    let mut killed = false;
    loop {
        match PodLock::try_take(path) {
            Ok(Some(lock)) => return Ok(Some(lock)),
            Ok(None) => {}
            Err(_) if fs::symlink_metadata(path).is_err() => return Ok(None),
            Err(e) => return Err(e),
        }
        if began.elapsed() > limits::shim::DELETE_GRACE {
            killed = kill_holder(path)?;
        }
        if began.elapsed() > limits::shim::DELETE_GRACE + limits::host::CLEANUP_STEP {
            let by = if killed {
                "its shim, which does not exit after SIGKILL"
            } else {
                "another start or delete"
            };
            return Err(Error::deadline(format!("lock {}: held by {by}", path.display())));
        }
        poll_pause();
    }
}

/// The shim that mounted the bundle's rootfs may have died before it could unmount it.
fn unmount_rootfs(bundle: &Path) -> Result<()> {
    let rootfs = bundle.join("rootfs");
    match umount2(&rootfs, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // It is no mount, or does not exist.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(e) => Err(std::io::Error::from(e)).with_context(|| format!("unmount {}", rootfs.display())),
    }
}
