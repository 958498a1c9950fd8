//! Root file systems of every kind of snapshot in a real guest: their content is what the image has.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use harness::{Containerd, cached};

const LAYERED: &str = "localhost/layered:s390x";

/// The content of a layered image, then what a container writes into it.
const LOOK: &str = "cd /srv; cat replaced; ls; cat opaque/*; cat kept/below; \
                    echo mine > kept/below && rm replaced && ls opaque && cat kept/below";
const SEEN: &str = "upper\nkept\nopaque\nreplaced\nupper\nlower\nshown\nmine\n";

#[test]
fn layers_of_directories_are_packed_once() {
    let node = Containerd::new();
    for snapshotter in ["overlayfs", "native"] {
        node.import("layered.tar", snapshotter);
        for round in ["1", "2"] {
            let id = format!("{snapshotter}-{round}");
            let options = ["--rm", "--snapshotter", snapshotter];
            let output = node.run_of(LAYERED, &options, &id, &["sh", "-c", LOOK]).output().expect("ctr");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(text, SEEN, "{id}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    let names = fs::read_dir(node.path("layers")).expect("cache").flatten();
    let images = names.filter(|e| e.path().extension().is_some_and(|x| x == "erofs")).count();
    assert_eq!(images, 1, "overlayfs' layers are kept, native's directory is the container's own");
    node.assert_clean();
}

#[test]
fn a_snapshot_that_is_a_block_device_is_attached() {
    let dir = tempfile::tempdir().expect("folder");
    let scratch = dir.path().join("scratch");
    fs::File::create(&scratch).expect("scratch").set_len(64 << 20).expect("size");
    let made = Command::new("mkfs.ext4").arg("-q").arg(&scratch).status().expect("mkfs.ext4");
    assert!(made.success());
    let more = format!(
        "[plugins.\"io.containerd.snapshotter.v1.blockfile\"]\nroot_path = \"{0}/snapshots\"\n\
         scratch_file = \"{0}/scratch\"\nfs_type = \"ext4\"\nmount_options = []\n",
        dir.path().display()
    );
    let node = Containerd::with("2", &more);
    node.import("layered.tar", "blockfile");
    let options = ["--rm", "--snapshotter", "blockfile"];
    let script = format!("{LOOK}; grep ' / ext4 ' /proc/mounts | wc -l");
    let output = node.run_of(LAYERED, &options, "c1", &["sh", "-c", &script]).output().expect("ctr");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // The file system's lost+found is in no layer.
    assert_eq!(text, format!("{SEEN}1\n"), "{}", String::from_utf8_lossy(&output.stderr));
    node.assert_clean();
}

/// Everything an image may contain that a careless copy loses.
fn hostile_tree(root: &Path) {
    fs::create_dir_all(root.join("bin")).expect("bin");
    let busybox = root.join("bin/busybox");
    fs::copy(cached("guest/programs/bin/busybox"), &busybox).expect("busybox");
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).expect("sh");
    fs::create_dir_all(root.join("etc")).expect("etc");
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
        .expect("passwd");
    fs::create_dir_all(root.join("odd/deep")).expect("odd");
    let odd = |name: &str| root.join("odd").join(name);
    for (name, mode, owner) in [
        ("plain", 0o644, 0),
        ("setuid", 0o4755, 0),
        ("setgid", 0o2755, 12),
        ("sticky", 0o1777, 65_534),
        ("nothing", 0, 0),
        ("large-owner", 0o600, 3_000_000_000),
    ] {
        fs::write(odd(name), name).expect("file");
        chown(odd(name), Some(owner), Some(owner)).expect("owner");
        fs::set_permissions(odd(name), fs::Permissions::from_mode(mode)).expect("mode");
    }
    fs::hard_link(odd("plain"), odd("deep/linked")).expect("hard link");
    std::os::unix::fs::symlink("../../../../etc/shadow", odd("escape")).expect("symlink");
    std::os::unix::fs::symlink("loop", odd("loop")).expect("symlink");
    fs::write(odd("space and\nnewline"), "named").expect("file");
    fs::write(odd(&"n".repeat(254)), "long").expect("file"); // mkfs.erofs 1.5 cannot read one of 255
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let mode = Mode::from_bits_truncate(0o666);
    mknod(&odd("null"), SFlag::S_IFCHR, mode, makedev(1, 3)).expect("device");
    mknod(&odd("disk"), SFlag::S_IFBLK, mode, makedev(259, 1_000_000)).expect("device");
    mknod(&odd("fifo"), SFlag::S_IFIFO, mode, 0).expect("fifo");
    for name in ["null", "disk", "fifo"] {
        fs::set_permissions(odd(name), fs::Permissions::from_mode(0o666)).expect("mode"); // whatever the umask
    }
    drop(std::os::unix::net::UnixListener::bind(odd("socket")).expect("socket"));
    // A copy of cat that may read everything, by its extended attribute alone: version 2 with the
    // effective bit, CAP_DAC_OVERRIDE (bit 1) permitted.
    fs::copy(&busybox, odd("cat")).expect("cat");
    let capability = [1, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(odd("cat"), "security.capability", &capability, flags).expect("attribute");
    // A hole of more than 4 GiB with marks at its start, across the 4 GiB boundary and at its end.
    let large = fs::File::create(odd("large")).expect("large");
    large.set_len((4 << 30) + 4096).expect("size");
    for at in [0, (4 << 30) - 2, (4 << 30) + 4092] {
        large.write_all_at(b"MARK", at).expect("mark");
    }
}

#[test]
fn a_hostile_tree_keeps_its_properties() {
    let dir = tempfile::Builder::new().prefix("kst").tempdir_in("/tmp").expect("folder");
    let root = dir.path().join("rootfs");
    hostile_tree(&root);
    let node = Containerd::new();
    let script = "
        PATH=/bin; b=/bin/busybox; cd /odd
        for f in plain setuid setgid sticky nothing large-owner deep/linked null disk fifo socket large; do
            $b stat -c '%n %f %u %g %h %s %t:%T' $f
        done
        $b readlink escape; $b readlink loop
        $b cat 'space and
newline' nnn*; echo
        echo gone > null && $b cat null
        [ $($b stat -c %i plain) = $($b stat -c %i deep/linked) ] && echo one inode
        for at in 0 4294967294 4294971388; do $b dd if=large bs=1 count=4 skip=$at 2> /dev/null; done; echo
        $b su -s /bin/sh nobody -c '/odd/cat /odd/nothing; echo; /bin/busybox cat /odd/nothing'";
    let options = ["--rm", "--rootfs", "--allow-new-privs"];
    let path = root.display().to_string();
    let output =
        node.run_of(&path, &options, "c1", &["/bin/busybox", "sh", "-c", script]).output().expect("ctr");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let wanted = "\
plain 81a4 0 0 2 5 0:0
setuid 89ed 0 0 1 6 0:0
setgid 85ed 12 12 1 6 0:0
sticky 83ff 65534 65534 1 6 0:0
nothing 8000 0 0 1 7 0:0
large-owner 8180 3000000000 3000000000 1 11 0:0
deep/linked 81a4 0 0 2 5 0:0
null 21b6 0 0 1 0 1:3
disk 61b6 0 0 1 0 103:f4240
fifo 11b6 0 0 1 0 0:0
socket c1ed 0 0 1 0 0:0
large 81a4 0 0 1 4294971392 0:0
../../../../etc/shadow
loop
namedlong
one inode
MARKMARKMARK
nothing";
    assert_eq!(text.trim_end(), wanted, "{}", String::from_utf8_lossy(&output.stderr));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("Permission denied"), "not readable without the attribute: {stderr}");
    node.assert_clean();
}
