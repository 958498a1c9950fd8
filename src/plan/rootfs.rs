//! Decides how a container's root file system gets into the guest, from the mounts that containerd sent.

use std::path::{Path, PathBuf};

use crate::config::RootfsMode;
use crate::error::{Error, Result};
use crate::limits;

/// One mount of Task.Create's `rootfs` list, as sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootfsMount {
    pub fstype: String,
    pub source: String,
    pub options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RootfsPlan {
    /// The guest pulls the image of this name.
    Pulled { image: String },
    /// Directories, topmost layer first: packed into one read-only image.
    Packed {
        layers: Vec<PathBuf>,
        /// The container's own directory above the layers: packed, too, if it is not empty.
        upper: Option<PathBuf>,
    },
    /// One directory that only this container uses: packed, not cached.
    Private { directory: PathBuf },
    /// A file or block device with a file system: attached as it is.
    Block { source: PathBuf, fstype: String, read_only: bool, options: Vec<String> },
}

/// The mount option by which a snapshotter leaves an image to the guest.
pub(crate) const PULL_OPTION: &str = "io.katacontainers.volume";

/// File systems a guest mounts from a block device.
const BLOCK_TYPES: [&str; 4] = ["ext4", "ext3", "xfs", "erofs"];

/// Decides from the mounts what of the host becomes the container's root file system.
pub(crate) fn of_the_host(mode: RootfsMode, mounts: &[RootfsMount], root: &Path) -> Result<RootfsPlan> {
    match decide(mounts, root)? {
        RootfsPlan::Packed { .. } | RootfsPlan::Private { .. } if mode == RootfsMode::Block => {
            Err(Error::precondition(
                "rootfs.mode = \"block\": the snapshotter gives folders, and \"block\" attaches file systems on files \
                 or devices only: use a snapshotter like blockfile or devmapper for this runtime, or \"packed\"",
            ))
        }
        plan => Ok(plan),
    }
}

/// Without any mount (CRI-O, `ctr run --rootfs`), the spec's root is mounted already.
fn decide(mounts: &[RootfsMount], root: &Path) -> Result<RootfsPlan> {
    let mount = match mounts {
        [] => return Ok(RootfsPlan::Private { directory: absolute("root.path", &root.to_string_lossy())? }),
        [one] => one,
        many => {
            return Err(Error::unimplemented(format!(
                "root file system of {} mounts (erofs snapshotter): not supported yet, use overlayfs",
                many.len()
            )));
        }
    };
    if mount.options.iter().any(|option| option.starts_with(PULL_OPTION)) {
        return Err(Error::precondition(format!(
            "root file system option {PULL_OPTION}: the snapshotter leaves the image to the guest: set rootfs.mode = \
             \"guest-pull\", or use another snapshotter for this runtime"
        )));
    }
    if let Some(option) = mount.options.iter().find(|o| o.starts_with("X-containerd.")) {
        return Err(Error::unimplemented(format!("root file system option {option:?}: not supported yet")));
    }
    match mount.fstype.as_str() {
        "overlay" => overlay(mount),
        "bind" => Ok(RootfsPlan::Private { directory: absolute("bind source", &mount.source)? }),
        fstype if BLOCK_TYPES.contains(&fstype) => block(mount),
        other => Err(Error::invalid(format!(
            "root file system of type {other:?}: supported are overlay, bind, {}",
            BLOCK_TYPES.join(", ")
        ))),
    }
}

fn overlay(mount: &RootfsMount) -> Result<RootfsPlan> {
    let value = |key: &str| mount.options.iter().find_map(|o| o.strip_prefix(key)?.strip_prefix('='));
    let lower = value("lowerdir")
        .ok_or_else(|| Error::invalid("overlay root file system: its mount has no lowerdir option"))?;
    let layers =
        split_layers(lower).iter().map(|layer| absolute("lowerdir", layer)).collect::<Result<Vec<_>>>()?;
    if layers.len() > limits::spec::ROOTFS_LAYERS {
        return Err(Error::invalid(format!(
            "overlay root file system: {} layers, at most {} are allowed",
            layers.len(),
            limits::spec::ROOTFS_LAYERS
        )));
    }
    let upper = value("upperdir").map(|path| absolute("upperdir", path)).transpose()?;
    Ok(RootfsPlan::Packed { layers, upper })
}

