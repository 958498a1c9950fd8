//! A sealed image is read by the product, unpacked by its machine and by no other, and each kind of
//! damage has the ultravisor's answer for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kata_se::test_api::image::{ComponentKind, ImageError, Verdict, read, verify};
use sha2::{Digest, Sha256, Sha512};
use softuv::damage::Damage;
use softuv::header::{BACKUP_TARGET_KEYS, DUMP_ALLOWED, NO_COMPONENT_ENCRYPTION, flag};
use softuv::refusal::Refusal;
use softuv::seal::{Options, Parts, seal};
use softuv::secrets::Secrets;
use softuv::unpack::{Fate, Guest, Host, unpack};
use softuv::{keys, machine};

const BY_HAND: &[u8] = include_bytes!("../../../src/image/testdata/by-hand.img");

fn key(text: &str) -> p521::SecretKey {
    keys::private(&Sha512::digest(text)).expect("key")
}

fn host() -> Host {
    Host {
        key: key("host key"),
        backup_key: None,
        flags: 0xf0 | flag(BACKUP_TARGET_KEYS) | flag(NO_COMPONENT_ENCRYPTION),
        versions: flag(1),
        secret_flags: flag(1) | flag(2),
    }
}

/// The inputs of src/image/testdata/by-hand.py.
fn parts() -> Parts {
    let byte = |n: usize| u8::try_from(n & 255).expect("byte");
    Parts {
        kernel: (0..5000).map(|i| byte((i * i) >> 3)).collect(),
        ramdisk: Some((0..4097).map(|i| byte(i * 3)).collect()),
        command_line: b"console=ttysclp0 swiotlb=262144".to_vec(),
        stage3a: (0..4392).map(byte).collect(),
        stage3b: (0..200).map(|i| 255 - byte(i)).collect(),
    }
}

fn secrets() -> Secrets {
    let short = |text: &str| *Sha256::digest(text).first_chunk().expect("six bytes");
    Secrets {
        customer: Sha512::digest("customer key").into(),
        header_key: Sha256::digest("header key").into(),
        iv: *Sha256::digest("iv").first_chunk().expect("twelve bytes"),
        communication_key: Sha256::digest("cck").into(),
        component_key: Sha512::digest("xts").into(),
        tweaks: ["kernel", "ramdisk", "command line", "stage3b"].map(|name| short(&format!("tweak {name}"))),
    }
}

fn options() -> Options {
    Options::new(vec![key("another host key").public_key(), key("host key").public_key()])
}

fn guest() -> Guest {
    let parts = parts();
    Guest { kernel: parts.kernel, ramdisk: parts.ramdisk, command_line: parts.command_line }
}

fn sealed(options: &Options) -> Vec<u8> {
    seal(&parts(), options, &secrets()).expect("seal")
}

fn verdict(bytes: &[u8]) -> Verdict {
    let image = read(bytes).expect("image");
    verify(bytes, &image.header, image.ipib.as_ref().expect("list"), |_, _| {}).expect("digests")
}

#[test]
fn the_writer_makes_the_image_that_was_made_by_hand() {
    let image = sealed(&options());
    let differs = image.iter().zip(BY_HAND).position(|(a, b)| a != b);
    assert_eq!((image.len(), differs), (BY_HAND.len(), None));
}

#[test]
fn what_was_sealed_comes_back_on_each_machine_of_the_image() {
    assert_eq!(unpack(BY_HAND.to_vec(), &host()), Ok(guest()));
    let other = Host { key: key("another host key"), ..host() };
    assert_eq!(unpack(BY_HAND.to_vec(), &other), Ok(guest()));
}

#[test]
fn an_image_without_ramdisk_or_encryption_comes_back_too() {
    let parts = Parts { ramdisk: None, command_line: Vec::new(), ..parts() };
    let options = Options { flags: flag(NO_COMPONENT_ENCRYPTION), ..options() };
    let image = seal(&parts, &options, &secrets()).expect("seal");
    assert_eq!(
        unpack(image.clone(), &host()),
        Ok(Guest { kernel: parts.kernel.clone(), ramdisk: None, command_line: Vec::new() })
    );
    assert_eq!(image[0x12000..0x12000 + 5000], parts.kernel);
    assert!(verdict(&image).untouched());
    let kinds: Vec<_> = read(&*image).expect("image").ipib.expect("list").components;
    let kinds: Vec<_> = kinds.iter().map(kata_se::test_api::image::Component::kind).collect();
    assert_eq!(kinds, [ComponentKind::Kernel, ComponentKind::CommandLine, ComponentKind::Stage3b]);
}

#[test]
fn the_arguments_of_a_loader_of_any_size_are_found() {
    // Their place is a multiple of 16; the last byte of an offset is zero where it is one of 256.
    for size in [4376, 4392, 7000, 8184, 11224, 12264] {
        let parts = Parts { stage3a: vec![7; size], ..parts() };
        let image = seal(&parts, &options(), &secrets()).expect("seal");
        assert!(verdict(&image).untouched(), "{size}");
        assert_eq!(unpack(image, &host()), Ok(guest()), "{size}");
    }
}

#[test]
fn ninety_five_machines_can_share_an_image_and_no_more() {
    let many =
        |count: usize| Options::new((0..count).map(|n| key(&format!("host {n}")).public_key()).collect());
    let image = sealed(&many(95));
    assert_eq!(read(&*image).expect("image").header.slots.len(), 95);
    let last = Host { key: key("host 94"), ..host() };
    assert_eq!(unpack(image, &last), Ok(guest()));
    let text = read(&*sealed(&many(96))).expect_err("too many").to_string();
    assert!(text.contains("sehs"), "{text}");
}

