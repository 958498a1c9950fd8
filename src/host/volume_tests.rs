//! Listing and reading volumes whose content is hostile or changes meanwhile.

use super::*;
use crate::config::EmptyDirMode;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

/// A folder for a test. None: qemu-user, under which these tests run as s390x programs too, may not know openat2;
/// kernels that can host protected guests (5.7 and later) do.
fn folder() -> Option<tempfile::TempDir> {
    let known = openat2(File::open("/").expect("root"), ".", OpenHow::new()).err() != Some(Errno::ENOSYS);
    known.then(|| tempfile::tempdir().expect("dir"))
}

fn budget() -> Budget {
    Budget::new(VolumesConfig {
        empty_dir: EmptyDirMode::GuestLocal,
        empty_dir_gib: 0,
        max_empty_dir_gib: 0,
        copied_mib: 64,
        copied_files: 4096,
    })
}

fn listed(source: &Path) -> Volume {
    Volume::list(source, &mut budget()).expect("list")
}

fn paths(volume: &Volume) -> Vec<&str> {
    volume.entries.iter().map(|e| e.path.to_str().expect("text")).collect()
}

fn content(volume: &Volume, path: &str) -> Option<Vec<u8>> {
    let (mut file, length) = volume.open(Path::new(path), u64::MAX).expect("open")?;
    Some(read_piece(&mut file, length).expect("read"))
}