/// The syntax of overlayfs: colons separate layers; a backslash escapes the next character.
fn split_layers(text: &str) -> Vec<String> {
    let mut layers = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' => layers.push(String::new()),
            '\\' => layers.iter_mut().last().into_iter().for_each(|l| l.extend(chars.next())),
            other => layers.iter_mut().last().into_iter().for_each(|l| l.push(other)),
        }
    }
    layers
}

fn block(mount: &RootfsMount) -> Result<RootfsPlan> {
    let read_only = mount.options.iter().any(|o| o == "ro") || mount.fstype == "erofs";
    let mut options: Vec<String> =
        mount.options.iter().filter(|o| !matches!(o.as_str(), "loop" | "rw" | "ro")).cloned().collect();
    if read_only {
        options.push("ro".into());
    }
    Ok(RootfsPlan::Block {
        source: absolute("block source", &mount.source)?,
        fstype: mount.fstype.clone(),
        read_only,
        options,
    })
}

fn absolute(what: &str, path: &str) -> Result<PathBuf> {
    let given = Path::new(path);
    let plain = given.components().all(|c| !matches!(c, std::path::Component::ParentDir));
    if given.is_absolute() && plain && !path.contains('\0') {
        return Ok(given.to_path_buf());
    }
    Err(Error::invalid(format!("root file system: {what} {path:?} is not an absolute path without \"..\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(fstype: &str, source: &str, options: &[&str]) -> RootfsMount {
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        RootfsMount { fstype: fstype.into(), source: source.into(), options }
    }

    fn of(mounts: &[RootfsMount]) -> Result<RootfsPlan> {
        of_the_host(RootfsMode::Packed, mounts, Path::new("/b/rootfs"))
    }

    #[test]
    fn nothing_is_packed_where_only_disks_are_wanted() {
        let block = |mounts: &[RootfsMount]| of_the_host(RootfsMode::Block, mounts, Path::new("/b/rootfs"));
        for mounts in
            [vec![], vec![mount("bind", "/s/1", &[])], vec![mount("overlay", "o", &["lowerdir=/s/1"])]]
        {
            assert!(of(&mounts).is_ok());
            let e = block(&mounts).expect_err("folders").to_string();
            assert!(e.starts_with("rootfs.mode = \"block\": the snapshotter gives folders"), "{e}");
        }
        assert!(block(&[mount("ext4", "/s/1.img", &["loop"])]).is_ok());
    }

    #[test]
    fn each_kind_of_snapshot() {
        let overlay = mount(
            "overlay",
            "overlay",
            &["workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs"],
        );
        assert_eq!(
            of(&[overlay]),
            Ok(RootfsPlan::Packed {
                layers: vec!["/s/2/fs".into(), "/s/1/fs".into()],
                upper: Some("/s/3/fs".into())
            })
        );
        let native = mount("bind", "/s/1", &["rbind", "rw"]);
        assert_eq!(of(&[native]), Ok(RootfsPlan::Private { directory: "/s/1".into() }));
        assert_eq!(of(&[]), Ok(RootfsPlan::Private { directory: "/b/rootfs".into() }));
        let file = mount("ext4", "/s/1.img", &["loop", "discard"]);
        assert_eq!(
            of(&[file]),
            Ok(RootfsPlan::Block {
                source: "/s/1.img".into(),
                fstype: "ext4".into(),
                read_only: false,
                options: vec!["discard".into()]
            })
        );
    }

    #[test]
    fn escaped_colons_and_commas_stay_in_a_layers_name() {
        assert_eq!(split_layers("/a\\:b:/c\\,d\\\\"), ["/a:b", "/c,d\\"]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (mounts, wanted) in [
            (vec![mount("overlay", "o", &[])], "no lowerdir"),
            (vec![mount("overlay", "o", &["lowerdir=rel"])], "lowerdir \"rel\""),
            (vec![mount("overlay", "o", &["lowerdir=/a/../../etc"])], "without \"..\""),
            (vec![mount("btrfs", "/x", &[])], "type \"btrfs\""),
            (
                vec![mount("fuse.x", "/x", &["io.katacontainers.volume=abc"])],
                "set rootfs.mode = \"guest-pull\"",
            ),
            (vec![mount("erofs", "/x", &["loop"]), mount("erofs", "/y", &["loop"])], "2 mounts"),
            (vec![mount("overlay", "o", &["X-containerd.mkdir.path=/x"])], "X-containerd.mkdir"),
        ] {
            let e = of(&mounts).expect_err(wanted).to_string();
            assert!(e.contains(wanted), "{e}");
        }
    }
}
