//! Every unsafe block of the program, each with its reason.
//!
//! What runs between fork and exec (`ChildSetup::apply`) allocates nothing and takes no lock.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::sched::CpuSet;
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What a child does to itself before it becomes the new program.
#[derive(Debug)]
pub(crate) struct ChildSetup {
    /// Descriptors that become 3, 4, 5 … in this order; everything else above 2 is closed at exec.
    pub(crate) fds: Vec<OwnedFd>,
    /// Opened `cgroup.procs` files: the child enters each before the program starts.
    pub(crate) cgroup: Vec<File>,
    /// The CPUs that the child runs on, as far as it may.
    pub(crate) cpus: Option<CpuSet>,
    /// SIGKILL when the spawning thread ends. A belt: the cgroup is what is relied on.
    pub(crate) die_with_parent: bool,
    /// A read-only mount made in a mount namespace of the child's own.
    pub(crate) mount: Option<PrivateMount>,
}

/// A mount that exists only for the child: it disappears with it.
#[derive(Debug)]
pub(crate) struct PrivateMount {
    pub(crate) fstype: CString,
    pub(crate) source: CString,
    pub(crate) target: CString,
    pub(crate) options: CString,
}

impl ChildSetup {
    /// Makes `command` apply this set-up in the child.
    pub(crate) fn attach(self, command: &mut Command) {
        let mut scratch: Vec<RawFd> = vec![-1; self.fds.len()];
        // SAFETY: the closure makes system calls only; all memory was allocated before the fork.
        unsafe { command.pre_exec(move || self.apply(&mut scratch)) };
    }

    fn apply(&self, scratch: &mut [RawFd]) -> io::Result<()> {
        for procs in &self.cgroup {
            // SAFETY: writes one byte of a constant to an open descriptor.
            check(unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) } as libc::c_long)?;
        }
        if let Some(cpus) = &self.cpus {
            // What the kernel does not give is told by the parent, which looks at what came of it.
            nix::sched::sched_setaffinity(Pid::from_raw(0), cpus).ok();
        }
        // SAFETY: plain system calls on this process alone; pointers are to constants or to memory
        // that outlives the call.
        unsafe {
            libc::setsid();
            if self.die_with_parent {
                check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
            }
            let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            check(libc::setrlimit(libc::RLIMIT_CORE, &no_core).into())?;
            for signal in 1..32 {
                if signal != libc::SIGKILL && signal != libc::SIGSTOP {
                    libc::signal(signal, libc::SIG_DFL);
                }
            }
        }
        if let Some(mount) = &self.mount {
            mount.apply()?;
        }
        self.place_fds(scratch)
    }

    /// Moves the descriptors out of each other's way first, then to 3, 4, 5 …; the rest of the
    /// table closes itself at exec.
    fn place_fds(&self, scratch: &mut [RawFd]) -> io::Result<()> {
        let first_free = libc::c_int::try_from(self.fds.len()).unwrap_or(libc::c_int::MAX - 64) + 64;
        // SAFETY: plain descriptor calls.
        unsafe {
            for (fd, high) in self.fds.iter().zip(scratch.iter_mut()) {
                *high = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD, first_free);
                check((*high).into())?;
            }
            check(libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC))?;
            for (number, high) in (3..).zip(scratch.iter()) {
                check(libc::dup2(*high, number).into())?;
            }
        }
        Ok(())
    }
}

impl PrivateMount {
    fn apply(&self) -> io::Result<()> {
        let none: *const libc::c_char = std::ptr::null();
        // SAFETY: system calls with NUL-terminated strings that outlive them.
        unsafe {
            check(libc::unshare(libc::CLONE_NEWNS).into())?;
            let private = libc::MS_REC | libc::MS_PRIVATE;
            check(libc::mount(none, c"/".as_ptr(), none, private, std::ptr::null()).into())?;
            let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            check(
                libc::mount(
                    self.source.as_ptr(),
                    self.target.as_ptr(),
                    self.fstype.as_ptr(),
                    flags,
                    self.options.as_ptr().cast(),
                )
                .into(),
            )
        }
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A descriptor of the process `pid`, readable when it has ended. `pid` must be an unreaped child.
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: a system call with integers; the result is a new descriptor that nobody else owns.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        check(fd)?;
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Watches an owned descriptor for readiness.
pub(crate) fn watch<T: AsRawFd + Into<OwnedFd>>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: `T` owns its descriptor, which stays open and the same until the watch drops it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}

/// Sends a signal to the process behind a pidfd.
pub(crate) fn pidfd_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    let none: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a system call on an open descriptor, with no siginfo.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) })
}

