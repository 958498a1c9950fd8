//! What the ultravisor refuses, or a machine cannot do, is explained in the one-line error of the
//! pod: every row of the table in `src/qemu/ultravisor.rs` that a file or a machine can cause. softuv
//! replaces QEMU; the shim sees a machine whose kernel reports too little to refuse the image beforehand.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use harness::{Bundle, TestNode, production, program};
use serde_json::{Value, json};
use softuv::damage::Damage;
use softuv::header::{BACKUP_TARGET_KEYS, DUMP_ALLOWED, flag};
use softuv::machine::{self, Machine};
use softuv::seal::{Options, Parts, seal};
use softuv::secrets::Secrets;

/// What an older kernel reports: no keys, no supported versions and flags.
const SEEN: [(&str, &str); 5] = [
    ("proc/sys/kernel/arch", "s390x"),
    ("proc/cpuinfo", "facilities : 0 1 158"),
    ("sys/firmware/uv/prot_virt_host", "1"),
    ("sys/firmware/uv/query/max_cpus", "248"),
    ("dev/kvm", "1"),
];

async fn node() -> TestNode {
    let node = TestNode::new().await;
    machine(&node).make(&machine::Options { seed: Some("a".into()), without_dump: true }).expect("machine");
    for (name, text) in SEEN {
        let path = node.path("seen").join(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        fs::write(path, text).expect("write");
    }
    let seen = node.path("seen").display().to_string();
    *node.environment.lock().expect("environment") = vec![("KATA_SE_SYS_ROOT".into(), seen)];
    fs::create_dir(node.path("softuv")).expect("mkdir");
    symlink(program("qemu-softuv"), node.path("softuv/qemu")).expect("link");
    order(&node, &json!({}));
    configure(&node, "softuv/qemu", &[]);
    node
}

fn machine(node: &TestNode) -> Machine {
    Machine::at(node.path("machine"))
}

fn order(node: &TestNode, more: &Value) {
    let mut orders = json!({"machine": node.path("machine")});
    orders.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
    fs::write(node.path("softuv/softuv.json"), orders.to_string()).expect("orders");
}

/// The production configuration with this QEMU; the double serves as the vsock device.
fn configure(node: &TestNode, qemu: &str, more: &[(&str, &str)]) {
    let at = |name: &str| format!("\"{}\"", node.path(name).display());
    let (qemu, image, layers) = (at(qemu), at("image"), at("layers"));
    let vsock = format!("\"vhost-user\"\nprogram = {}", at("bin/vsock"));
    let own = [
        ("path", qemu.as_str()),
        ("user", "\"root\""),
        ("image", &image),
        ("memory_mib", "256"),
        ("device", &vsock),
        ("connect_timeout_s", "10"),
        ("mode", "\"packed\""),
        ("trust_host", "true"),
        ("cache_dir", &layers),
        ("level", "\"debug\""),
    ];
    let own = own.into_iter().filter(|(key, _)| more.iter().all(|(other, _)| key != other));
    let all: Vec<_> = own.chain(more.iter().copied()).collect();
    fs::write(node.path("config.toml"), production(&all)).expect("config");
}

fn options(node: &TestNode) -> Options {
    Options::new(vec![softuv::document::host_key(&machine(node).document()).expect("key")])
}

/// A small image that could not boot.
fn image(node: &TestNode, options: &Options) {
    let parts = Parts {
        kernel: vec![1; 5000],
        ramdisk: None,
        command_line: b"quiet".to_vec(),
        stage3a: vec![0; 4392],
        stage3b: vec![0; 200],
    };
    let image = seal(&parts, options, &Secrets::new(None).expect("secrets")).expect("seal");
    fs::write(node.path("image"), image).expect("image");
}

async fn refused(node: &TestNode) -> String {
    node.refused(&Bundle::sh("true")).await
}

async fn says(node: &TestNode, wanted: &str) {
    let text = refused(node).await;
    assert!(text.contains(wanted), "{wanted:?} is not in: {text}");
}

const OTHER: &str = "the image was built for another machine: KVM_PV_SET_SEC_PARMS: ";
const MODIFIED: &str = "the image was modified or truncated since it was sealed: KVM_PV_VERIFY: ";
const DAMAGED: &str = "the image's header is damaged or was made by a broken tool: KVM_PV_SET_SEC_PARMS: ";

#[tokio::test]
async fn every_refusal_an_image_can_cause_is_explained() {
    let node = node().await;
    let with = |damage| Options { damage: Some(damage), ..options(&node) };
    let flags = |flags| Options { flags: 0xe0 | flags, ..options(&node) };
    let stranger = || Options::new(vec![softuv::keys::private(&[7; 60]).expect("key").public_key()]);
    for (options, cause, codes) in [
        (stranger(), OTHER, "rc 0x108 rrc 0x5 (no key slot for this machine)"),
        (
            Options { flags: flag(BACKUP_TARGET_KEYS), ..stranger() },
            OTHER,
            "rc 0x108 rrc 0x34 (backup host key does not match)",
        ),
        (with(Damage::CustomerKey), DAMAGED, "rc 0x108 rrc 0xb (customer key is not a valid point)"),
        (with(Damage::Tag), DAMAGED, "rc 0x10a rrc 0x41 (header corrupt)"),
        (with(Damage::Slots), DAMAGED, "rc 0x10a rrc 0x41 (header corrupt)"),
        (with(Damage::Addresses), MODIFIED, "rc 0x102 rrc 0x1a (list of page addresses differs)"),
        (with(Damage::Page), MODIFIED, "rc 0x102 rrc 0x1b (content of pages differs)"),
        (with(Damage::Content), MODIFIED, "rc 0x102 rrc 0x1b (content of pages differs)"),
        (with(Damage::Tweaks), MODIFIED, "rc 0x102 rrc 0x1c (list of tweaks differs)"),
        (with(Damage::Pages), MODIFIED, "rc 0x102 rrc 0x1d (number of pages differs)"),
        (
            flags(flag(DUMP_ALLOWED)),
            "the image asks for something this machine does not support: KVM_PV_SET_SEC_PARMS: ",
            "rc 0x106 rrc 0x30 (unsupported plaintext control flag, such as dumping)",
        ),
        (
            Options { secret_flags: 1, ..options(&node) },
            "the sealed flags of the image ask for something this machine lacks: KVM_PV_SET_SEC_PARMS: ",
            "rc 0x109 rrc 0x0 (unsupported secret control flag)",
        ),
    ] {
        image(&node, &options);
        says(&node, &format!("{cause}{codes}; QEMU ended with exit code 1: ")).await;
    }
}

/// The ultravisor would report 104/1 and 10a; the shim's reader finds it earlier.
#[tokio::test]
async fn a_header_that_makes_no_sense_is_found_before_qemu_starts() {
    let node = node().await;
    for damage in [Damage::Version, Damage::HeaderSize, Damage::EncryptedSize, Damage::NoSlots] {
        image(&node, &Options { damage: Some(damage), ..options(&node) });
        says(&node, "the image is damaged: ").await;
    }
    assert!(!node.log().contains("QEMU started"), "QEMU was started");
}

#[tokio::test]
async fn what_the_machine_lacks_is_explained() {
    let node = node().await;
    image(&node, &options(&node));
    order(&node, &json!({"no_resources": true}));
    says(
        &node,
        "this machine has no room for another secure guest: KVM_PV_ENABLE: rc 0x0 rrc 0x0 (no further detail, \
         Cannot allocate memory",
    )
    .await;
    order(&node, &json!({"no_facility": true}));
    says(&node, "this host or this QEMU cannot start secure guests, and the image cannot start unprotected")
        .await;

    order(&node, &json!({}));
    let uv = machine(&node).root().join("sys/firmware/uv");
    fs::write(uv.join("query/max_cpus"), "1\n").expect("write");
    configure(&node, "softuv/qemu", &[("vcpus", "2")]);
    says(
        &node,
        "QEMU ended with exit code 1: stderr: qemu-system-s390x: Protected VMs support a maximum of 1",
    )
    .await;
    configure(&node, "softuv/qemu", &[]);
    fs::write(uv.join("query/supp_se_hdr_ver"), "2000000000000000\n").expect("write");
    says(
        &node,
        "this machine does not know the version of the image's header: KVM_PV_SET_SEC_PARMS: rc 0x104 rrc 0x1",
    )
    .await;
    fs::write(uv.join("prot_virt_host"), "0\n").expect("write");
    says(&node, "this machine is not a Secure Execution host: qemu-system-s390x: CPU model does not").await;
}

#[tokio::test]
async fn the_reason_is_found_wherever_it_was_reported() {
    let node = node().await;
    image(&node, &Options { damage: Some(Damage::Page), ..options(&node) });
    for lost in ["stderr", "console", "events"] {
        order(&node, &json!({"lost": lost}));
        says(&node, &format!("{MODIFIED}rc 0x102 rrc 0x1b (content of pages differs)")).await;
    }
}

/// Messages that softuv does not print, with the double in QEMU's place.
#[tokio::test]
async fn the_message_of_a_qemu_without_protection_is_explained() {
    let node = node().await;
    image(&node, &options(&node));
    configure(&node, "bin/qemu", &[]);
    let qemu = "qemu-system-s390x: ";
    for (stderr, cause) in [
        ("S390 PV guests require KVM support", "QEMU runs without KVM"),
        ("guest does not use protected virtualization mode", "this machine is not a Secure Execution host"),
        (
            "-object s390-pv-guest,id=pv0: invalid object type: s390-pv-guest",
            "this QEMU cannot run secure guests",
        ),
        ("Could not access KVM kernel module: No such file or directory", "KVM cannot be used"),
        (
            "cannot set up guest memory 's390.ram': Cannot allocate memory",
            "this machine has not enough free memory for the guest",
        ),
        ("Failed to set secure execution parameters", "the ultravisor refused the image's header"),
    ] {
        node.double(|o| o["exit"] = json!({"code": 1, "stderr": stderr}));
        says(&node, &format!("{cause}: {qemu}{stderr}; QEMU ended with exit code 1: ")).await;
    }
}

/// QEMU opens the path some time after the check: the vsock device, which starts in between, puts
/// another image there.
#[tokio::test]
async fn an_image_replaced_while_the_vm_starts_does_not_run() {
    let node = node().await;
    image(&node, &options(&node));
    fs::rename(node.path("image"), node.path("next")).expect("rename");
    image(&node, &options(&node));
    let at = |name: &str| node.path(name).display().to_string();
    let (next, place, double) = (at("next"), at("image"), at("bin/qemu"));
    let script = format!("#!/bin/sh\n/bin/mv {next} {place}\nexec {double} \"$@\"\n");
    fs::write(node.path("device"), script).expect("script");
    fs::set_permissions(node.path("device"), fs::Permissions::from_mode(0o700)).expect("chmod");
    let vsock = format!("\"vhost-user\"\nprogram = \"{}\"", at("device"));
    configure(&node, "bin/qemu", &[("device", &vsock)]);
    says(&node, "the file was replaced or changed while the VM was started: try again").await;
}
