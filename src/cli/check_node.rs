//! What a pod needs of this node besides its image: programs, whom they run as, devices, folders, the network and
//! cgroups. What can be tried is tried as the shim does it; nothing is left behind.

use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::libc;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use crate::config::{Accelerator, Boot, Config, RootfsMode, VsockConfig};
use crate::error::Code;
use crate::host::ask::ask;
use crate::host::confine::{self, User};
use crate::host::facts::{self, Root};
use crate::host::{cgroup, files, layer_room, network_trial};
use crate::plan::finding::{Finding, fatal, pass, warning};
use crate::plan::key_slot::KnownDocument;
use crate::pod::dir;

/// The oldest QEMU that runs protected guests as they are started here.
const QEMU_MAJOR: u32 = 8;

const AS_ROOT: &str = "run `kata-se check` as root, as the shim runs";

/// All of it.
pub(super) fn check(root: &Root, config: &Config) -> Vec<Finding> {
    // Helpers are asked as the user that they run as; who is not root can only ask them as himself.
    let user = confine::user(&config.qemu.user).ok().flatten().filter(|_| is_root());
    let packs = config.rootfs.mode == RootfsMode::Packed;
    let all = [
        Some(qemu(config, user)),
        Some(rootfs(config)),
        packs.then(|| mkfs(config, user)),
        Some(runs_as(root, config)),
        Some(vsock(config, user)),
        Some(network()),
        Some(cgroups()),
        packs.then(|| cache(&config.rootfs.cache_dir)),
        Some(run_dir(&dir::run_dir())),
    ];
    all.into_iter().flatten().collect()
}

/// Whether the host can change what the guest's containers run.
fn rootfs(config: &Config) -> Finding {
    let mode = config.rootfs.mode;
    let text = format!("rootfs.mode = {:?}", mode.word());
    match (&config.boot, mode) {
        (Boot::Sealed { .. }, RootfsMode::Packed | RootfsMode::Block) => warning(
            "rootfs",
            "this host can read and change what confidential containers run",
            &format!("{text}, rootfs.trust_host = true"),
            "set rootfs.mode = \"guest-pull\"",
        ),
        (_, RootfsMode::GuestPull) => pass("rootfs", format!("{text}: guests pull their images themselves")),
        (Boot::Plain { .. }, _) => pass("rootfs", text),
    }
}

/// The configured host key documents; none: no finding.
pub(super) fn documents(documents: &[KnownDocument]) -> Vec<Finding> {
    let finding = |document: &KnownDocument| match &document.key {
        Ok(key) => pass("document", format!("{}, host key {}", document.path, key.short())),
        Err(why) => warning(
            "document",
            "a configured host key document cannot be used",
            why,
            "correct guest.host_key_documents",
        ),
    };
    documents.iter().map(finding).collect()
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

pub(super) fn qemu(config: &Config, user: Option<User>) -> Finding {
    let program = Program {
        check: "qemu",
        key: "qemu.path",
        path: &config.qemu.path,
        user,
        advice: "install QEMU 8 or newer",
    };
    let examined = || {
        let version = &program.version("QEMU", "QEMU emulator version ")?;
        if number(version).is_none_or(|(major, _)| major < QEMU_MAJOR) {
            return Err(program.failed("QEMU is too old for protected guests", &format!("version {version}")));
        }
        let lacks = |option: &str, word: &str, cause: &str| {
            let listed = program.ask(&[option, "help"])?;
            let found = listed.split_whitespace().any(|listed| listed == word);
            let evidence = format!("`{option} help` does not list {word}");
            if found { Ok(()) } else { Err(program.failed(cause, &evidence)) }
        };
        lacks("-machine", "s390-ccw-virtio", "this QEMU does not run s390x guests")?;
        if matches!(config.boot, Boot::Sealed { .. }) {
            lacks("-object", "s390-pv-guest", "this QEMU does not run protected guests")?;
        }
        Ok(program.is_version(version))
    };
    examined().unwrap_or_else(|failed| failed)
}

fn mkfs(config: &Config, user: Option<User>) -> Finding {
    let path = &config.rootfs.mkfs;
    let program = Program { check: "mkfs", key: "rootfs.mkfs", path, user, advice: "install erofs-utils" };
    let examined = || {
        // Version 1.5 refuses the option, and tells its name and version all the same.
        let said = program.ask(&["--version"])?;
        let version = said.lines().find_map(|line| line.strip_prefix("mkfs.erofs"));
        let version = version.and_then(|rest| rest.split_whitespace().find(|word| number(word).is_some()));
        version
            .map(|version| program.is_version(version))
            .ok_or_else(|| program.is_another("mkfs.erofs", &said))
    };
    examined().unwrap_or_else(|failed| failed)
}

fn vsock(config: &Config, user: Option<User>) -> Finding {
    match &config.vsock {
        VsockConfig::Vhost => {
            let device = Path::new("/dev/vhost-vsock");
            match std::fs::File::options().read(true).write(true).open(device) {
                Ok(_) => pass("vsock", "/dev/vhost-vsock can be opened"),
                Err(e) => not_opened(
                    "vsock",
                    "guests cannot be reached",
                    device,
                    &e,
                    "load the module: modprobe vhost_vsock",
                ),
            }
        }
        VsockConfig::VhostUser { program: path } => {
            let program = Program {
                check: "vsock",
                key: "vsock.program",
                path,
                user,
                advice: "install vhost-device-vsock",
            };
            let examined =
                || Ok(program.is_version(&program.version("vhost-device-vsock", "vhost-device-vsock ")?));
            examined().unwrap_or_else(|failed| failed)
        }
    }
}

/// A program that every pod needs.
struct Program<'a> {
    check: &'static str,
    /// The configuration's key for its path.
    key: &'static str,
    path: &'a Path,
    user: Option<User>,
    /// How to get it.
    advice: &'static str,
}

