//! Facts about this machine: its size, and what it has for Secure Execution (/sys/firmware/uv, /proc, /dev/kvm).
//!
//! Nothing here fails: a file that is missing or makes no sense is a fact. Every read is bounded.
//! Formats: Linux, arch/s390/kernel/uv.c (addresses and masks are hexadecimal, counts decimal).

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::error::{Code, Error};
use crate::host::files::read_bounded;
use crate::host::sys;
use crate::image::KeyHash;
use crate::limits;
use crate::plan::cpus::CpuList;
use crate::plan::host_facts::{Fact, HostFacts, HostKeys, Kvm};
use crate::plan::size::Capacity;

/// The directory that is taken for `/`.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// `/`. Test builds take another from the environment (see `fake`).
    pub fn of_this_machine() -> Self {
        #[cfg(feature = "failpoints")]
        if let Some(root) = fake::from_environment() {
            return root;
        }
        Self("/".into())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    fn is_real(&self) -> bool {
        self.0 == Path::new("/")
    }
}

/// When to count the running secure guests, which reads a file for each process of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    Always,
    /// Only where there are at least as many processes as the machine can have secure guests.
    NearLimit,
}

/// Reads everything; milliseconds.
pub(crate) fn read(root: &Root, count: Count) -> HostFacts {
    let uv = |name: &str| root.at(&format!("/sys/firmware/uv/{name}"));
    let max_guests = fact(&uv("query/max_guests"), decimal);
    HostFacts {
        running_guests: running(root, count, &max_guests),
        architecture: architecture(root),
        uv_facility: fact(&root.at("/proc/cpuinfo"), facility),
        prot_virt_host: fact(&uv("prot_virt_host"), switch),
        prot_virt_guest: fact(&uv("prot_virt_guest"), switch),
        max_cpus: fact(&uv("query/max_cpus"), decimal),
        max_guests,
        max_address: fact(&uv("query/max_address"), hexadecimal),
        header_versions: fact(&uv("query/supp_se_hdr_ver"), hexadecimal),
        header_flags: fact(&uv("query/supp_se_hdr_pcf"), hexadecimal),
        keys: fact(&uv("keys/all"), keys),
        kvm: kvm(root),
    }
}

/// The number of processes with QEMU's object for a secure guest on their command line, also those of others.
fn running(root: &Root, count: Count, max_guests: &Fact<u64>) -> Option<u64> {
    let is_process = |name: &str| name.parse::<u32>().is_ok();
    let processes: Vec<PathBuf> = std::fs::read_dir(root.at("/proc"))
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_process))
        .map(|entry| entry.path())
        .collect();
    let near = max_guests.known().is_some_and(|limit| processes.len() as u64 >= *limit);
    if count == Count::NearLimit && !near {
        return None;
    }
    let object: &[u8] = b"s390-pv-guest";
    let is_secure = |process: &&PathBuf| {
        let line = read_bounded(&process.join("cmdline"), limits::host::FACT_BYTES).unwrap_or_default();
        line.windows(object.len()).any(|part| part == object)
    };
    Some(processes.iter().filter(is_secure).count() as u64)
}

fn fact<T>(path: &Path, parse: impl FnOnce(&str) -> Result<T, String>) -> Fact<T> {
    let bytes = match read_bounded(path, limits::host::FACT_BYTES) {
        Ok(bytes) => bytes,
        Err(e) if e.code() == Code::NotFound => return Fact::Absent,
        Err(e) => return Fact::Unclear(e.to_string()),
    };
    match parse(String::from_utf8_lossy(&bytes).trim_end()) {
        Ok(value) => Fact::Known(value),
        Err(why) => Fact::Unclear(format!("{}: {why}", path.display())),
    }
}

fn quoted(text: &str) -> String {
    let start: String = text.chars().take(limits::text::QUOTED_CHARS).collect();
    format!("{start:?}")
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(format!("{} is neither 0 nor 1", quoted(text))),
    }
}

fn decimal(text: &str) -> Result<u64, String> {
    text.parse().map_err(|e| format!("{}: {e}", quoted(text)))
}

fn hexadecimal(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16)
        .map_err(|e| format!("{}: {e}", quoted(text)))
}

/// Whether the `facilities` line of /proc/cpuinfo, a list of numbers, has the ultravisor call.
fn facility(cpuinfo: &str) -> Result<bool, String> {
    const ULTRAVISOR_CALL: &str = "158";
    let line =
        cpuinfo.lines().find_map(|line| line.strip_prefix("facilities")?.trim_start().strip_prefix(':'));
    Ok(line.is_some_and(|numbers| numbers.split_whitespace().any(|number| number == ULTRAVISOR_CALL)))
}