#[test]
fn kinds_are_told_apart() {
    let dir = tempfile::tempdir().expect("dir");
    let at = |name: &str| dir.path().join(name);
    fs::write(at("f"), "x").expect("write");
    symlink("f", at("l")).expect("link");
    let _socket = std::os::unix::net::UnixListener::bind(at("s")).expect("bind");
    nix::unistd::mkfifo(&at("p"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    for (path, wanted) in [
        (at("f"), SourceKind::File),
        (at("l"), SourceKind::File),
        (at("s"), SourceKind::Special("socket")),
        (at("p"), SourceKind::Special("fifo")),
        ("/dev/null".into(), SourceKind::Special("character device")),
    ] {
        assert_eq!(kind(&path), Ok(wanted), "{}", path.display());
    }
    assert!(matches!(kind(dir.path()), Ok(SourceKind::Directory { .. })));
    let pod = dir.path().join("pods/1234");
    for (folder, plugin, wanted) in [
        ("volumes/kubernetes.io~csi/pvc-1/mount", "", SourceKind::Persistent),
        ("volume-subpaths/pvc-1/app/0", "kubernetes.io~csi/pvc-1", SourceKind::Persistent),
        ("volume-subpaths/cache/app/1", "kubernetes.io~empty-dir/cache", SourceKind::PartOfEmptyDir),
        ("volumes/kubernetes.io~empty-dir/cache/sub", "", SourceKind::PartOfEmptyDir),
    ] {
        std::fs::create_dir_all(pod.join("volumes").join(plugin)).expect("volume");
        std::fs::create_dir_all(pod.join(folder)).expect("folder");
        assert_eq!(kind(&pod.join(folder)), Ok(wanted), "{folder}");
    }
    let cache = pod.join("volumes/kubernetes.io~empty-dir/cache");
    assert!(matches!(kind(&cache), Ok(SourceKind::Directory { .. })));
    let config = pod.join("volumes/kubernetes.io~configmap/c");
    std::fs::create_dir_all(pod.join("volume-subpaths/c/app/0")).expect("folder");
    for folder in [config, pod.join("volume-subpaths/c/app/0")] {
        std::fs::create_dir_all(&folder).expect("folder");
        assert!(matches!(kind(&folder), Ok(SourceKind::Directory { .. })), "{}", folder.display());
    }
    assert!(matches!(kind(Path::new("/dev/shm")), Ok(SourceKind::Directory { in_memory: true, .. })));
    assert_eq!(kind(&at("x")).expect_err("none").code(), Code::NotFound);
}

#[test]
fn a_volume_of_the_kubelet_is_listed_folders_first_with_its_links() {
    let Some(dir) = folder() else { return };
    fs::create_dir(dir.path().join("..1")).expect("folder");
    fs::write(dir.path().join("..1/key"), "value").expect("write");
    fs::set_permissions(dir.path().join("..1/key"), fs::Permissions::from_mode(0o640)).expect("chmod");
    symlink("..1", dir.path().join("..data")).expect("link");
    symlink("..data/key", dir.path().join("key")).expect("link");
    let volume = listed(dir.path());
    assert_eq!(paths(&volume), ["", "..1", "..data", "key", "..1/key"]);
    assert_eq!(volume.entries[3].node, Node::Link(b"..data/key".to_vec()));
    assert_eq!(volume.entries[4].mode, libc::S_IFREG | 0o640);
    assert_eq!(content(&volume, "..1/key").as_deref(), Some(&b"value"[..]));
    assert_eq!(content(&volume, "key"), None, "a link is not followed");
}

#[test]
fn a_file_alone_is_a_volume_and_can_be_read_twice() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("hosts");
    fs::write(&path, "127.0.0.1").expect("write");
    let volume = listed(&path);
    assert_eq!(paths(&volume), [""]);
    for _ in 0..2 {
        assert_eq!(content(&volume, "").as_deref(), Some(&b"127.0.0.1"[..]));
    }
}

#[test]
fn nothing_outside_is_read_whatever_is_put_in_its_place() {
    let Some(dir) = folder() else { return };
    let at = |name: &str| dir.path().join(name);
    fs::write(at("secret"), "canary").expect("write");
    fs::create_dir_all(at("v/a")).expect("folder");
    fs::write(at("v/a/secret"), "fine").expect("write");
    let volume = listed(&at("v"));
    fs::remove_dir_all(at("v/a")).expect("remove");
    for outside in ["..", "../../", dir.path().to_str().expect("text")] {
        symlink(outside, at("v/a")).expect("link");
        assert_eq!(content(&volume, "a/secret"), None, "{outside}");
        fs::remove_file(at("v/a")).expect("remove");
    }
    assert!(volume.open(Path::new("../secret"), 9).is_err(), "above the volume");
    // A folder swapped with a link again and again while it is listed and read.
    fs::create_dir(at("v/a")).expect("folder");
    fs::write(at("v/a/secret"), "fine").expect("write");
    symlink(dir.path(), at("v/b")).expect("link");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (a, b) = (at("v/a"), at("v/b"));
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                let here = nix::fcntl::AT_FDCWD;
                nix::fcntl::renameat2(here, &a, here, &b, flags).expect("swap");
            }
        });
        // As a program of another architecture, in emulation, fewer.
        for _ in 0..if cfg!(target_arch = "s390x") { 2000 } else { 100_000 } {
            // It may be a link by the time it is opened as a folder: an error, never its content.
            let Ok(volume) = Volume::list(&at("v"), &mut budget()) else { continue };
            for path in ["a/secret", "b/secret"] {
                if let Ok(Some((mut file, length))) = volume.open(Path::new(path), 9) {
                    assert_eq!(read_piece(&mut file, length).expect("read"), b"fine");
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn what_has_no_content_is_counted_and_bounds_are_named() {
    let Some(dir) = folder() else { return };
    let at = |name: &str| dir.path().join(name);
    nix::unistd::mkfifo(&at("p"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    assert_eq!(listed(dir.path()).skipped, 1);
    File::create(at("sparse")).and_then(|f| f.set_len(1 << 40)).expect("sparse");
    let e = Volume::list(dir.path(), &mut budget()).expect_err("large");
    assert_eq!(e.code(), Code::ResourceExhausted);
    assert!(e.to_string().contains("larger than can be copied into a guest (64 MiB"), "{e}");
    fs::remove_file(at("sparse")).expect("remove");
    for n in 0..20 {
        fs::write(at(&format!("f{n}")), "").expect("write");
    }
    let e = Volume::list(dir.path(), &mut Budget { bytes: 10, entries: 10, ..budget() }).expect_err("many");
    assert!(e.to_string().contains("more files and folders than can be copied"), "{e}");
    let deep: PathBuf = (0..40).map(|_| "d").collect();
    fs::create_dir_all(dir.path().join(deep)).expect("folders");
    let e = Volume::list(dir.path(), &mut budget()).expect_err("deep");
    assert!(e.to_string().contains("folders nested deeper than 32"), "{e}");
}

#[test]
fn a_file_that_grew_after_it_was_listed_is_counted_as_it_is_now() {
    let Some(dir) = folder() else { return };
    let path = dir.path().join("f");
    fs::write(&path, "12345").expect("write");
    let volume = listed(dir.path());
    fs::write(&path, "1234567890").expect("grow");
    assert!(matches!(volume.open(Path::new("f"), 10), Ok(Some((_, 10)))));
    let e = volume.open(Path::new("f"), 9).expect_err("grown");
    assert_eq!(e.code(), Code::ResourceExhausted);
    assert!(e.to_string().starts_with("f: larger than can be copied into a guest (64 MiB"), "{e}");
}
