//! A machine with Secure Execution as a folder: host keys, their documents, and what its kernel reports.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use p521::SecretKey;

use crate::certificates::{HOST, INTERMEDIATE, Issuer, ROOT, SIGNING, certificate, revocation_list};
use crate::header::{self, flag};
use crate::unpack::Host;
use crate::{Result, keys, read_file, secrets, write_file};

/// What the machine's kernel reports below `root/sys/firmware/uv`, in Linux's format
/// (arch/s390/kernel/uv.c): addresses and masks in hexadecimal without a prefix.
const FACTS: [(&str, &str); 13] = [
    ("prot_virt_host", "1"),
    ("prot_virt_guest", "0"),
    ("query/facilities", "7f800000f0000000\n3fff000000000000\n0\n0"),
    ("query/feature_indications", "0"),
    ("query/max_cpus", "248"),
    ("query/max_guests", "65536"),
    ("query/max_address", "7ffffffffff"),
    ("query/supp_se_hdr_ver", VERSION_1),
    ("query/supp_att_req_hdr_ver", VERSION_1),
    ("query/supp_att_pflags", "c000000000000000"),
    ("query/supp_add_secret_req_ver", "0"),
    ("query/supp_add_secret_pcf", "0"),
    ("query/max_secrets", "0"),
];

/// A bit for each version, counted from the left: the second is version 1.
const VERSION_1: &str = "4000000000000000";

/// Lines of `keys/all`; behind the two keys they are zero.
const KEY_LINES: usize = 15;

/// How a machine differs from others.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The same keys each time.
    pub seed: Option<String>,
    /// It does not know the flag that allows dumps.
    pub without_dump: bool,
}

/// Files of a machine below its folder.
#[derive(Clone, Debug)]
pub struct Machine {
    folder: PathBuf,
}

impl Machine {
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The folder used as `/`: `sys/firmware/uv` is below it.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// The document of the host key, as a customer gets it.
    pub fn document(&self) -> PathBuf {
        self.folder.join("host-key.crt")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Creates the folder and everything in it.
    pub fn make(&self, options: &Options) -> Result<()> {
        let key = |purpose: &str| {
            let seed = options.seed.as_deref();
            keys::private(&secrets::take::<64>(seed, &format!("machine: {purpose}"))?)
        };
        let (host, backup) = (key("host")?, key("backup host")?);
        fs::create_dir_all(&self.folder).map_err(|e| format!("make {}: {e}", self.folder.display()))?;
        self.write("host-key.hex", &keys::hex(&host.to_bytes()))?;
        self.write("backup-host-key.hex", &keys::hex(&backup.to_bytes()))?;
        self.chain(&[key("root")?, key("intermediate")?, key("signing")?], &host, &backup)?;
        self.kernel(&host, &backup, options)
    }

    fn chain(
        &self,
        [root, middle, signing]: &[SecretKey; 3],
        host: &SecretKey,
        backup: &SecretKey,
    ) -> Result<()> {
        let root = Issuer { name: ROOT, key: root };
        let middle = Issuer { name: INTERMEDIATE, key: middle };
        let signing = Issuer { name: SIGNING, key: signing };
        let issued =
            |by: Issuer, to: Issuer, number| certificate(by, to.name, &to.key.public_key(), number, true);
        self.write("root.crt", &issued(root, root, 1)?)?;
        self.write("intermediate.crt", &issued(root, middle, 2)?)?;
        self.write("signing-key.crt", &issued(middle, signing, 3)?)?;
        self.write("host-key.crt", &certificate(signing, HOST, &host.public_key(), 4, false)?)?;
        self.write("backup-host-key.crt", &certificate(signing, HOST, &backup.public_key(), 5, false)?)?;
        self.write("root.crl", &revocation_list(root)?)?;
        self.write("intermediate.crl", &revocation_list(middle)?)?;
        self.write("signing-key.crl", &revocation_list(signing)?)
    }

    fn kernel(&self, host: &SecretKey, backup: &SecretKey, options: &Options) -> Result<()> {
        let uv = "root/sys/firmware/uv";
        for (name, text) in FACTS {
            self.write(&format!("{uv}/{name}"), text)?;
        }
        let mut flags = 0xf0 | flag(header::NO_COMPONENT_ENCRYPTION) | flag(header::BACKUP_TARGET_KEYS);
        if !options.without_dump {
            flags |= flag(header::DUMP_ALLOWED);
        }
        self.write(&format!("{uv}/query/supp_se_hdr_pcf"), &format!("{flags:x}"))?;
        let mut lines =
            vec![keys::hex(&keys::hash(&host.public_key())), keys::hex(&keys::hash(&backup.public_key()))];
        lines.resize(KEY_LINES, "0".repeat(64));
        self.write(&format!("{uv}/keys/all"), &lines.join("\n"))?;
        // Replaces uname and KVM's answer where kata-se reads a machine made of files.
        self.write("root/proc/sys/kernel/arch", "s390x")?;
        self.write("root/dev/kvm", "1")?;
        let kvm = self.file("root/dev/kvm");
        fs::set_permissions(&kvm, fs::Permissions::from_mode(0o666))
            .map_err(|e| format!("chmod {}: {e}", kvm.display()))?;
        let facilities = "facilities      : 0 1 2 3 4 6 7 8 9 10 12 14 129 130 131 134 135 146 155 158 161";
        self.write("root/proc/cpuinfo", &format!("vendor_id       : IBM/S390\n{facilities}"))
    }

    /// Writes text and a newline; creates the folders.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.file(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| format!("make {}: {e}", parent.display()))?;
        }
        write_file(&path, format!("{}\n", text.trim_end()).as_bytes())
    }

    /// Whether it is a host for protected guests.
    pub fn is_host(&self) -> bool {
        self.fact("prot_virt_host").is_ok_and(|text| text == "1")
    }

    pub fn max_cpus(&self) -> Result<u64> {
        let text = self.fact("query/max_cpus")?;
        text.parse().map_err(|e| format!("max_cpus {text}: {e}"))
    }

    /// What its ultravisor knows.
    pub fn host(&self) -> Result<Host> {
        let mask = |name: &str| {
            let text = self.fact(name)?;
            u64::from_str_radix(&text, 16).map_err(|e| format!("{name} {text}: {e}"))
        };
        let key = |name: &str| keys::private(&keys::from_hex(&text(&self.file(name))?)?);
        Ok(Host {
            key: key("host-key.hex")?,
            backup_key: Some(key("backup-host-key.hex")?),
            flags: mask("query/supp_se_hdr_pcf")?,
            versions: mask("query/supp_se_hdr_ver")?,
            secret_flags: flag(1) | flag(2),
        })
    }

    fn fact(&self, name: &str) -> Result<String> {
        text(&self.root().join("sys/firmware/uv").join(name))
    }
}

fn text(path: &Path) -> Result<String> {
    let text = String::from_utf8(read_file(path)?).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(text.trim().to_owned())
}
