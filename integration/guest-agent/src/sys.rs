//! The unsafe code: terminal controls, and descriptors that are taken over or watched.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use tokio::io::unix::AsyncFd;

mod ioctl {
    #![allow(missing_docs)]
    nix::ioctl_write_ptr_bad!(set_size, nix::libc::TIOCSWINSZ, nix::libc::winsize);
    nix::ioctl_write_int_bad!(controlling, nix::libc::TIOCSCTTY);
}

/// Sets a terminal's size.
pub(crate) fn set_terminal_size(terminal: &impl AsRawFd, rows: u16, columns: u16) -> nix::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open as long as its owner is borrowed; `size` lives through the call.
    unsafe { ioctl::set_size(terminal.as_raw_fd(), &size) }.map(drop)
}

/// Makes the terminal on stdin the controlling one of this session.
pub(crate) fn take_terminal() -> nix::Result<()> {
    // SAFETY: a plain ioctl on stdin; a wrong descriptor is an error.
    unsafe { ioctl::controlling(0, 0) }.map(drop)
}

/// The descriptor that the parent left open for us; `None` when it is not open.
pub(crate) fn inherited(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: only borrowed for the check.
    let open = fd > 2
        && nix::fcntl::fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, nix::fcntl::FcntlArg::F_GETFD).is_ok();
    // SAFETY: the caller is a program of one thread that owns every descriptor above 2.
    open.then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor whose readiness can be awaited; it must not block.
pub(crate) fn awaitable(fd: OwnedFd) -> std::io::Result<AsyncFd<File>> {
    // SAFETY: the file owns its descriptor, which nothing replaces or closes before the file is dropped.
    Ok(unsafe { AsyncFd::register(File::from(fd)) }?)
}