/// The first line is the host key's hash, the second the backup host key's; zeros: no such key.
fn keys(text: &str) -> Result<HostKeys, String> {
    let mut lines = text.lines();
    let mut next = || lines.next().map(hash).transpose().map(Option::flatten);
    let keys = HostKeys { host: next()?, backup: next()? };
    if keys == HostKeys::default() { Err("no key in it".to_owned()) } else { Ok(keys) }
}

fn hash(line: &str) -> Result<Option<KeyHash>, String> {
    let hash: KeyHash = line.parse().map_err(|e: Error| e.to_string())?;
    Ok(Some(hash).filter(|hash| hash.0 != [0; 32]))
}

fn architecture(root: &Root) -> String {
    #[cfg(any(test, feature = "failpoints"))]
    if !root.is_real() {
        return fake::architecture(root);
    }
    debug_assert!(root.is_real());
    let name = nix::sys::utsname::uname().map(|name| name.machine().to_string_lossy().into_owned());
    name.unwrap_or_default()
}

/// Where KVM's device is.
pub(crate) fn kvm_device(root: &Root) -> PathBuf {
    root.at("/dev/kvm")
}

fn kvm(root: &Root) -> Kvm {
    let path = kvm_device(root);
    match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(device) => match protected(root, &device) {
            Ok(true) => Kvm::Protected,
            Ok(false) => Kvm::Unprotected,
            Err(e) => Kvm::Unusable(format!("{}: {e}", path.display())),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Kvm::Missing,
        Err(e) => Kvm::Unusable(format!("{}: {e}", path.display())),
    }
}

fn protected(root: &Root, device: &File) -> std::io::Result<bool> {
    #[cfg(any(test, feature = "failpoints"))]
    if !root.is_real() {
        return fake::protected(device);
    }
    debug_assert!(root.is_real());
    sys::kvm_has_protected_guests(device)
}

