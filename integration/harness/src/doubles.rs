//! The doubles of QEMU and of the guest, so that a pod needs no VM: below one folder, with their
//! orders, the script of misbehaviour and the configuration that names them.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::test_program;

/// The doubles of one folder.
#[derive(Debug)]
pub struct Doubles {
    dir: PathBuf,
    /// Each guest has a separate folder.
    apart: bool,
}

impl Doubles {
    pub(crate) fn new(dir: &Path, apart: bool) -> Self {
        let doubles = Self { dir: dir.to_path_buf(), apart };
        for name in ["bin", "guest", "record"] {
            fs::create_dir(doubles.path(name)).expect(name);
        }
        for name in ["qemu", "vsock"] {
            symlink(test_program("qemu-double"), doubles.path("bin").join(name)).expect("link");
        }
        fs::write(doubles.path("kernel"), b"").expect("kernel");
        fs::write(doubles.path("initrd"), b"").expect("initrd");
        doubles.double(|_| ());
        doubles
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes the double's orders, changed by `change`.
    pub fn double(&self, change: impl FnOnce(&mut Value)) {
        let mut orders = json!({
            "agent": test_program("guest-agent"),
            "root": self.path("guest"),
            "apart": self.apart,
            "record": self.path("record/requests"),
            "script": self.path("record/script"),
            "disks": self.path("record/disks"),
        });
        change(&mut orders);
        // Written whole: the double may be reading.
        fs::write(self.path("bin/.new"), orders.to_string()).expect("double.json");
        fs::rename(self.path("bin/.new"), self.path("bin/double.json")).expect("double.json");
    }

    /// Writes the script of the agent's misbehaviour.
    pub fn script(&self, rules: &Value) {
        self.write_script(&json!({"rules": rules}));
    }

    fn write_script(&self, script: &Value) {
        let text = script.to_string();
        fs::write(self.path("record/.new"), text).expect("script");
        // The kernel's modification time is too coarse to distinguish two scripts.
        let file = File::options().write(true).open(self.path("record/.new")).expect("script");
        file.set_modified(std::time::SystemTime::now()).expect("script");
        fs::rename(self.path("record/.new"), self.path("record/script")).expect("script");
    }

    /// Writes a policy that the guest has from its image, with the script's rules gone.
    pub fn policy(&self, rego: &str) {
        self.write_script(&json!({"rules": [], "policy": rego}));
    }

    /// Writes `config.toml` with more lines at its end.
    pub fn config(&self, more: &str) {
        let at = |name: &str| self.path(name).display().to_string();
        let text = format!(
            "[qemu]\npath = \"{}\"\naccelerator = \"tcg\"\nuser = \"root\"\n[guest]\nconfidential = false\nkernel = \"{}\"\n\
             initrd = \"{}\"\nmemory_mib = 256\n[vsock]\ndevice = \"vhost-user\"\nprogram = \"{}\"\n\
             [rootfs]\ncache_dir = \"{}\"\n[log]\nlevel = \"debug\"\n[agent]\ncall_timeout_s = 5\ncreate_timeout_s = 5\nconnect_timeout_s = 10\n{more}",
            at("bin/qemu"),
            at("kernel"),
            at("initrd"),
            at("bin/vsock"),
            at("layers"),
        );
        fs::write(self.path("config.toml"), text).expect("config");
    }

    /// The requests the agents got: method names with their JSON.
    pub fn requests(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("record/requests")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}
