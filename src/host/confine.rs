//! What the shim gives up when it starts, and what a helper of a pod (QEMU, the vsock program, mkfs) gives up
//! before it starts: root, capabilities, the way back to them, the host's network, and system calls of no use to it.
//!
//! Source: capabilities(7), prctl(2), credentials(7). In the child between fork and exec nothing may allocate.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::libc;
use nix::sched::{CloneFlags, unshare};

use crate::error::{Context, Error, Result};
use crate::host::files::read_bounded;
use crate::host::seccomp;
use crate::host::sys::check;
use crate::limits;

/// The user and the group that a helper runs as; it has no other groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// How a helper is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    pub user: User,
    /// Keeps the capability to read what others own (CAP_DAC_READ_SEARCH): for mkfs, which packs files of any owner.
    pub reads_all: bool,
}

/// `struct __user_cap_header_struct` and twice `struct __user_cap_data_struct` (include/uapi/linux/capability.h).
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
const CAP_DAC_READ_SEARCH: u32 = 2;

/// The capabilities that the shim keeps, as a mask. What cannot be undone on a node is not among them: loading
/// modules, raw I/O, rebooting, the clock, device files, security labels, the kernel's log, audit.
const OF_THE_SHIM: u32 = {
    let (chown, dac_override, fowner, kill) = (1 << 0, 1 << 1, 1 << 3, 1 << 5); // files and processes of pods
    let (setgid, setuid, setpcap) = (1 << 6, 1 << 7, 1 << 8); // helpers get a user without rights
    let net_admin = 1 << 12; // taps, mirroring
    let (sys_ptrace, sys_admin) = (1 << 19, 1 << 21); // namespaces, mounts of layers, BPF
    let (sys_nice, sys_resource) = (1 << 23, 1 << 24); // CPUs of a VM, limits, OOM scores
    let files = chown | dac_override | 1 << CAP_DAC_READ_SEARCH | fowner | kill;
    files | setgid | setuid | setpcap | net_admin | sys_ptrace | sys_admin | sys_nice | sys_resource
};

/// More than any kernel has; the first that does not exist ends the loop.
const CAPABILITIES: u32 = 64;

impl Confinement {
    /// Of a helper without any capability.
    pub(crate) fn of(user: User) -> Self {
        Self { user, reads_all: false }
    }

    /// Takes effect in this process, which must have one thread and be about to exec.
    pub(super) fn apply(self) -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)?;
        let kept = if self.reads_all { 1_u32 << CAP_DAC_READ_SEARCH } else { 0 };
        bound(kept)?;
        if self.reads_all {
            prctl(libc::PR_SET_KEEPCAPS, 1, 0)?;
        }
        let User { uid, gid } = self.user;
        // SAFETY: system calls on numbers; one thread, so that libc need not tell others.
        unsafe {
            check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
            check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
            check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        }
        set_capabilities(kept)?;
        if self.reads_all {
            prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong,
                CAP_DAC_READ_SEARCH.into(),
            )?;
        }
        prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)?;
        let length = libc::c_ushort::try_from(seccomp::FILTER.len()).unwrap_or(0); // the kernel refuses 0
        let filter = libc::sock_fprog { len: length, filter: seccomp::FILTER.as_ptr().cast_mut() };
        let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
        prctl(libc::PR_SET_SECCOMP, mode, (&raw const filter) as libc::c_ulong)
    }
}

/// The shim gives up what it does not need, for itself and for all that it starts. To be called while the process
/// has one thread; a process without capabilities stays as it is.
///
/// # Errors
///
/// The kernel's: it lets nobody give up less than everything without CAP_SETPCAP.
pub(crate) fn confine_the_shim() -> Result<()> {
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: both are live structures of the layout that this version has.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })
        .context("read the shim's capabilities")?;
    let kept = data[0].permitted & OF_THE_SHIM;
    if data.iter().any(|d| d.permitted != 0) {
        bound(OF_THE_SHIM).and_then(|()| set_capabilities(kept)).context("give up capabilities")?;
    }
    Ok(())
}

