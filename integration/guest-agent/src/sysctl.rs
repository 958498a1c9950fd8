//! A container's sysctls. crun accepts only those of namespaces it creates itself; containers of a pod share
//! theirs, so the agent writes the values. It accepts those that the real agent's validator accepts.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::failure::{Result, Trying, internal};
use crate::oci::SHARED_NAMESPACES;

const OF_IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Why a container may not set it.
pub(crate) fn check(name: &str) -> std::result::Result<(), String> {
    let known = OF_IPC.contains(&name)
        || ["fs.mqueue.", "net."].iter().any(|start| name.starts_with(start))
        || name == "kernel.domainname";
    if known && !name.contains('/') && !name.contains("..") {
        return Ok(());
    }
    Err(format!("Sysctl {name} is not in a separate kernel namespace"))
}

/// Writes the values as the pod's namespaces see them.
pub(crate) fn set(values: &HashMap<String, String>) -> Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    let values = values.clone();
    // The thread that enters the namespaces ends afterwards.
    let setter = std::thread::spawn(move || {
        for (kind, flag) in [("ipc", CloneFlags::CLONE_NEWIPC), ("uts", CloneFlags::CLONE_NEWUTS)] {
            let file = File::open(Path::new(SHARED_NAMESPACES).join(kind)).trying(kind)?;
            setns(file, flag).trying(kind)?;
        }
        for (name, value) in values {
            let path = Path::new("/proc/sys").join(name.replace('.', "/"));
            fs::write(path, value.as_bytes()).trying(format!("sysctl {name} = {value:?}"))?;
        }
        Ok(())
    });
    setter.join().unwrap_or_else(|_| Err(internal("the setter of sysctls failed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_pod_has_of_its_own() {
        for good in ["net.ipv4.ip_unprivileged_port_start", "kernel.shm_rmid_forced", "fs.mqueue.msg_max"] {
            assert_eq!(check(good), Ok(()));
        }
        for bad in ["vm.swappiness", "kernel.panic", "kernel.hostname", "net./../vm", "net...vm"] {
            assert!(check(bad).unwrap_err().contains("not in a separate kernel namespace"), "{bad}");
        }
    }
}
