//! A file system that a test mounts, until it is dropped.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount, umount};

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