impl Program<'_> {
    fn ask(&self, args: &[&str]) -> std::result::Result<String, Finding> {
        const MISSING: &str = "a program that every pod needs is missing";
        match std::fs::metadata(self.path) {
            Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => {}
            Ok(_) => return Err(self.failed(MISSING, "not a program")),
            Err(e) => {
                let evidence = format!("{}: {e}", self.place());
                return Err(denied_or(&e, self.check, MISSING, &evidence, &self.advice()));
            }
        }
        let answer = ask(self.path, args, self.user);
        answer.map_err(|e| self.failed("a program that every pod needs does not answer", e.message()))
    }

    /// What it says behind `prefix`, in the first line that begins so; another program has none.
    fn version(&self, wanted: &str, prefix: &str) -> std::result::Result<String, Finding> {
        let said = self.ask(&["--version"])?;
        let version = said.lines().find_map(|line| line.strip_prefix(prefix));
        version.map(str::to_owned).ok_or_else(|| self.is_another(wanted, &said))
    }

    fn advice(&self) -> String {
        format!("{}, or correct {}", self.advice, self.key)
    }

    fn place(&self) -> String {
        format!("{} = {}", self.key, self.path.display())
    }

    fn failed(&self, cause: &str, why: &str) -> Finding {
        fatal(self.check, cause, &format!("{}: {why}", self.place()), &self.advice())
    }

    /// `said` is no text of `wanted`'s.
    fn is_another(&self, wanted: &str, said: &str) -> Finding {
        let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let line: String = line.chars().take(crate::limits::text::QUOTED_CHARS).collect();
        self.failed(&format!("this program is not {wanted}"), &format!("`--version` answers {line:?}"))
    }

    fn is_version(&self, version: &str) -> Finding {
        pass(self.check, format!("{}, version {version}", self.path.display()))
    }
}

/// The first two numbers of a version.
fn number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whom QEMU and the other helpers run as.
fn runs_as(root: &Root, config: &Config) -> Finding {
    let name = &config.qemu.user;
    let user = match confine::user(name) {
        Ok(Some(user)) => user,
        Ok(None) => {
            return warning(
                "user",
                "QEMU and its helpers keep root's rights",
                &format!("qemu.user = {name:?}"),
                "name a system user: a guest that breaks out of QEMU has the rights that QEMU has",
            );
        }
        Err(e) => {
            return fatal(
                "user",
                "no pod can start",
                &e.to_string(),
                "see the manual page of the configuration",
            );
        }
    };
    let kvm = facts::kvm_device(root);
    let text = format!("QEMU and its helpers run as uid {}, gid {} (qemu.user)", user.uid, user.gid);
    let advice = match name.split_once(':') {
        None => format!("make the device's group its group: usermod --gid kvm {name}"),
        Some((uid, _)) => format!("name the device's group: qemu.user = \"{uid}:GID\""),
    };
    match std::fs::metadata(&kvm) {
        Ok(meta) if config.qemu.accelerator == Accelerator::Kvm && !user.may(&meta, 6) => fatal(
            "user",
            "QEMU cannot use KVM",
            &format!("{text}; mode and owner of {} keep it out", kvm.display()),
            &advice,
        ),
        _ => pass("user", text),
    }
}

