//! Everything a pod may leave behind on a host, counted before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// One count. Two counts of a clean host are equal.
#[derive(Clone, Debug)]
pub struct Census {
    names: PathBuf,
    files: PathBuf,
    found: BTreeSet<String>,
}

impl Census {
    /// Counts now: only processes and sockets that name the folder `names`, and files below `files`.
    pub fn take(names: &Path, files: &Path) -> Self {
        let mut found = BTreeSet::new();
        processes(names, &mut found);
        cgroups(Path::new("/sys/fs/cgroup"), &mut found);
        lines("/proc/self/mountinfo", &mut found, |line| {
            // iproute2 mounts it with a machine's first named namespace and never unmounts it.
            let target = line.split(' ').nth(4).filter(|target| *target != "/run/netns")?;
            Some(format!("mount {target}"))
        });
        lines("/proc/net/unix", &mut found, |line| {
            let path = line.split(' ').next_back().filter(|p| p.starts_with('/'))?;
            named(path, names).then(|| format!("socket {path}"))
        });
        networks(&mut found);
        for line in output("losetup", &["--all", "--noheadings", "--output", "NAME,BACK-FILE"]).lines() {
            found.insert(format!("loop {line}"));
        }
        list_files(files, &mut found);
        disks(&names.join("pods"), &mut found);
        Self { names: names.to_path_buf(), files: files.to_path_buf(), found }
    }

    /// What is there now and was not then (`+`), and the other way round (`-`).
    pub fn difference(&self) -> Vec<String> {
        let now = Self::take(&self.names, &self.files);
        let gone = self.found.difference(&now.found).map(|x| format!("- {x}"));
        let new = now.found.difference(&self.found).map(|x| format!("+ {x}"));
        gone.chain(new).collect()
    }

    /// Waits up to ten seconds for what ends by itself, then panics with the difference.
    pub fn assert_clean(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let difference = self.difference();
            if difference.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "left behind or lost:\n  {}", difference.join("\n  "));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn named(text: &str, folder: &Path) -> bool {
    text.contains(&*folder.to_string_lossy())
}

/// Processes that name our folders or are in a cgroup of ours; zombies that another process has to
/// reap do not count.
fn processes(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let cgroup = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        let program = command.split(' ').next().unwrap_or_default();
        let ours = program.contains("containerd-shim-kata-se") || cgroup.contains("kata-se-");
        if !command.is_empty() && pid != std::process::id() && (ours || named(&command, folder)) {
            found.insert(format!("process {pid} {}", command.chars().take(120).collect::<String>()));
        }
    }
}

/// The cgroups of our pods, and the folders that tests put them into: a machine has others that come and
/// go by themselves.
fn cgroups(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            let path = entry.path().display().to_string();
            if path.contains("kata-se") || path.ends_with("/default") {
                found.insert(format!("cgroup {path}"));
            }
            cgroups(&entry.path(), found);
        }
    }
}

fn networks(found: &mut BTreeSet<String>) {
    let spaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let mut spaces: Vec<Option<String>> =
        spaces.map(|e| Some(e.file_name().to_string_lossy().into_owned())).collect();
    spaces.push(None);
    for space in spaces {
        let inside: Vec<&str> = space.as_deref().map(|name| vec!["-n", name]).unwrap_or_default();
        let name = space.as_deref().unwrap_or("host");
        for line in output("ip", &[&inside[..], &["-o", "link"]].concat()).lines() {
            let link = line.split(':').nth(1).unwrap_or_default().trim();
            found.insert(format!("link {link} in {name}"));
        }
        for line in output("tc", &[&inside[..], &["qdisc", "show", "ingress"]].concat()).lines() {
            found.insert(format!("qdisc {line} in {name}"));
        }
    }
}

/// All but the notes of verified files, which are kept until the machine boots again.
fn list_files(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("verified-") {
            continue;
        }
        found.insert(format!("file {}", entry.path().display()));
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            list_files(&entry.path(), found);
        }
    }
}

/// Disks of emptyDirs, in the folders that a kubelet makes.
fn disks(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name() == "disk.img" {
            found.insert(format!("disk {}", entry.path().display()));
        }
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            disks(&entry.path(), found);
        }
    }
}

fn lines(path: &str, found: &mut BTreeSet<String>, keep: impl Fn(&str) -> Option<String>) {
    found.extend(fs::read_to_string(path).unwrap_or_default().lines().filter_map(keep));
}

fn output(program: &str, args: &[&str]) -> String {
    let ran = Command::new(program).args(args).output();
    ran.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
}
