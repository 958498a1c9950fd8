//! A configMap, secret or projected volume as the kubelet writes it on the node.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A volume whose content is replaced as a whole.
#[derive(Debug)]
pub struct KubeletVolume {
    path: PathBuf,
    keys: BTreeSet<String>,
    revision: u32,
}

impl KubeletVolume {
    /// A new one, with these keys and their texts.
    pub fn new(path: PathBuf, keys: &[(&str, &str)]) -> Self {
        fs::create_dir_all(&path).expect("folder");
        let mut volume = Self { path, keys: BTreeSet::new(), revision: 0 };
        volume.update(keys);
        volume
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of the current revision, below the volume.
    pub fn folder(&self) -> String {
        format!("..2026_11_28_11_00_00.{:010}", self.revision)
    }

    /// The kubelet's steps (its `AtomicWriter`), in its order.
    pub fn update(&mut self, keys: &[(&str, &str)]) {
        let old = self.path.join(self.folder());
        self.revision += 1;
        let new = self.path.join(self.folder());
        fs::create_dir(&new).expect("folder");
        for (key, text) in keys {
            fs::write(new.join(key), text).expect("file");
        }
        symlink(self.folder(), self.path.join("..data_tmp")).expect("link");
        fs::rename(self.path.join("..data_tmp"), self.path.join("..data")).expect("swap");
        let wanted: BTreeSet<String> = keys.iter().map(|(key, _)| (*key).to_owned()).collect();
        for key in wanted.difference(&self.keys) {
            symlink(format!("..data/{key}"), self.path.join(key)).expect("link");
        }
        for key in self.keys.difference(&wanted) {
            fs::remove_file(self.path.join(key)).expect("link");
        }
        self.keys = wanted;
        if self.revision > 1 {
            fs::remove_dir_all(old).expect("remove");
        }
    }
}
