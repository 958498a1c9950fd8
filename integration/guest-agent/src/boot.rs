//! The guest's start and end when the agent is its first process: mounts, modules, namespaces, power.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::{sethostname, sync};

use crate::cgroup;
use crate::cli::say;
use crate::failure::{Result, Trying, internal};
use crate::oci::SHARED_NAMESPACES;
use crate::settings::Settings;

/// Files of kernel modules, one per line, in load order; `list` at the start, others on demand.
const MODULES: &str = "/etc/modules.";

const MOUNTS: [(&str, &str, &str, &str); 7] = [
    ("proc", "/proc", "proc", ""),
    ("sysfs", "/sys", "sysfs", ""),
    ("devtmpfs", "/dev", "devtmpfs", "mode=0755"),
    ("devpts", "/dev/pts", "devpts", "gid=5,mode=0620,ptmxmode=0666"),
    ("tmpfs", "/run", "tmpfs", "mode=0755"),
    ("tmpfs", "/tmp", "tmpfs", "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", ""),
];

/// The agent's options on the kernel command line.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) record_console: bool,
    pub(crate) record_file: bool,
    pub(crate) script: Option<String>,
    pub(crate) settings: Settings,
}

/// Sets up a bare guest. Failures are printed, and the rest is tried.
pub(crate) fn prepare() -> Asked {
    for (source, target, fstype, data) in MOUNTS {
        let made = fs::create_dir_all(target).and_then(|()| {
            let flags = MsFlags::MS_NOSUID;
            Ok(mount(Some(source), target, Some(fstype), flags, Some(data))?)
        });
        made.unwrap_or_else(|e| say(&format!("mount {target}: {e}")));
    }
    load_modules("list");
    cgroup::prepare().unwrap_or_else(|e| say(&format!("cgroups: {e}")));
    asked(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
}

/// Loads the modules of one list; true if there is such a list.
pub(crate) fn load_modules(list: &str) -> bool {
    let Ok(files) = fs::read_to_string(format!("{MODULES}{list}")) else { return false };
    for path in files.lines().map(str::trim).filter(|line| !line.is_empty()) {
        load(path).unwrap_or_else(|e| say(&format!("module {path}: {e}")));
    }
    true
}

fn load(path: &str) -> std::io::Result<()> {
    let file = File::open(path)?;
    // As sealed images are started: the agent alone looks for disks, each at its address.
    let parameters = if path.ends_with("/scsi_mod.ko") { c"scan=none" } else { c"" };
    match finit_module(file.as_fd(), parameters, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn asked(command_line: &str) -> Asked {
    let mut asked = Asked::default();
    for word in command_line.split_whitespace() {
        match word.split_once('=') {
            Some(("guest-agent.record", "console")) => asked.record_console = true,
            Some(("guest-agent.record", "file")) => asked.record_file = true,
            Some(("guest-agent.seccomp", "on")) => asked.settings.seccomp = true,
            Some(("guest-agent.version", version)) => version.clone_into(&mut asked.settings.version),
            Some(("guest-agent.cdh", "off")) => asked.settings.cdh = false,
            Some(("agent.image_pull_timeout", seconds)) => {
                let seconds = seconds.parse().ok().map(Duration::from_secs);
                asked.settings.pull_limit = seconds.unwrap_or(asked.settings.pull_limit);
            }
            Some(("guest-agent.script", text)) => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
                asked.script = Some(String::from_utf8_lossy(&bytes).into_owned());
            }
            _ => {}
        }
    }
    asked
}

/// The namespaces that all containers share, kept alive by files: UTS and IPC.
pub(crate) fn share_namespaces(hostname: &str) -> Result<()> {
    fs::create_dir_all(SHARED_NAMESPACES).trying(SHARED_NAMESPACES)?;
    let hostname = hostname.to_owned();
    // A thread enters namespaces; this one ends, and the files keep what it created.
    let maker = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS).trying("unshare")?;
        if !hostname.is_empty() {
            sethostname(&hostname).trying("host name")?;
        }
        for kind in ["ipc", "uts"] {
            let file = Path::new(SHARED_NAMESPACES).join(kind);
            File::create(&file).trying(file.display())?;
            bind_file(&Path::new("/proc/thread-self/ns").join(kind), &file)?;
        }
        Ok(())
    });
    maker.join().unwrap_or_else(|_| Err(internal("the maker of the namespaces failed")))
}

/// Bind-mounts one file over another that exists.
pub(crate) fn bind_file(from: &Path, over: &Path) -> Result<()> {
    if !matches!(fs::exists(over), Ok(true)) {
        return Ok(());
    }
    mount(Some(from), over, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .trying(format!("bind {}", over.display()))
}

/// Powers the guest off.
pub(crate) fn power_off() {
    sync();
    let Err(e) = reboot(RebootMode::RB_POWER_OFF);
    say(&format!("power off: {e}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_command_line_asks() {
        let line = "console=ttysclp0 guest-agent.record=console guest-agent.version=4.2.0 guest-agent.cdh=off guest-agent.script=eyJydWxlcyI6W119 quiet\n";
        let asked = asked(line);
        assert!(asked.record_console && !asked.record_file && !asked.settings.cdh);
        assert_eq!(asked.settings.version, "4.2.0");
        assert_eq!(asked.script.as_deref(), Some(r#"{"rules":[]}"#));
    }
}
