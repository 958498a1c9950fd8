//! Image layers: the disk of a container has the content of the listed layers, in their order, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Bundle, TestNode};

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
