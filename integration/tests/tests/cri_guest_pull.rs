//! Images that guests pull themselves, through CRI: the node has another image under the same name.

use std::fs;
use std::net::Ipv4Addr;

use cri::{BUSYBOX, Node};
use harness::{Layer, Registry};

cri::on_each_version! {
    in_short:
    a_guest_pulls_its_images;
    in_full:;
}

/// Where pods reach their node.
const NODE: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);

fn a_guest_pulls_its_images(node: &Node) {
    node.containerd.guests_pull("", "");
    let registry = Registry::within(&node.containerd.network(), NODE);
    let mut layers = Layer::of_archive("busybox.tar");
    layers.push(Layer::of_files(&[("srv/mark", b"of the registry\n")]));
    registry.push("app:1", &layers);
    let image = registry.name("app:1");
    // Older versions tell the first of an image's names, so it has no other.
    node.containerd.ctr_ok(&["image", "tag", BUSYBOX, &image]);
    node.containerd.ctr_ok(&["image", "rm", BUSYBOX]);
    let pod = node.pod("pull");
    let start = |name: &str| {
        let mut config = pod.plain(name, &["sleep", "1000"]);
        let spec = config.image.as_mut().expect("image");
        (spec.image, spec.user_specified_image) = (image.clone(), image.clone());
        pod.start(&config)
    };
    let (one, other) = (start("one"), start("other"));
    for container in [&one, &other] {
        let seen = container.sh("cat /srv/mark; ls /sys/block | wc -l");
        assert_eq!(
            seen, "of the registry\n0\n",
            "the file is in no image of the node, and no disk in the guest"
        );
    }
    let asked = registry.asked();
    let blobs = asked.iter().filter(|path| path.starts_with("blobs/")).count();
    assert_eq!(blobs, 1 + layers.len(), "configuration and layers, once: {asked:?}");
    let packed = fs::read_dir(node.path("layers")).into_iter().flatten().count();
    assert_eq!(packed, 0, "nothing of the node is packed");
    pod.end();
}
