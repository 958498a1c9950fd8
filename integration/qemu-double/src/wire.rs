//! QMP's transport: a descriptor passed by number, JSON by lines, descriptors beside the bytes.

use std::io::{IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

/// QEMU's first line.
pub fn greeting() -> Value {
    json!({"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}}, "capabilities": []}})
}

/// The answer to `query-migrate` of a machine whose guest is protected.
pub fn not_migratable() -> Value {
    json!({"blocked-reasons": ["protected VMs are currently not migratable."]})
}

/// The descriptor with this number; to be taken once. What QEMU starts does not get it.
///
/// Panics if no descriptor has this number.
#[allow(unsafe_code, clippy::expect_used)]
pub fn take(fd: RawFd) -> UnixStream {
    // SAFETY: the number comes from the command line; nothing else in this process uses it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
        .expect("descriptor");
    UnixStream::from(fd)
}

/// Some bytes with the descriptors beside them; nothing once the other side has closed.
#[allow(unsafe_code)]
pub fn receive(stream: &UnixStream) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut bytes = vec![0; 65536];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut fds = Vec::new();
    let count = {
        let mut data = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(stream.as_raw_fd(), &mut data, Some(&mut space), flags) {
            Ok(message) => {
                for control in message.cmsgs().into_iter().flatten() {
                    if let ControlMessageOwned::ScmRights(received) = control {
                        // SAFETY: descriptors just received have no other owner.
                        fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                message.bytes
            }
            Err(_) => 0,
        }
    };
    bytes.truncate(count);
    (bytes, fds)
}

/// One line.
pub fn say(out: &Mutex<UnixStream>, value: &Value) {
    let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
    out.write_all(format!("{value}\r\n").as_bytes()).ok();
}
