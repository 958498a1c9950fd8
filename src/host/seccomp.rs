//! The system calls that no helper of a pod (QEMU, the vsock program, mkfs) has a reason to make, and that would
//! reach more of the kernel than it needs. They fail with EPERM; QEMU's own filter (`-sandbox on`) comes on top.
//!
//! Source: seccomp(2), and the layouts of linux/seccomp.h, linux/audit.h and linux/filter.h.

use nix::libc::{self, sock_filter};

/// What is denied whatever its arguments are.
const DENIED: [libc::c_long; 44] = [
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    // The memory, the descriptors and the keys of others.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_open_by_handle_at,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Large parts of the kernel that nobody here uses.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // What belongs to the machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
];

/// `AUDIT_ARCH_S390X`.
#[cfg(target_arch = "s390x")]
const ARCHITECTURE: u32 = 0x8000_0016;
/// `AUDIT_ARCH_X86_64`.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;

/// Numbers from here on are of x86's third architecture (x32), which has the same calls under other numbers.
const OTHER_NUMBERS: u32 = 0x4000_0000;

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// The lower half of clone(2)'s flags: its second argument on s390x, its first one elsewhere.
const CLONE_FLAGS: u32 =
    16 + if cfg!(target_arch = "s390x") { 8 } else { 0 } + if cfg!(target_endian = "big") { 4 } else { 0 };

// Instructions: `BPF_LD | BPF_W | BPF_ABS`, `BPF_JMP | BPF_K` with JEQ, JGE and JSET, `BPF_RET | BPF_K`.
const LOAD: u16 = 0x20;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

const ALLOW: sock_filter = step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
const DENY: sock_filter = step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | number(libc::EPERM as libc::c_long));
/// The C library takes clone(2) instead, whose flags a filter can read.
const UNKNOWN: sock_filter =
    step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | number(libc::ENOSYS as libc::c_long));

const LENGTH: usize = 14 + 2 * DENIED.len();

/// The filter, for `SECCOMP_MODE_FILTER`.
pub(super) static FILTER: [sock_filter; LENGTH] = filter();

const fn step(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Of system calls and errors, which are small.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
const fn number(of: libc::c_long) -> u32 {
    of as u32
}

const fn filter() -> [sock_filter; LENGTH] {
    let mut steps = [ALLOW; LENGTH];
    let head = [
        step(LOAD, 0, 0, ARCH),
        step(IF_EQUAL, 1, 0, ARCHITECTURE),
        DENY,
        step(LOAD, 0, 0, NUMBER),
        step(IF_AT_LEAST, 0, 1, OTHER_NUMBERS),
        DENY,
        step(IF_EQUAL, 0, 1, number(libc::SYS_clone3)),
        UNKNOWN,
        step(IF_EQUAL, 0, 4, number(libc::SYS_clone)),
        step(LOAD, 0, 0, CLONE_FLAGS),
        step(IF_ANY_BIT, 0, 1, number(libc::CLONE_NEWUSER as libc::c_long)),
        DENY,
        ALLOW,
    ];
    let mut at = 0;
    while at < head.len() {
        steps[at] = head[at];
        at += 1;
    }
    let mut nth = 0;
    while nth < DENIED.len() {
        steps[at] = step(IF_EQUAL, 0, 1, number(DENIED[nth]));
        steps[at + 1] = DENY;
        at += 2;
        nth += 1;
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with a call.
    fn verdict(arch: u32, call: u32, flags: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = FILTER[at];
            let jump = |holds: bool| usize::from(if holds { jt } else { jf });
            at += 1 + match code {
                RETURN => return k,
                LOAD => {
                    loaded = match k {
                        ARCH => arch,
                        NUMBER => call,
                        CLONE_FLAGS => flags,
                        _ => panic!("offset {k}"),
                    };
                    0
                }
                IF_EQUAL => jump(loaded == k),
                IF_AT_LEAST => jump(loaded >= k),
                IF_ANY_BIT => jump(loaded & k != 0),
                _ => panic!("instruction {code}"),
            };
        }
    }

    #[test]
    fn what_helpers_do_is_allowed_and_all_on_the_list_is_denied() {
        let denied = libc::SECCOMP_RET_ERRNO | number(libc::EPERM.into());
        let own = |call| verdict(ARCHITECTURE, number(call), u32::MAX);
        for call in [libc::SYS_read, libc::SYS_execve, libc::SYS_openat, libc::SYS_ioctl, libc::SYS_futex] {
            assert_eq!(own(call), libc::SECCOMP_RET_ALLOW, "{call}");
            assert_eq!(verdict(ARCHITECTURE ^ 1, number(call), 0), denied, "{call} of another architecture");
            assert_eq!(verdict(ARCHITECTURE, number(call) | OTHER_NUMBERS, 0), denied, "{call}");
        }
        for call in DENIED {
            assert_eq!(own(call), denied, "{call}");
        }
        let clone = |flags: i32| verdict(ARCHITECTURE, number(libc::SYS_clone), number(flags.into()));
        assert_eq!(clone(libc::CLONE_VM | libc::CLONE_THREAD), libc::SECCOMP_RET_ALLOW);
        assert_eq!(clone(libc::CLONE_NEWUSER | libc::CLONE_NEWNS), denied);
        assert_eq!(own(libc::SYS_clone3), libc::SECCOMP_RET_ERRNO | number(libc::ENOSYS.into()));
    }
}