/// Gives all threads of an unreaped child a core scheduling cookie of their own; later ones inherit it.
pub(crate) fn core_scheduling(pid: u32) -> io::Result<()> {
    let whole = libc::PR_SCHED_CORE_SCOPE_THREAD_GROUP;
    // SAFETY: a system call with integers; nothing is read or written through them.
    check(unsafe { libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_CREATE, pid, whole, 0) }.into())
}

/// Takes over a descriptor number that the parent promised to this process at exec.
pub(crate) fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl tells whether the number is open; the caller asks once per number.
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

// Commands and kinds of bpf(2) (include/uapi/linux/bpf.h).
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;

/// `struct bpf_insn` of include/uapi/linux/bpf.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    /// Destination and source, half a byte each, in the order of the machine's bit fields.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

/// bpf(2). `attributes` begin as the command's part of `union bpf_attr` does.
///
/// # Safety
///
/// Addresses among the attributes are of memory that lives and is as large as the command expects.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads the attributes' own size; for what they point to the caller answers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    check(result).map(|()| result)
}

/// The new descriptor that a command of bpf(2) answered with; it closes itself at exec.
fn bpf_fd(answer: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(answer).map_err(io::Error::other)?;
    // SAFETY: the caller has it from the kernel, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A map (`BPF_MAP_TYPE_SOCKMAP`) that holds one listening socket at index 0, as long as that is open.
pub(crate) fn bpf_socket_map(socket: &impl AsRawFd) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Create([u32; 5]);
    #[repr(C)]
    struct Update {
        map: RawFd,
        padding: u32,
        key: *const u32,
        value: *const RawFd,
        flags: u64,
    }
    // SAFETY: integers only: type, sizes of key and value, entries, flags.
    let map = bpf_fd(unsafe { bpf(BPF_MAP_CREATE, &Create([BPF_MAP_TYPE_SOCKMAP, 4, 4, 1, 0])) }?)?;
    let (key, value) = (0, socket.as_raw_fd());
    let update =
        Update { map: map.as_raw_fd(), padding: 0, key: &raw const key, value: &raw const value, flags: 0 };
    // SAFETY: key and value are live and have the sizes that the map was made with.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &update) }?;
    Ok(map)
}

/// Loads a program that chooses the socket of a connection (`BPF_PROG_TYPE_SK_LOOKUP`).
pub(crate) fn bpf_socket_lookup(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: *const Instruction,
        license: *const libc::c_char,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach: u32,
    }
    let load = Load {
        kind: BPF_PROG_TYPE_SK_LOOKUP,
        count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr(),
        license: c"Apache-2.0".as_ptr(),
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name: *b"kata_se_forward\0",
        interface: 0,
        attach: BPF_SK_LOOKUP,
    };
    // SAFETY: instructions and licence live; the kernel reads as many as were counted, and to the NUL.
    bpf_fd(unsafe { bpf(BPF_PROG_LOAD, &load) }?)
}

/// Attaches such a program to a network namespace until the result is closed.
pub(crate) fn bpf_link(program: &OwnedFd, netns: &File) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Link {
        program: RawFd,
        target: RawFd,
        attach: u32,
        flags: u32,
    }
    let link =
        Link { program: program.as_raw_fd(), target: netns.as_raw_fd(), attach: BPF_SK_LOOKUP, flags: 0 };
    // SAFETY: integers only.
    bpf_fd(unsafe { bpf(BPF_LINK_CREATE, &link) }?)
}

/// Detaches a mount; "not a mount" and "not there" are success.
pub(crate) fn unmount(target: &CStr) -> io::Result<()> {
    // SAFETY: a NUL-terminated path.
    let result = unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) };
    match check(result.into()) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => Ok(()),
        result => result,
    }
}
