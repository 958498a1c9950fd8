//! System calls that no crate wraps safely: ioctls, inherited descriptors, readiness.
//!
//! All `unsafe` of the program is here, in `bpf`, `child_setup` and `confine`, each block with its reason.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The result of a system call.
pub(super) fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Watches an owned descriptor for readiness.
pub(crate) fn watch<T: AsRawFd + Into<OwnedFd>>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: `T` owns its descriptor, which stays open and the same until the watch drops it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}

/// Takes over a descriptor number that the parent promised to this process at exec.
pub(crate) fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl fails unless the number is open; the caller asks once per number.
    unsafe {
        check(libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC).into())?;
        Ok(OwnedFd::from_raw_fd(number))
    }
}

/// `struct ifreq` as TUNSETIFF reads it.
#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Makes an opened /dev/net/tun the tap device `name` (non-persistent, with virtio headers).
pub(crate) fn make_tap(tun: &File, name: &str) -> io::Result<()> {
    let mut request = IfReq { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.name.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the request is an initialised structure of the layout the kernel expects.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &request) }.into())
}

/// Claims `cid` for an opened /dev/vhost-vsock; EADDRINUSE when another guest has it.
pub(crate) fn vhost_vsock_set_cid(device: &File, cid: u64) -> io::Result<()> {
    // _IOW(VHOST_VIRTIO 0xaf, 0x60, __u64), include/uapi/linux/vhost.h
    const VHOST_VSOCK_SET_GUEST_CID: libc::Ioctl = 0x4008_af60_u32 as libc::Ioctl;
    // SAFETY: the kernel reads eight bytes from a live u64.
    check(unsafe { libc::ioctl(device.as_raw_fd(), VHOST_VSOCK_SET_GUEST_CID, &cid) }.into())
}

/// Asks an opened /dev/kvm whether it runs protected guests.
pub(crate) fn kvm_has_protected_guests(device: &File) -> io::Result<bool> {
    // _IO(KVMIO 0xae, 0x03) and the capability, include/uapi/linux/kvm.h
    const KVM_CHECK_EXTENSION: libc::Ioctl = 0xae03;
    const KVM_CAP_S390_PROTECTED: libc::c_ulong = 180;
    // SAFETY: the argument is an integer; nothing is read or written through it.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), KVM_CHECK_EXTENSION, KVM_CAP_S390_PROTECTED) };
    check(answer.into())?;
    Ok(answer > 0)
}