#[test]
fn each_damage_has_its_answer_and_is_seen_by_the_reader_where_it_can_be() {
    // What the reader says without a key: fine, digests differ, or an invalid field.
    let table = [
        (Damage::Tag, Refusal::TAG, "fine"),
        (Damage::Slots, Refusal::TAG, "fine"),
        (Damage::Page, Refusal::CONTENT, "differs"),
        (Damage::Content, Refusal::CONTENT, "differs"),
        (Damage::Addresses, Refusal::ADDRESSES, "differs"),
        (Damage::Tweaks, Refusal::TWEAKS, "differs"),
        (Damage::Pages, Refusal::PAGES, "differs"),
        (Damage::Version, Refusal::VERSION, "invalid"),
        (Damage::CustomerKey, Refusal::CUSTOMER_KEY, "fine"),
        (Damage::HeaderSize, Refusal::HEADER_SIZE, "invalid"),
        (Damage::EncryptedSize, Refusal::ENCRYPTED_SIZE, "invalid"),
        (Damage::NoSlots, Refusal::NO_SLOTS, "invalid"),
    ];
    assert_eq!(table.len(), Damage::ALL.len());
    for (damage, refusal, wanted) in table {
        let image = sealed(&Options { damage: Some(damage), ..options() });
        let seen = match read(&*image) {
            Err(ImageError::InvalidField { .. }) => "invalid",
            Err(other) => panic!("{other}"),
            Ok(_) if verdict(&image).untouched() => "fine",
            Ok(_) => "differs",
        };
        assert_eq!(seen, wanted, "{damage:?}");
        assert_eq!(unpack(image, &host()), Err(Fate::Refused(refusal)), "{damage:?}");
    }
}

#[test]
fn a_machine_without_a_slot_or_the_flags_refuses() {
    let stranger = || Host { key: key("stranger"), ..host() };
    let refused = |options: &Options, host: &Host| unpack(sealed(options), host).expect_err("refused");
    assert_eq!(refused(&options(), &stranger()), Fate::Refused(Refusal::NO_SLOT_FOR_HOST));

    let with_backup = Options { flags: 0xe0 | flag(BACKUP_TARGET_KEYS), ..options() };
    assert_eq!(refused(&with_backup, &stranger()), Fate::Refused(Refusal::NO_SLOT_FOR_BACKUP));
    let backup = Host { backup_key: Some(key("host key")), ..stranger() };
    assert_eq!(unpack(sealed(&with_backup), &backup), Ok(guest()));
    assert_eq!(refused(&options(), &backup), Fate::Refused(Refusal::NO_SLOT_FOR_HOST));

    let dump = Options { flags: 0xe0 | flag(DUMP_ALLOWED), ..options() };
    assert_eq!(refused(&dump, &host()), Fate::Refused(Refusal::FLAGS));
    let secret = Options { secret_flags: flag(5), ..options() };
    assert_eq!(refused(&secret, &host()), Fate::Refused(Refusal::SECRET_FLAGS));
}

#[test]
fn a_plain_kernel_is_not_sealed_and_a_bad_list_is_qemus_to_refuse() {
    assert_eq!(unpack(parts().kernel, &host()), Err(Fate::NotSealed));
    // Everything else is right in these: QEMU would start another address, or the loader another header.
    for (at, bytes) in [(5, &[1, 0, 0][..]), (0x10008, b"S390EP"), (0x11110, &[0; 24])] {
        let mut forged = BY_HAND.to_vec();
        forged[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(unpack(forged.clone(), &host()), Err(Fate::NotSealed), "{at:#x}");
        drop(read(&*forged).expect_err("forged"));
    }
    let mut image = BY_HAND.to_vec();
    image[0x19000 + 151] = 1; // address of the first component: no page
    assert_eq!(unpack(image, &host()), Err(Fate::BadList(0x402)));
}

#[test]
fn a_changed_or_cut_image_never_comes_back_as_something_else() {
    for at in (0..BY_HAND.len()).step_by(601) {
        drop(unpack(BY_HAND[..at].to_vec(), &host()).expect_err("cut off"));
        let mut image = BY_HAND.to_vec();
        image[at] ^= 0x10;
        match unpack(image, &host()) {
            Ok(same) => assert_eq!(same, guest(), "{at:#x}"),
            Err(fate) => assert!(!matches!(fate, Fate::Unknown(_)), "{at:#x}: {fate:?}"),
        }
    }
}

#[test]
fn a_machine_is_made_read_back_and_has_its_own_key() {
    let dir = tempfile::tempdir().expect("dir");
    let made = |name: &str, seed: &str| {
        let machine = machine::Machine::at(dir.path().join(name));
        machine.make(&machine::Options { seed: Some(seed.into()), without_dump: name == "b" }).expect("make");
        machine
    };
    let (a, again, b) = (made("a", "1"), made("again", "1"), made("b", "2"));
    let hash = |m: &machine::Machine| keys::hash(&m.host().expect("host").key.public_key());
    assert_eq!(hash(&a), hash(&again));
    assert_ne!(hash(&a), hash(&b));
    assert!(a.is_host());
    let document = softuv::document::host_key(&a.document()).expect("document");
    assert_eq!(keys::hash(&document), hash(&a));
    let lines = std::fs::read_to_string(a.root().join("sys/firmware/uv/keys/all")).expect("keys");
    assert_eq!(lines.lines().count(), 15);
    assert_eq!(lines.lines().next(), Some(keys::hex(&hash(&a)).as_str()));
    let knows_dump = |m: &machine::Machine| m.host().expect("host").flags & flag(DUMP_ALLOWED) != 0;
    assert!(knows_dump(&a) && !knows_dump(&b));
}
