//! Extension images: disks that a guest finds at boot by their names, and what is said of a guest that does not like
//! them.

use std::fs;

use harness::{Bundle, TestNode};

const INITDATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";

fn with_image(node: &TestNode, content: &[u8]) {
    fs::write(node.path("coco.img"), content).expect("write");
    node.config(&format!("[guest.extensions]\ncoco = \"{}\"\n", node.path("coco.img").display()));
}

#[tokio::test]
async fn a_guest_finds_each_image_by_its_serial_beside_the_initdata() {
    let node = TestNode::new().await;
    with_image(&node, b"an image of erofs");
    let text = include_str!("../../../src/config/testdata/initdata.base64");
    let shim = node.running("c1", &Bundle::sh("sleep 1000").sandbox().annotation(INITDATA, text)).await;
    let disk = |serial: &str| fs::read(node.path("record/disks").join(serial)).expect(serial);
    assert_eq!(disk("extension-coco"), b"an image of erofs");
    assert!(disk("initdata").starts_with(b"initdata"));
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn what_is_no_image_is_refused_before_qemu_starts() {
    let node = TestNode::new().await;
    let image = node.path("coco.img");
    for (content, wanted) in [
        (Some(&b"initdata\0\0\0\0\0\0\0\0"[..]), "begins as a disk with initdata does"),
        (Some(b""), "is not a file with an image: check the configuration"),
        (None, "No such file or directory"),
    ] {
        with_image(&node, content.unwrap_or_default());
        if content.is_none() {
            fs::remove_file(&image).expect("remove");
        }
        let text = node.refused(&Bundle::sh("true")).await;
        assert!(text.contains(&format!("guest.extensions: coco = {}: {wanted}", image.display())), "{text}");
    }
    nix::unistd::mkfifo(&image, nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    let text = node.refused(&Bundle::sh("true")).await;
    assert!(text.contains("is not a file with an image"), "{text}");
    assert!(node.requests().is_empty(), "no guest was started");
}

#[tokio::test]
async fn a_guest_that_powers_itself_off_at_boot_is_explained_with_the_disks_that_it_had() {
    let node = TestNode::new().await;
    with_image(&node, b"another image");
    node.double(|orders| {
        orders["powers_off"] = true.into();
        orders["console"] = "Failed to mount the extension\n".into();
    });
    let text = node.refused(&Bundle::sh("true")).await;
    let wanted = "the guest powered itself off while it booted: disks that it had: extension-coco; QEMU ended with exit \
                  code 0: usually an extension image that its sealed kernel parameters name";
    assert!(text.contains(wanted), "{text}");
    node.config("");
    let text = node.refused(&Bundle::sh("true")).await;
    assert!(text.contains("disks that it had: none"), "{text}");
}
