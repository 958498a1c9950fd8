//! Where this machine has its cgroups, of version 1 or of version 2 alone.

use std::fs;
use std::path::{Path, PathBuf};

const TOP: &str = "/sys/fs/cgroup";

fn is_v2() -> bool {
    Path::new(TOP).join("cgroup.procs").is_file()
}

/// The top of the hierarchy that has `controller`.
pub fn cgroup_top(controller: &str) -> PathBuf {
    let top = Path::new(TOP);
    if is_v2() { top.to_path_buf() } else { top.join(controller) }
}

/// A process's cgroup in it.
pub fn cgroup_of(pid: u32, controller: &str) -> PathBuf {
    let field = if is_v2() { "0::/".to_owned() } else { format!(":{controller}:/") };
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
    let path = text.lines().find_map(|line| line.split_once(&field)).expect("its cgroup").1;
    cgroup_top(controller).join(path)
}

/// Sets how much memory the processes of a cgroup, made below `cgroup_top("memory")`, may have together.
pub fn limit_memory(cgroup: &Path, bytes: u64) {
    let file = if is_v2() { "memory.max" } else { "memory.limit_in_bytes" };
    fs::write(cgroup.join(file), bytes.to_string()).expect("limit");
}