/// The memory and CPUs of this machine; zero: unknown.
pub(crate) fn capacity() -> Capacity {
    let file = |path: &str| {
        let bytes = read_bounded(Path::new(path), limits::host::FACT_BYTES).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Capacity {
        memory_mib: memory_mib(&file("/proc/meminfo")),
        cpus: cpu_count(&file("/sys/devices/system/cpu/online")),
    }
}

/// `MemTotal:  16384000 kB`
fn memory_mib(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// A list of ranges: `0-3,8`.
fn cpu_count(text: &str) -> u32 {
    CpuList::parse(text).ok().and_then(|list| u32::try_from(list.cpus().count()).ok()).unwrap_or(0)
}

/// A machine made of files, for tests: not in a release build.
///
/// The tree is as the kernel's, with two exceptions: `proc/sys/kernel/arch` has the architecture (newer
/// kernels have that file, too), and `dev/kvm` is a text file with KVM's answer for KVM_CAP_S390_PROTECTED,
/// `1` or `0`.
#[cfg(any(test, feature = "failpoints"))]
mod fake {
    #[cfg(feature = "failpoints")]
    pub(super) fn from_environment() -> Option<super::Root> {
        std::env::var_os(super::FAKE_ROOT_ENVIRONMENT).map(|root| super::Root(root.into()))
    }

    pub(super) fn architecture(root: &super::Root) -> String {
        let text = super::read_bounded(&root.at("/proc/sys/kernel/arch"), 256).unwrap_or_default();
        String::from_utf8_lossy(&text).trim().to_owned()
    }

    pub(super) fn protected(mut device: &std::fs::File) -> std::io::Result<bool> {
        use std::io::Read;
        let mut answer = String::new();
        device.read_to_string(&mut answer)?;
        Ok(answer.trim() == "1")
    }
}

/// The root directory of the fake machine in test builds.
#[cfg(feature = "failpoints")]
pub(crate) const FAKE_ROOT_ENVIRONMENT: &str = "KATA_SE_SYS_ROOT";

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().expect("dir");
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            fs::write(path, text).expect("write");
        }
        let root = Root(dir.path().to_owned());
        (dir, root)
    }

    #[test]
    fn a_z_host_is_read_whole() {
        let zeros = "0".repeat(64);
        let all = format!("{}\n{}\n{zeros}\n", "0A".repeat(32), "0b".repeat(32));
        let (_dir, root) = tree(&[
            ("proc/sys/kernel/arch", "s390x\n"),
            ("proc/cpuinfo", "vendor_id       : IBM/S390\nfacilities      : 0 1 2 157 158 161\n"),
            ("sys/firmware/uv/prot_virt_host", "1\n"),
            ("sys/firmware/uv/prot_virt_guest", "0\n"),
            ("sys/firmware/uv/query/max_cpus", "248\n"),
            ("sys/firmware/uv/query/max_guests", "1000\n"),
            ("sys/firmware/uv/query/max_address", "fffffffffff\n"),
            ("sys/firmware/uv/query/supp_se_hdr_ver", "4000000000000000\n"),
            ("sys/firmware/uv/query/supp_se_hdr_pcf", "300000f0\n"),
            ("sys/firmware/uv/keys/all", &all),
            ("dev/kvm", "1\n"),
            ("proc/17/cmdline", "qemu\0-object\0s390-pv-guest,id=pv0\0"),
            ("proc/18/cmdline", "sh\0"),
            ("proc/self/cmdline", "s390-pv-guest"),
        ]);
        let keys = HostKeys { host: Some(KeyHash([10; 32])), backup: Some(KeyHash([11; 32])) };
        let wanted = HostFacts {
            architecture: "s390x".into(),
            uv_facility: Fact::Known(true),
            prot_virt_host: Fact::Known(true),
            prot_virt_guest: Fact::Known(false),
            max_cpus: Fact::Known(248),
            max_guests: Fact::Known(1000),
            max_address: Fact::Known(0xfff_ffff_ffff),
            header_versions: Fact::Known(0x4000_0000_0000_0000),
            header_flags: Fact::Known(0x3000_00f0),
            keys: Fact::Known(keys),
            kvm: Kvm::Protected,
            running_guests: Some(1),
        };
        assert_eq!(read(&root, Count::Always), wanted);
        assert_eq!(
            read(&root, Count::NearLimit).running_guests,
            None,
            "2 processes are not near 1000 guests"
        );
        fs::write(root.at("/sys/firmware/uv/query/max_guests"), "2").expect("write");
        assert_eq!(read(&root, Count::NearLimit).running_guests, Some(1));
    }

    #[test]
    fn an_empty_tree_is_a_machine_without_anything() {
        let (_dir, root) = tree(&[]);
        let machine = read(&root, Count::NearLimit);
        assert_eq!(
            (machine.prot_virt_host, machine.keys, machine.kvm),
            (Fact::Absent, Fact::Absent, Kvm::Missing)
        );
    }

    #[test]
    fn nonsense_is_reported_with_its_file() {
        let (dir, root) = tree(&[
            ("sys/firmware/uv/prot_virt_host", "yes\n"),
            ("sys/firmware/uv/query/max_cpus", "-1\n"),
            ("sys/firmware/uv/query/max_address", "\u{1b}[31m\n"),
            ("sys/firmware/uv/keys/all", "0123\n"),
            ("dev/kvm", "0"),
        ]);
        fs::create_dir_all(dir.path().join("proc/cpuinfo")).expect("mkdir");
        let machine = read(&root, Count::NearLimit);
        let says = |fact: Fact<u64>, wanted: &str| {
            let Fact::Unclear(text) = fact else { panic!("{fact:?}") };
            assert!(text.ends_with(wanted), "{text}");
        };
        assert_eq!(
            machine.prot_virt_host,
            Fact::Unclear(format!(
                "{}/sys/firmware/uv/prot_virt_host: \"yes\" is neither 0 nor 1",
                dir.path().display()
            ))
        );
        says(machine.max_cpus, "max_cpus: \"-1\": invalid digit found in string");
        says(machine.max_address, "max_address: \"\\u{1b}[31m\": invalid digit found in string");
        assert!(
            matches!(&machine.keys, Fact::Unclear(t) if t.ends_with("\"0123\" is not a hash of 64 hexadecimal digits"))
        );
        assert!(matches!(&machine.uv_facility, Fact::Unclear(t) if t.ends_with("not a regular file")));
        assert_eq!(machine.kvm, Kvm::Unprotected);
    }

    #[test]
    fn the_facts_of_any_machine_can_be_read() {
        let machine = read(&Root("/".into()), Count::Always);
        assert!(!machine.architecture.is_empty());
        if cfg!(target_arch = "x86_64") {
            assert_eq!(machine.prot_virt_host, Fact::Absent);
            assert_ne!(machine.kvm, Kvm::Protected);
        }
    }

    #[test]
    fn keys_of_zeros_are_no_keys() {
        let zeros = "0".repeat(64);
        assert!(keys(&format!("{zeros}\n{zeros}")).is_err());
        let one = keys(&format!("{}\n{zeros}\n", "ab".repeat(32))).expect("one");
        assert_eq!((one.host.is_some(), one.backup), (true, None));
        assert!(keys(&"é".repeat(32)).is_err());
        assert!(keys("").is_err());
    }

    #[test]
    fn the_kernels_lists_are_read() {
        for (text, wanted) in [("0-3\n", 4), ("0", 1), ("0-3,8,10-11\n", 7), ("", 0), ("x-3", 0), ("3-1", 0)]
        {
            assert_eq!(cpu_count(text), wanted, "{text:?}");
        }
        assert_eq!(memory_mib("MemTotal:       16384000 kB\nMemFree: 1 kB\n"), 16000);
        assert_eq!(memory_mib(""), 0);
        let machine = capacity();
        assert!(machine.memory_mib > 0 && machine.cpus > 0, "{machine:?}");
    }
}