/// Drops all capabilities but `kept` from the bounding set: no program that is started gets them back.
fn bound(kept: u32) -> io::Result<()> {
    for capability in (0..CAPABILITIES).filter(|c| kept.checked_shr(*c).unwrap_or(0) & 1 == 0) {
        match prctl(libc::PR_CAPBSET_DROP, capability.into(), 0) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
            dropped => dropped?,
        }
    }
    Ok(())
}

/// Sets all three sets to `mask`, of the capabilities below 32.
fn set_capabilities(mask: u32) -> io::Result<()> {
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let low = CapData { effective: mask, permitted: mask, inheritable: mask };
    let data = [low, CapData::default()];
    // SAFETY: both are live structures of the layout that this version has.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })
}

fn prctl(option: libc::c_int, second: libc::c_ulong, third: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: these options take numbers, and a live filter, which the kernel copies.
    check(unsafe { libc::prctl(option, second, third, zero, zero) }.into())
}

/// The user that the configuration names (`qemu.user`): a name in the host's user list, or UID:GID. None: root.
pub(crate) fn user(name: &str) -> Result<Option<User>> {
    user_in(Path::new("/etc/passwd"), name)
}

fn user_in(list: &Path, name: &str) -> Result<Option<User>> {
    let user = match name.split_once(':') {
        Some((uid, gid)) => match (uid.parse(), gid.parse()) {
            (Ok(uid), Ok(gid)) => User { uid, gid },
            _ => {
                return Err(Error::invalid(format!(
                    "qemu.user = {name:?}: neither a user's name nor UID:GID"
                )));
            }
        },
        None if name == "root" => return Ok(None),
        None => listed(list, name)?,
    };
    match (user.uid, user.gid) {
        (0, 0) => Ok(None),
        (0, _) | (_, 0) | (u32::MAX, _) | (_, u32::MAX) => Err(Error::invalid(format!(
            "qemu.user = {name:?}: uid {} and gid {} are not those of a user without rights",
            user.uid, user.gid
        ))),
        _ => Ok(Some(user)),
    }
}

/// From a file of the format of passwd(5).
fn listed(list: &Path, name: &str) -> Result<User> {
    let text = read_bounded(list, limits::host::USER_LIST_BYTES)?;
    let text = String::from_utf8_lossy(&text);
    let user = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next() == Some(name) && !name.is_empty();
        let (uid, gid) = (fields.nth(1)?, fields.next()?);
        found.then(|| Some(User { uid: uid.parse().ok()?, gid: gid.parse().ok()? }))?
    });
    user.ok_or_else(|| {
        Error::precondition(format!(
            "qemu.user = {name:?}: {} has no such user: create it (useradd --system --gid kvm --no-create-home \
             --shell /usr/sbin/nologin {name}), or name another",
            list.display()
        ))
    })
}

impl User {
    /// Whether the mode of a file gives this user all `wanted` rights: 4 to read, 6 to read and write.
    pub(crate) fn may(self, meta: &Metadata, wanted: u32) -> bool {
        let shift = match () {
            () if meta.uid() == self.uid => 6,
            () if meta.gid() == self.gid => 3,
            () => 0,
        };
        (meta.mode() >> shift) & wanted == wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::process::{Ended, Launch};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_user_is_a_listed_name_or_two_numbers() {
        let dir = tempfile::tempdir().expect("dir");
        let list = dir.path().join("passwd");
        std::fs::write(&list, "root:x:0:0::/:\nbad\nkata-se:x:990:36::/:/x\nhalf:x:1:0::/:/x\n")
            .expect("write");
        let user = |name: &str| user_in(&list, name);
        assert_eq!(user("kata-se"), Ok(Some(User { uid: 990, gid: 36 })));
        assert_eq!(user("7:8"), Ok(Some(User { uid: 7, gid: 8 })));
        assert_eq!((user("root"), user("0:0")), (Ok(None), Ok(None)));
        for (name, wanted) in [
            ("nobody", "has no such user: create it (useradd --system --gid kvm"),
            ("", "has no such user"),
            ("bad", "has no such user"),
            ("half", "uid 1 and gid 0 are not those of a user without rights"),
            ("7:x", "neither a user's name nor UID:GID"),
            ("4294967295:7", "are not those of a user"),
        ] {
            let e = user(name).expect_err(name).to_string();
            assert!(e.contains(wanted), "{name}: {e}");
        }
    }

    #[test]
    fn the_mode_of_a_file_says_what_a_user_may() {
        use std::os::unix::fs::chown;
        let file = tempfile::NamedTempFile::new().expect("file");
        chown(file.path(), Some(7), Some(8)).expect("chown");
        let user = |uid, gid| User { uid, gid };
        for (mode, wanted, allowed) in [
            (0o600, 6, [true, false, false]),
            (0o640, 4, [true, true, false]),
            (0o664, 6, [true, true, false]),
            (0o604, 4, [true, false, true]),
        ] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("chmod");
            let meta = file.as_file().metadata().expect("metadata");
            let may = [user(7, 9), user(9, 8), user(9, 9)].map(|user| user.may(&meta, wanted));
            assert_eq!(may, allowed, "{mode:o}");
        }
    }

