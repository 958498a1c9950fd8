//! A node with Secure Execution, emulated by softuv: a private containerd with a test build of the shim, the
//! machine as a folder, images sealed for it, and the production configuration.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use crate::{Containerd, USER, cached, copied, test_program, vsock_program};

/// The guest's kernel parameters, sealed with it.
const COMMAND_LINE: &str = "console=ttysclp0 panic=-1 quiet cgroup_no_v1=all";

/// One node; when it is dropped, everything on it has to be gone.
#[derive(Debug)]
pub struct SealedNode {
    pub node: Containerd,
    dir: TempDir,
}

impl SealedNode {
    /// A machine without dumps; `kata-se.img` is sealed for it and configured.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("kst").tempdir_in("/tmp").expect("temporary folder");
        let machine = dir.path().join("machine");
        softuv("softuv-machine", &["--without-dump", "--out", &machine.display().to_string()]);
        copied(&test_program("qemu-softuv"), dir.path().join("qemu"));
        vsock_program(dir.path());
        let orders = json!({"machine": machine}).to_string();
        fs::write(dir.path().join("softuv.json"), orders).expect("softuv.json");
        let shim = test_program("containerd-shim-kata-se-v2");
        let root = vec![("KATA_SE_SYS_ROOT", machine.join("root"))];
        let sealed = Self { node: Containerd::under("1.6", "", shim, root), dir };
        let image = sealed.seal("kata-se.img", "", &[]);
        fs::write(sealed.node.path("config.toml"), sealed.config(&image, &[])).expect("config");
        sealed
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Seals the guest for this machine, with more kernel parameters and options of `seal-image`.
    pub fn seal(&self, name: &str, parameters: &str, options: &[&str]) -> PathBuf {
        self.seal_for("machine", name, parameters, options)
    }

    /// Seals it for the machine in another folder, which is created if needed.
    pub fn seal_for(&self, machine: &str, name: &str, parameters: &str, options: &[&str]) -> PathBuf {
        let show = |path: PathBuf| path.display().to_string();
        if !self.path(machine).is_dir() {
            softuv("softuv-machine", &["--out", &show(self.path(machine))]);
        }
        let image = self.path(name);
        let (kernel, initrd) = (show(cached("guest/kernel")), show(cached("guest/initrd.img")));
        let document = show(self.path(machine).join("host-key.crt"));
        let command_line = format!("{COMMAND_LINE} {parameters}");
        let words = [
            &["--loaders", &show(cached("guest/loaders")), "--kernel", &kernel, "--initrd", &initrd],
            &["--command-line", command_line.trim_end(), "--host-key", &document][..],
            &["--out", &show(image.clone())],
            options,
        ];
        softuv("seal-image", &words.concat());
        image
    }

    /// The production configuration for this node and image, with other values of some keys.
    pub fn config(&self, image: &Path, more: &[(&str, &str)]) -> String {
        let quoted = |path: PathBuf| format!("\"{}\"", path.display());
        let vsock = format!("\"vhost-user\"\nprogram = {}", quoted(self.path("vsock-program")));
        let (qemu, layers) = (quoted(self.path("qemu")), quoted(self.node.path("layers")));
        let image = quoted(image.to_path_buf());
        let user = format!("\"{USER}\"");
        let own = [
            ("path", qemu.as_str()),
            ("user", &user),
            ("image", &image),
            ("memory_mib", "512"),
            ("device", &vsock),
            ("mode", "\"packed\""),
            ("trust_host", "true"),
            ("cache_dir", &layers),
            ("level", "\"debug\""),
        ];
        production(&[&own, more].concat())
    }
}

impl Default for SealedNode {
    fn default() -> Self {
        Self::new()
    }
}

/// The production configuration with other values for these keys, which it must contain.
pub fn production(changes: &[(&str, &str)]) -> String {
    let mut text = include_str!("../../../configs/kata-se.toml").to_owned();
    for (key, value) in changes {
        let from = text.find(&format!("\n{key} = ")).unwrap_or_else(|| panic!("no key {key}")) + 1;
        let end = text.get(from..).and_then(|rest| rest.find('\n')).expect("a line") + from;
        text.replace_range(from..end, &format!("{key} = {value}"));
    }
    text
}

/// Runs one of softuv's programs.
pub fn softuv(name: &str, words: &[&str]) {
    let output = std::process::Command::new(test_program(name)).args(words).output().expect(name);
    assert!(output.status.success(), "{name} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}