/// Tried in a network namespace of its own.
fn network() -> Finding {
    if !is_root() {
        return not_root("network", "taps and filters need root");
    }
    match network_trial::run() {
        Ok(()) => pass("network", "taps can be made and mirrored"),
        Err(e) => fatal(
            "network",
            "a pod's network cannot be passed to its guest",
            e.message(),
            "load the modules tun, sch_ingress and act_mirred",
        ),
    }
}

fn cgroups() -> Finding {
    const CAUSE: &str = "a pod's processes cannot be put into cgroups";
    const ADVICE: &str = "mount the cgroup hierarchies, writable, below /sys/fs/cgroup";
    let dirs = cgroup::dirs(Path::new(""));
    if dirs.is_empty() {
        return fatal("cgroups", CAUSE, "no hierarchy is mounted", ADVICE);
    }
    let refused = dirs.iter().find_map(|dir| Some((dir, access(dir, AccessFlags::W_OK).err()?)));
    match refused {
        None => pass("cgroups", format!("version {}", if cgroup::is_v2() { 2 } else { 1 })),
        Some((dir, e)) => not_opened("cgroups", CAUSE, dir, &e.into(), ADVICE),
    }
}

/// Where packed layers are kept; made when it is needed.
fn cache(path: &Path) -> Finding {
    const CAUSE: &str = "image layers cannot be packed";
    let advice = "or correct rootfs.cache_dir";
    if let Some(refused) = unusable("cache", CAUSE, path, advice) {
        return refused;
    }
    let existing = path.ancestors().find(|dir| dir.exists()).unwrap_or(path);
    // As the packer makes its images: a file without a name, which is gone when it is closed.
    let file = std::fs::File::options().write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(existing);
    match file.and_then(|_| Ok(statvfs(existing)?)) {
        Err(e) => not_opened("cache", CAUSE, existing, &e, advice),
        Ok(at) => {
            let (place, free) = (path.display(), layer_room::free(&at) >> 20);
            let kept = layer_room::reserve(&at) >> 20;
            if free > 0 {
                return pass(
                    "cache",
                    format!("{place}, {free} MiB free, beside {kept} MiB that are kept free"),
                );
            }
            let full = format!("{place}: no more than the {kept} MiB are free that are kept free");
            fatal("cache", CAUSE, &full, &format!("free some of the disk, {advice}"))
        }
    }
}

/// Where pods have their folders; made when it is needed.
fn run_dir(path: &Path) -> Finding {
    unusable("pods", "no pod can start", path, "")
        .unwrap_or_else(|| pass("pods", format!("{} is for root only", path.display())))
}

/// A private directory of root's that is there, and that the shim refuses.
fn unusable(check: &'static str, cause: &str, path: &Path, advice: &str) -> Option<Finding> {
    if !is_root() {
        return Some(not_root(check, &format!("{} is for root only", path.display())));
    }
    let refused = files::check_private(path).err().filter(|e| e.code() != Code::NotFound)?;
    Some(fatal(check, cause, refused.message(), advice))
}

fn not_root(check: &'static str, evidence: &str) -> Finding {
    fatal(check, "this could not be checked: the user is not root", evidence, AS_ROOT)
}

fn not_opened(check: &'static str, cause: &str, path: &Path, e: &std::io::Error, advice: &str) -> Finding {
    denied_or(e, check, cause, &format!("{}: {e}", path.display()), advice)
}