    /// Not under an emulator of user programs.
    fn has_seccomp() -> bool {
        prctl(libc::PR_GET_SECCOMP, 0, 0).is_ok()
    }

    #[tokio::test]
    async fn a_confined_child_has_no_rights_and_no_way_to_get_some() {
        if !has_seccomp() {
            return;
        }
        let status = |reads_all: bool| {
            let user = User { uid: 64055, gid: 64056 };
            let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe");
            let launch = Launch {
                program: "/bin/cat".into(),
                args: vec!["/proc/self/status".into(), "/proc/net/dev".into(), "/proc/self/fdinfo/1".into()],
                stdout: Some(write),
                confine: Some(Confinement { user, reads_all }),
                ..Launch::default()
            };
            (launch.spawn().expect("spawn"), std::fs::File::from(read))
        };
        for (reads_all, capabilities) in [(false, "0000000000000000"), (true, "0000000000000004")] {
            let (child, read) = status(reads_all);
            let text = std::io::read_to_string(read).expect("read");
            assert_eq!(child.wait().await, Ok(Ended::Code(0)));
            for line in [
                "Uid:\t64055\t64055\t64055\t64055",
                "Gid:\t64056\t64056\t64056\t64056",
                "Groups:\t ",
                "NoNewPrivs:\t1",
                "Seccomp:\t2",
            ] {
                assert!(text.lines().any(|l| l == line), "{line}: {text}");
            }
            for set in ["Inh", "Prm", "Eff", "Bnd", "Amb"] {
                let line = format!("Cap{set}:\t{capabilities}");
                assert!(text.lines().any(|l| l == line), "{line}: {text}");
            }
            let links = text.lines().filter(|line| line.contains(": ") && line.matches(' ').count() > 10);
            assert_eq!(links.count(), 1, "the loopback alone: {text}");
        }
        // A namespace in which it would have every capability.
        let confine = Some(Confinement::of(User { uid: 64055, gid: 64056 }));
        let args = vec!["--user".into(), "/bin/true".into()];
        let launch = Launch { program: "/usr/bin/unshare".into(), args, confine, ..Launch::default() };
        assert_eq!(launch.spawn().expect("spawn").wait().await, Ok(Ended::Code(1)));
    }

    #[tokio::test]
    async fn a_confined_child_dies_with_its_parents_thread_and_names_what_it_may_not_run() {
        if !has_seccomp() {
            return;
        }
        let dir = tempfile::tempdir().expect("dir");
        let program = dir.path().join("program");
        std::fs::copy("/bin/true", &program).expect("copy");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).expect("chmod");
        let confine = Some(Confinement { user: User { uid: 64055, gid: 64055 }, reads_all: false });
        let e = Launch { program, confine, ..Launch::default() }.spawn().expect_err("refused").to_string();
        assert!(e.contains("as uid 64055 (qemu.user)") && e.contains("Permission denied"), "{e}");
        let program = "/bin/sleep".into();
        let launch = Launch { program, args: vec!["1000".into()], confine, ..Launch::default() };
        let runtime = tokio::runtime::Handle::current();
        let parent = std::thread::spawn(move || {
            let _entered = runtime.enter();
            launch.spawn().expect("spawn")
        });
        let child = parent.join().expect("join");
        assert_eq!(child.wait().await, Ok(Ended::Signal(libc::SIGKILL)));
    }
}
