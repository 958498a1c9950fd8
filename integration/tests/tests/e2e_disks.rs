//! Volumes that are disks, in a real guest: emptyDirs that it formats and encrypts, and raw block volumes.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use harness::{Containerd, LoopDevice, MEMBER, SANDBOX};

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// What a container writes, and nothing else on the node has.
const NOTE: &str = "for-this-guest-alone";

fn node(mode: &str) -> Containerd {
    let node = Containerd::new();
    fs::create_dir_all(node.path("config.d")).expect("folder");
    let volumes = format!("[volumes]\nempty_dir = \"{mode}\"\nempty_dir_gib = 1\n");
    fs::write(node.path("config.d/volumes.toml"), volumes).expect("configuration");
    node
}

fn volume(node: &Containerd, name: &str, gid: u32) -> PathBuf {
    let folder = node.path(&format!("pods/u/volumes/kubernetes.io~empty-dir/{name}"));
    fs::create_dir_all(&folder).expect("folder");
    std::os::unix::fs::chown(&folder, None, Some(gid)).expect("chown");
    folder
}

fn mount(source: &Path, at: &str) -> String {
    format!("type=bind,src={},dst={at},options=rbind:rprivate:rw", source.display())
}

/// Whether a file has this text somewhere in what it has on the disk.
fn has(file: &Path, text: &str) -> bool {
    let opened = fs::File::open(file).expect("open");
    let size = opened.metadata().expect("size").len();
    let mut piece = vec![0; (1 << 20) + text.len()];
    (0..size.div_ceil(1 << 20)).any(|at| {
        let read = opened.read_at(&mut piece, at << 20).expect("read");
        piece[..read].windows(text.len()).any(|window| window == text.as_bytes())
    })
}

/// A pod of two containers with two emptyDirs; the second one of which belongs to a group. Returns the first one's
/// disk, with the pod's containers running, and what they say of it.
fn pod_with_volumes(node: &Containerd) -> (PathBuf, String) {
    let (cache, owned) = (volume(node, "cache", 0), volume(node, "owned", 2000));
    let (at_cache, at_owned) = (mount(&cache, "/cache"), mount(&owned, "/owned"));
    let volumes = ["--mount", at_cache.as_str(), "--mount", at_owned.as_str()];
    let mut sandbox = node.running(&SANDBOX, "pod", FOREVER);
    let mut one = node.running(&[&MEMBER[..], &volumes].concat(), "one", FOREVER);
    let script = format!(
        "grep ' /cache ' /proc/mounts | cut -d' ' -f1,3; df -m /cache | awk 'NR == 2 {{print ($2 > 500)}}'; \
         stat -c '%g %A' /owned; ls -A /cache; echo {NOTE} > /cache/note; sync"
    );
    let output = node.exec("one", "e1", &["sh", "-c", &script]);
    let mut said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let mut two = node.run(&[&MEMBER[..], &["--mount", &at_cache]].concat(), "two", &["cat", "/cache/note"]);
    let output = two.output().expect("ctr");
    said += &String::from_utf8_lossy(&[output.stdout, output.stderr].concat());
    let disk = cache.join("disk.img");
    let meta = fs::metadata(&disk).expect("disk");
    assert_eq!((meta.mode() & 0o7777, meta.len()), (0o600, 1 << 30));
    assert!(meta.blocks() * 512 < meta.len() / 2, "sparse: {} blocks", meta.blocks());
    let copy = node.path("copy");
    std::process::Command::new("cp").arg("--sparse=always").args([&disk, &copy]).status().expect("cp");
    node.remove("two");
    for (id, child) in [("one", &mut one), ("pod", &mut sandbox)] {
        node.ctr_ok(&["task", "kill", id]);
        child.wait().expect("ctr");
        node.remove(id);
    }
    assert!(!disk.exists() && !owned.join("disk.img").exists(), "gone with the pod");
    (copy, said)
}

#[test]
fn an_empty_dir_is_formatted_and_encrypted_by_the_guest_and_shared_by_its_pod() {
    let node = node("block-encrypted");
    let (disk, said) = pod_with_volumes(&node);
    assert_eq!(
        said,
        format!("/dev/mapper/sda ext4\n1\n2000 drwxrwsr-x\nlost+found\n{NOTE}\n"),
        "{}",
        node.log()
    );
    assert!(!has(&disk, NOTE), "the node can read it");
    node.assert_clean();
}

#[test]
fn a_plain_empty_dir_is_the_same_in_clear_and_punches_out_what_is_removed() {
    let node = node("block-plain");
    let (disk, said) = pod_with_volumes(&node);
    assert_eq!(said, format!("/dev/sda ext4\n1\n2000 drwxrwsr-x\nlost+found\n{NOTE}\n"), "{}", node.log());
    assert!(has(&disk, NOTE));
    node.assert_clean();
}

#[test]
fn a_raw_block_volume_is_the_hosts_device() {
    let Some(device) = LoopDevice::new(4 << 20) else { return };
    let node = Containerd::new();
    fs::OpenOptions::new()
        .write(true)
        .open(device.file())
        .expect("file")
        .write_at(b"from the node", 512)
        .expect("write");
    let path = device.path().display().to_string();
    let options = ["--rm", "--device", &path];
    let script = format!(
        "dd if={path} bs=512 skip=1 count=1 2> /dev/null | head -c 13; echo; stat -c %F {path}; \
         cat /sys/block/sda/size; printf '%s' {NOTE} | dd of={path} bs=512 seek=2 conv=fsync 2> /dev/null && echo written"
    );
    let output = node.run(&options, "c1", &["sh", "-c", &script]).output().expect("ctr");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(said, "from the node\nblock special file\n8192\nwritten\n", "{}", node.log());
    assert!(has(device.file(), NOTE));
    node.assert_clean();
}
