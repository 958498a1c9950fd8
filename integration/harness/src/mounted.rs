//! A file system that a test mounts and a block device that it makes, until they are dropped.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount, umount};
use serde_json::{Value, json};

#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// Of this type, with these options of its own; the folder is made if needed.
    pub fn new(typ: &str, at: PathBuf, options: Option<&str>) -> Self {
        fs::create_dir_all(&at).expect("folder");
        mount(Some("none"), &at, Some(typ), MsFlags::empty(), options).expect("mount");
        Self(at)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount(&self.0).ok();
    }
}

/// A loop device with a file behind it.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    file: tempfile::NamedTempFile,
}

impl LoopDevice {
    /// None: this machine has no loop devices.
    pub fn new(bytes: u64) -> Option<Self> {
        let file = tempfile::Builder::new().prefix("kst").tempfile_in("/tmp").expect("file");
        file.as_file().set_len(bytes).expect("size");
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file.path()).output();
        let output = output.ok().filter(|output| output.status.success())?;
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        Some(Self { path, file })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its content.
    pub fn file(&self) -> &Path {
        self.file.path()
    }

    /// As an entry of a spec's devices, with this name in the container.
    pub fn named(&self, path: &str) -> Value {
        let number = fs::metadata(&self.path).expect("device").rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        json!({"path": path, "type": "b", "major": major, "minor": minor, "fileMode": 384, "uid": 0, "gid": 0})
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        Command::new("losetup").arg("--detach").arg(&self.path).status().ok();
    }
}
