//! What a pod costs the host beyond its containers' limits stays within what its RuntimeClass reserves.
//!
//! Measured in emulation, where QEMU's buffer for translated code is counted separately: KVM has none.

use std::fs;
use std::path::PathBuf;

use harness::{Containerd, cgroup_top, limit_memory};
use kata_se::test_api::config;
use kata_se::test_api::{HOST_MIB, overhead};

/// The guest's memory on this node.
const MEMORY_MIB: u64 = 512;

/// Allowance for QEMU's buffer of translated code; it is never larger.
const CODE_MIB: u64 = 400;

/// Resident KiB of a process by mapping: guest memory, translated code, everything else.
#[derive(Clone, Copy, Debug, Default)]
struct Resident {
    guest: u64,
    code: u64,
    own: u64,
}

fn resident(pid: u32) -> Resident {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let mut sum = Resident::default();
    let (mut executable, mut is_guest) = (false, false);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [range, mode, ..] if range.contains('-') => executable = mode.starts_with("rwx"),
            ["Size:", kib, "kB"] => is_guest = kib.parse() == Ok(MEMORY_MIB << 10),
            ["Rss:", kib, "kB"] => {
                let part = match (is_guest, executable) {
                    (true, _) => &mut sum.guest,
                    (_, true) => &mut sum.code,
                    _ => &mut sum.own,
                };
                *part += kib.parse::<u64>().expect("KiB");
            }
            _ => {}
        }
    }
    sum
}

/// A cgroup as the kubelet makes one for a pod, with a limit for memory; removed at the end.
struct PodCgroup(PathBuf);

impl PodCgroup {
    const NAME: &str = "kata-se-e2e-overhead";

    fn new(limit_mib: u64) -> Self {
        let dir = cgroup_top("memory").join(Self::NAME);
        fs::create_dir(&dir).expect("cgroup");
        let made = Self(dir);
        limit_memory(&made.0, limit_mib << 20);
        made
    }

    /// The processes in the pod's own leaf.
    fn processes(&self) -> Vec<u32> {
        let leaves = fs::read_dir(&self.0).expect("leaves").flatten().filter(|entry| entry.path().is_dir());
        let lists =
            leaves.map(|leaf| fs::read_to_string(leaf.path().join("cgroup.procs")).expect("processes"));
        lists
            .flat_map(|list| list.lines().map(|pid| pid.parse().expect("pid")).collect::<Vec<u32>>())
            .collect()
    }
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).ok();
    }
}

#[test]
fn a_guest_that_uses_all_its_memory_stays_within_the_overhead_of_its_runtime_class() {
    let node = Containerd::new();
    let config = config::load(Some(&node.path("config.toml"))).expect("configuration");
    let overhead = overhead(&config, Some(0));
    let pod = PodCgroup::new(u64::from(overhead.memory_mib) + CODE_MIB);
    let place = format!("/{}/c1", PodCgroup::NAME);
    let mut child = node.running(&["--cgroup", &place], "c1", "while :; do sleep 0.1; done");
    // It has no limit: the guest's kernel kills it when no memory is left.
    let hog = node.exec("c1", "hog", &["tail", "/dev/zero"]);
    assert_eq!(hog.status.code(), Some(137), "{}", node.log());
    let shim = fs::read_to_string(node.pod_dir().join("lock")).expect("lock");
    let mut processes = pod.processes();
    processes.push(shim.trim().parse().expect("pid"));
    processes.sort_unstable();
    processes.dedup();
    let mut all = Resident::default();
    for pid in processes {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).expect("comm");
        let of = resident(pid);
        println!("{}: {of:?} KiB", name.trim());
        all = Resident { guest: all.guest + of.guest, code: all.code + of.code, own: all.own + of.own };
    }
    assert!(all.guest >> 10 > MEMORY_MIB * 3 / 4, "the guest has used its memory: {all:?}");
    assert!((20..HOST_MIB.into()).contains(&(all.own >> 10)), "{all:?}");
    assert!(node.exec("c1", "after", &["true"]).status.success(), "the VM is still there: {}", node.log());
    node.ctr(&["task", "kill", "--signal", "KILL", "c1"]);
    child.wait().expect("ctr");
    node.remove("c1");
    drop(pod);
    node.assert_clean();
}
