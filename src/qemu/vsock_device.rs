//! The vhost-user vsock program, for hosts without a vhost-vsock driver (emulation).
//!
//! QEMU connects to the device socket; the agent is reached through the agent socket by `CONNECT <port>`. Both are
//! in a folder that the program's user owns, in the pod's directory, which that user cannot enter: program and QEMU
//! get the folder as a descriptor.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use nix::libc;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep};

use crate::error::{Context, Error, Result};
use crate::host::cgroup;
use crate::host::confine::{Confinement, User};
use crate::host::files::private_dir;
use crate::host::process::{Child, FdTable, Launch};
use crate::limits;
use crate::plan::cpus::CpuList;
use crate::qemu::opt::Opt;

/// The guest's context id: it is private to this device, so any value will do.
const CID: &str = "3";

/// With the default, a guest's write of more than some 32,000 bytes stalls the connection for ever.
const TX_BUFFER: &str = "32768";

/// The names of the sockets in the folder.
pub(crate) const DEVICE: &str = "device";
pub(crate) const AGENT: &str = "agent";

/// Makes the folder of the sockets.
pub(crate) fn make_folder(folder: &Path, user: Option<User>) -> Result<()> {
    private_dir(folder)?;
    let Some(User { uid, gid }) = user else { return Ok(()) };
    chown(folder, Some(uid), Some(gid)).with_context(|| format!("give {} to uid {uid}", folder.display()))
}

/// Gives a child the folder; returns where the child finds it.
pub(crate) fn give_folder(folder: &Path, fds: &mut FdTable) -> Result<PathBuf> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(folder);
    let opened = opened.with_context(|| format!("open {}", folder.display()))?;
    Ok(fds.give(opened.into()).path())
}

/// Starts the program in the cgroup `leaf` and waits until QEMU can connect to it.
pub(crate) async fn start(
    program: PathBuf,
    folder: &Path,
    leaf: &Path,
    cpus: CpuList,
    user: Option<User>,
) -> Result<Child> {
    let mut fds = FdTable::default();
    let given = give_folder(folder, &mut fds)?;
    let vm = Opt::new("")
        .set("guest-cid", CID)
        .set("socket", given.join(DEVICE))
        .set("uds-path", given.join(AGENT))
        .set("tx-buffer-size", TX_BUFFER)
        .into_arg();
    let (stderr, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make a pipe")?;
    let mut stderr = pipe::Receiver::from_owned_fd(stderr).context("watch the vsock device")?;
    let name = program.display().to_string();
    let child = Launch {
        program,
        args: vec!["--vm".into(), vm],
        fds,
        stderr: Some(theirs),
        cgroup: Some(cgroup::enter(leaf)?),
        cpus,
        confine: user.map(Confinement::of),
        ..Launch::default()
    }
    .spawn()?;
    let device = folder.join(DEVICE);
    let until = Instant::now() + limits::qemu::VSOCK_DEVICE_READY;
    loop {
        if std::fs::symlink_metadata(&device).is_ok_and(|m| m.file_type().is_socket()) {
            return Ok(child);
        }
        tokio::select! {
            ended = child.wait() => {
                let mut text = [0_u8; limits::qemu::VSOCK_DEVICE_OUTPUT_BYTES];
                let count = stderr.read(&mut text).await.unwrap_or(0);
                let text = String::from_utf8_lossy(text.get(..count).unwrap_or_default()).into_owned();
                return Err(Error::unavailable(format!("vsock device {name} ended with {}: {text}", ended?)));
            }
            () = sleep(limits::qemu::VSOCK_DEVICE_PAUSE) => {}
        }
        if Instant::now() > until {
            return Err(Error::deadline(format!(
                "vsock device {name}: did not create its socket {}",
                device.display()
            )));
        }
    }
}
