//! Image layers: the disk of a container has the content of the listed layers, in their order, and nothing else.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Bundle, NO_STREAMS, Shim, TestNode};

/// Docker's images have at most this many.
const LAYERS: usize = 127;

/// Each file of a tree, by its path, with its content.
fn files(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).expect("folder").map(|entry| entry.expect("entry").path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                let below = path.strip_prefix(root).expect("below").to_path_buf();
                found.insert(below, fs::read_to_string(&path).expect("file"));
            }
        }
    }
    found
}

/// mount(2) cuts its options after a page: these paths alone have 26 kB.
#[tokio::test]
async fn an_image_of_127_layers_with_long_paths_has_every_file_from_its_layer() {
    let node = TestNode::new().await;
    let snapshots = node.path("snapshots").join("n".repeat(180));
    let mut wanted = BTreeMap::new();
    let mut layers = Vec::new();
    for number in 1..=LAYERS {
        let layer = snapshots.join(format!("{number:03}/fs"));
        fs::create_dir_all(layer.join("bin")).expect("layer");
        // One file of its own, and two that layers above may replace.
        for name in [format!("own-{number}"), "all".to_owned(), format!("bin/every-tenth-{}", number % 10)] {
            fs::write(layer.join(&name), format!("layer {number}")).expect("file");
            wanted.insert(PathBuf::from(name), format!("layer {number}"));
        }
        layers.push(layer);
    }
    layers.reverse();
    let dir = node.bundle("c1", &Bundle::sh("sleep 1000"));
    let shim = node.shim("c1", &dir).await;
    let topmost_first: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
    shim.create_on("c1", &dir, &topmost_first).await.expect("create");

    let images = fs::read_dir(node.path("layers")).expect("cache").map(|entry| entry.expect("entry").path());
    let images: Vec<PathBuf> = images.filter(|path| path.extension().is_some_and(|e| e == "erofs")).collect();
    let [image] = images.as_slice() else { panic!("{images:?}") };
    let unpacked = node.path("unpacked");
    let extract = format!("--extract={}", unpacked.display());
    let output = Command::new("fsck.erofs").arg(extract).arg(image).output().expect("fsck.erofs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(files(&unpacked), wanted);

    shim.start("c1", "").await.expect("start");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn too_many_layers_are_refused_with_both_numbers() {
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("true"));
    let shim = node.shim("c1", &dir).await;
    let layer = dir.join("rootfs");
    let e = shim.create_on("c1", &dir, &vec![layer.as_path(); 201]).await.expect_err("too many").to_string();
    assert!(e.contains("201 layers, at most 200 are allowed"), "{e}");
    shim.shutdown(true).await.expect("shutdown");
    node.assert_clean();
}

/// A pod on an image with one file of this size; no zeros, which would be holes.
async fn pod_on(node: &TestNode, id: &str, bytes: usize) -> (Shim, Result<u32, String>) {
    let layer = node.path(id);
    fs::create_dir(&layer).expect("layer");
    fs::write(layer.join("file"), vec![7; bytes]).expect("file");
    let dir = node.bundle(id, &Bundle::sh("sleep 1000"));
    let shim = node.shim(id, &dir).await;
    let created = shim.create_on(id, &dir, &[&layer]).await.map_err(|e| e.to_string());
    (shim, created)
}

fn limit_cache(node: &TestNode, mib: u32) {
    let config = fs::read_to_string(node.path("config.toml")).expect("configuration");
    let limited = config.replace("[log]", &format!("cache_mib = {mib}\n[log]"));
    fs::write(node.path("config.toml"), limited).expect("configuration");
}

#[tokio::test]
async fn the_limit_of_the_cache_is_one_for_all_pods_with_images_in_use_and_private_ones() {
    const MIB: usize = 1 << 20;
    let node = TestNode::new().await;
    limit_cache(&node, 20);
    let (one, created) = pod_on(&node, "one", 8 * MIB).await;
    created.expect("fits");
    // Made for its container alone, of the bundle's folder.
    let dir = node.bundle("two", &Bundle::sh("sleep 1000"));
    fs::write(dir.join("rootfs/file"), vec![7; 4 * MIB]).expect("file");
    let two = node.shim("two", &dir).await;
    two.create("two", &dir, NO_STREAMS).await.expect("fits");

    let (three, refused) = pod_on(&node, "three", 8 * MIB).await;
    let e = refused.expect_err("does not fit beside them");
    let text = "root file system: image layers: they need up to 11 MiB, most of it one file, ";
    assert!(e.contains(text) && e.contains("/three/file (8 MiB, holes counted), "), "{e}");
    assert!(
        e.contains(" rootfs.cache_mib = 20 leaves 7 MiB beside images in use: raise it, or end pods"),
        "{e}"
    );
    three.shutdown(true).await.expect("shutdown");

    // One container's image goes with it, an image of the cache when it is needed.
    two.delete("two", "").await.expect("delete");
    two.shutdown(true).await.expect("shutdown");
    fs::remove_dir_all(node.path("three")).expect("again");
    let (three, created) = pod_on(&node, "three", 8 * MIB).await;
    created.expect("fits");
    one.delete("one", "").await.expect("delete");
    one.shutdown(true).await.expect("shutdown");
    let (four, created) = pod_on(&node, "four", 8 * MIB).await;
    created.expect("fits in the place of the first");
    for (shim, id) in [(&three, "three"), (&four, "four")] {
        shim.delete(id, "").await.expect("delete");
        shim.shutdown(true).await.expect("shutdown");
    }
    node.assert_clean();
    let left =
        fs::read_dir(node.path("layers")).expect("cache").map(|entry| entry.expect("entry").file_name());
    let left: Vec<_> = left.collect();
    assert!(
        left.len() == 2 && left.iter().all(|name| name.to_string_lossy().ends_with(".erofs")),
        "{left:?}"
    );
}

#[tokio::test]
async fn a_hole_takes_no_room_on_the_disk_and_one_that_is_too_large_is_named() {
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("sleep 1000"));
    let layer = node.path("layer");
    fs::create_dir(&layer).expect("layer");
    let hole =
        |bytes| File::create(layer.join("lastlog")).and_then(|file| file.set_len(bytes)).expect("hole");
    hole(1 << 40);
    let shim = node.shim("c1", &dir).await;
    let e = shim.create_on("c1", &dir, &[&layer]).await.expect_err("too large").to_string();
    assert!(e.contains("layer/lastlog (1048576 MiB, holes counted), and rootfs.cache_mib = 10240 "), "{e}");
    shim.shutdown(true).await.expect("shutdown");

    hole(256 << 20);
    let shim = node.shim("c1", &dir).await;
    shim.create_on("c1", &dir, &[&layer]).await.expect("create");
    let mut all = fs::read_dir(node.path("layers")).expect("cache").map(|entry| entry.expect("entry").path());
    let image = all.find(|path| path.extension().is_some_and(|e| e == "erofs")).expect("an image");
    let meta = fs::metadata(image).expect("image");
    assert!(meta.len() >= 256 << 20 && meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    shim.start("c1", "").await.expect("start");
    node.end(&shim, "c1").await;
}