/// What this user may not open is not missing.
fn denied_or(e: &std::io::Error, check: &'static str, cause: &str, evidence: &str, advice: &str) -> Finding {
    if e.kind() != ErrorKind::PermissionDenied {
        return fatal(check, cause, evidence, advice);
    }
    fatal(check, "this could not be checked: the user may not open it", evidence, AS_ROOT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    /// A program that answers as `script` says, and the configuration that names it everywhere.
    fn answering(script: &str) -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("p");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        let path = path.display();
        let text = format!(
            "[qemu]\npath = \"{path}\"\n[rootfs]\nmkfs = \"{path}\"\n[vsock]\ndevice = \"vhost-user\"\nprogram = \"{path}\"\n"
        );
        let config = crate::config::file::parse(&[(PathBuf::new(), text)]).expect("configuration");
        (dir, config)
    }

    fn told(finding: &Finding, dir: &tempfile::TempDir) -> String {
        finding.text.to_string().replace(&dir.path().display().to_string(), "")
    }

    #[test]
    fn a_program_is_what_it_says_it_is() {
        let none = "exit 0";
        let cases = [
            (none, "this program is not QEMU: qemu.path = /p: `--version` answers \"\""),
            (
                "echo QEMU emulator version 7.2.0",
                "QEMU is too old for protected guests: qemu.path = /p: version 7.2.0",
            ),
            ("echo QEMU emulator version", "this program is not QEMU"),
            (
                "echo QEMU emulator version 8.0.0",
                "this QEMU does not run s390x guests: qemu.path = /p: `-machine help` does not list s390-ccw-virtio",
            ),
            (
                "[ $1 = --version ] && echo QEMU emulator version 9.1.0 || echo s390-ccw-virtio old",
                "this QEMU does not run protected guests: qemu.path = /p: `-object help` does not list s390-pv-guest",
            ),
            (
                "[ $1 = --version ] && echo 'QEMU emulator version 9.1.0 (x)' || echo s390-ccw-virtio s390-pv-guest",
                "/p, version 9.1.0 (x)",
            ),
        ];
        for (script, wanted) in cases {
            let (dir, config) = answering(script);
            let found = told(&qemu(&config, None), &dir);
            assert!(found.starts_with(wanted), "{script}: {found}");
        }
        let cases = [
            (none, "this program is not mkfs.erofs", "this program is not vhost-device-vsock"),
            ("echo mkfs.erofs 1.5; exit 1", "/p, version 1.5", "this program is not vhost-device-vsock"),
            ("echo 'mkfs.erofs (erofs-utils) 1.8.2'", "/p, version 1.8.2", "this program is not"),
            ("echo vhost-device-vsock 0.3.0", "this program is not mkfs.erofs", "/p, version 0.3.0"),
        ];
        for (script, of_mkfs, of_vsock) in cases {
            let (dir, config) = answering(script);
            let found = (told(&mkfs(&config, None), &dir), told(&vsock(&config, None), &dir));
            assert!(found.0.starts_with(of_mkfs) && found.1.starts_with(of_vsock), "{script}: {found:?}");
        }
    }

    #[test]
    fn each_document_has_a_finding() {
        let key = crate::image::KeyHash([7; 32]);
        let [good, bad] = [Ok(key), Err("read /b: No such file".to_owned())]
            .map(|key| KnownDocument { path: "/a".into(), key });
        let found: Vec<_> = documents(&[good, bad]).iter().map(|f| f.text.to_string()).collect();
        assert_eq!(found[0], format!("/a, host key {}", key.short()));
        assert_eq!(
            found[1],
            "a configured host key document cannot be used: read /b: No such file: correct guest.host_key_documents"
        );
        assert!(documents(&[]).is_empty());
    }

    #[test]
    fn folders_that_the_shim_would_refuse_are_told_with_what_to_do() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("layers/of/mine");
        let found = told(&cache(&path), &dir);
        assert!(
            found.starts_with("/layers/of/mine, ") && found.ends_with(" MiB that are kept free"),
            "{found}"
        );
        assert!(!dir.path().join("layers").exists());
        fs::create_dir_all(&path).expect("make");
        assert_eq!(
            told(&cache(&path), &dir),
            "image layers cannot be packed: /layers/of/mine: is open to others, mode 0755; what is kept there is \
             for one user: chmod 700 /layers/of/mine: or correct rootfs.cache_dir"
        );
        assert!(
            told(&run_dir(&path), &dir).starts_with("no pod can start: /layers/of/mine: is open to others")
        );
        let proc = cache(Path::new("/proc/layers")).text.to_string();
        assert!(proc.starts_with("image layers cannot be packed: /proc: "), "{proc}");
    }

    #[test]
    fn the_network_and_the_cgroups_of_this_machine_are_tried() {
        // The user-mode emulation that s390x unit tests run in has no traffic filters.
        if !cfg!(target_arch = "s390x") {
            assert_eq!(network().text.to_string(), "taps can be made and mirrored");
        }
        assert!(cgroups().text.to_string().starts_with("version "));
    }

    #[test]
    fn what_the_user_may_not_open_is_not_called_missing() {
        let told = |code| {
            let e = std::io::Error::from_raw_os_error(code);
            not_opened("vsock", "guests cannot be reached", Path::new("/d"), &e, "modprobe").text.to_string()
        };
        assert_eq!(told(2), "guests cannot be reached: /d: No such file or directory (os error 2): modprobe");
        assert_eq!(
            told(13),
            "this could not be checked: the user may not open it: /d: Permission denied (os error 13): run \
             `kata-se check` as root, as the shim runs"
        );
    }
}
