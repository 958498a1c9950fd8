//! The reader against an image that was not made by this program, and against everything that is no image.

use std::cell::Cell;
use std::io::{ErrorKind, Result as IoResult};

use proptest::prelude::*;

use super::*;
use crate::error::Code;
use crate::hex::hex;
use crate::image::{Component, ComponentKind, KeyHash, PlainFlags, fuzz_se_image, verify};

/// testdata/by-hand.py made it and printed the constants below.
const IMAGE: &[u8] = include_bytes!("testdata/by-hand.img");
const HEADER: usize = 0x18000;
const IPIB: usize = 0x19000;

fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = IMAGE.to_vec();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

fn error_of(image: &[u8]) -> ImageError {
    read(image).expect_err("an error")
}

#[test]
fn an_image_made_by_hand_is_read_as_it_was_made() {
    let image = read(IMAGE).expect("image");
    assert_eq!((image.size, image.header_at), (0x190e8, 0x18000));
    let header = image.header;
    assert_eq!((header.version, header.size, header.encrypted_size, header.pages), (0x100, 720, 128, 6));
    assert_eq!(hex(&header.iv), "0ab306823035661bb8dba21c");
    assert_eq!(hex(&header.tag), "c5d6680b52e27d37ce5c51d0ce52c455");
    assert_eq!(header.flags, PlainFlags(0xe0));
    let slot = &header.slots[1];
    let slot = format!("{}{}{}", slot.host_key, hex(&slot.wrapped), hex(&slot.tag));
    assert_eq!(
        slot,
        "f76c45b8285d82c789033e453797134053fe036bee612fb111e70033ac3617da\
         239411e2f2ddc4157d55e2a6ee0b162c1863b0c91e4f0c0a76bf00127734a76e\
         34caead9d7f99dda3b284c8e01e8172e"
    );
    assert_eq!(header.slots.len(), 2);
    let digests = [header.content_digest, header.address_digest, header.tweak_digest].map(|d| hex(&d));
    assert_eq!(
        digests,
        [
            "839d5f70b24c1e2f2bd1b75c9d4516d6a57f19beb92aae8d599c025e2d26c5a1\
             ad43435c9ce53946eb75935261858c622e0d283c2f35433bc50d2d4943ccc7e6",
            "b8b2da21874f449baff7a5b891f36421b2bb7fcecce1ba4ba2d25a1ec87c00b1\
             3d4ed182b0fce91d4020f3a9b7227ec8ef73e2f284fa4411006ac7681240fcb6",
            "a70bd3a0e5e5dba4292d92eacb52334bcdad2217c1d8a91d771e2666be40b1b6\
             10a751811781e004b2964c5ed886673c7a2b559a6dc4a83b81268a1ce081b769",
        ]
    );
    let key = hex(&header.customer_key.0);
    assert!(key.starts_with("000000000000000000000000000000efdddcaba62f6132fd"), "{key}");
    assert!(key.ends_with("aaa76601c794c584a98988c1dcd"), "{key}");
    let ipib = image.ipib.expect("component list");
    assert_eq!(
        ipib.components,
        [
            Component { tweak: 0x0028_084a_bcd4_60b8, address: 0x12000, size: 0x2000 },
            Component { tweak: 0x0032_87a0_af01_1fb8, address: 0x14000, size: 0x2000 },
            Component { tweak: 0x003c_7a81_9948_020d, address: 0x16000, size: 0x1000 },
            Component { tweak: 0x0046_50fc_b12c_a419, address: 0x17000, size: 0x1000 },
        ]
    );
    let kinds: Vec<_> = ipib.components.iter().map(Component::kind).collect();
    assert_eq!(
        kinds,
        [ComponentKind::Kernel, ComponentKind::Ramdisk, ComponentKind::CommandLine, ComponentKind::Stage3b]
    );
    let end = ipib.components.iter().map(Component::end).max();
    assert_eq!((ipib.at, ipib.pages(), end), (0x19000, 6, Some(0x18000)));
}

#[test]
fn the_header_is_exported_byte_for_byte() {
    let image = read(IMAGE).expect("image");
    assert_eq!(header_bytes(IMAGE, &image).expect("bytes"), IMAGE[HEADER..HEADER + 720]);
}

#[test]
fn an_image_of_an_older_tool_is_found_by_its_pages() {
    for page in [0x14000, 0x15000, 0x28000] {
        let mut old = vec![0; 0x29000];
        old[..8].copy_from_slice(&IMAGE[..8]);
        old[page..page + 720].copy_from_slice(&IMAGE[HEADER..HEADER + 720]);
        for (index, number) in [page - 0x12bc0, 720, 0x440].into_iter().enumerate() {
            let at = 0x12bc0 + 8 * index;
            old[at..at + 8].copy_from_slice(&(number as u64).to_be_bytes());
        }
        let image = read(&*old).expect("image");
        assert_eq!((image.header_at, image.ipib), (page as u64, None));
        old[0x12bc7] ^= 0x10;
        let text = error_of(&old).to_string();
        assert!(text.contains("offset of the SE header in the loader's arguments at 0x12bc0"), "{text}");
    }
    let mut late = vec![0; 0x2a000];
    late[0x29000..0x29000 + 720].copy_from_slice(&IMAGE[HEADER..HEADER + 720]);
    assert_eq!(error_of(&late), ImageError::NotSealed { size: 0x2a000 });
}

#[test]
fn what_is_no_image_is_called_so() {
    for plain in [&b""[..], b"\x7fELF", &[0; 0x30000], &[0xff; 0xc004]] {
        let error = error_of(plain);
        assert_eq!(error, ImageError::NotSealed { size: plain.len() as u64 });
        assert_eq!(error.into_error().code(), Code::FailedPrecondition);
    }
    assert_eq!(
        error_of(b"x").to_string(),
        "not a Secure Execution image: there is no header in its 1 bytes, and QEMU would boot it \
         unprotected: seal it with pvimg"
    );
}

#[test]
fn each_invalid_field_is_named_with_its_offset_value_and_bound() {
    let max = [0xff; 8];
    let table: [(usize, &[u8], &str); 27] = [
        (0xc008, &max, "offset of the SE header at 0xc008 is 0xffffffffffffffff, must be 0xc01c to 0x18f48"),
        (0xc008, &[0; 8], "offset of the SE header at 0xc008 is 0x0, must be 0xc01c to 0x18f48"),
        (0xc010, &[0, 0, 0, 2], "version of the image metadata at 0xc010 is 0x2, must be 0x1"),
        (0xc014, &max, "IPIB at 0xffffffffffffffff is 0xffffffffffffffff, must be at most 0x190e8"),
        (HEADER, b"x", "magic of the SE header at 0x18000 is 0x78424d5365634578, must be 0x49424d5365634578"),
        (HEADER + 8, &[0, 0, 2, 0], "version of the SE header at 0x18008 is 0x200, must be 0x100"),
        (HEADER + 12, &[0xff; 4], "(sehs) at 0x1800c is 0xffffffff, must be 0x280 to 0x2000"),
        (HEADER + 12, &[0; 4], "(sehs) at 0x1800c is 0x0, must be 0x280 to 0x2000"),
        (HEADER + 12, &[0, 0, 0x20, 0], "SE header at 0x18000 is 0x1a000, must be at most 0x190e8"),
        (HEADER + 32, &[0x80], "(nks) at 0x18020 is 0x8000000000000002, must be 0x1 to 0x5f"),
        (HEADER + 32, &[0; 8], "(nks) at 0x18020 is 0x0, must be 0x1 to 0x5f"),
        (HEADER + 39, &[1], "(sea) at 0x18028 is 0x80, must be 0xd0"),
        (HEADER + 40, &max, "(sea) at 0x18028 is 0xffffffffffffffff, must be 0x80"),
        (HEADER + 47, &[0x7f], "(sea) at 0x18028 is 0x7f, must be at least 0x80"),
        (IPIB, &[0xff; 4], "length of the IPIB at 0x19000 is 0xffffffff, must be 0xa0 to 0x1000"),
        (IPIB + 7, &[2], "version of the IPIB at 0x19007 is 0x2, must be 0x1"),
        (IPIB + 8, &[0; 4], "PV block at 0x19008 is 0x0, must be 0x98 to 0xe0"),
        (IPIB + 12, &[4], "type of the IPIB's PV block at 0x1900c is 0x4, must be 0x5"),
        (IPIB + 111, &[0], "version of the IPIB's PV block at 0x1906f is 0x0, must be 0x1"),
        (IPIB + 116, &[0xff; 4], "number of components at 0x19074 is 0xffffffff, must be 0x1 to 0x4"),
        (IPIB + 120, &[0; 8], "header address in the IPIB at 0x19078 is 0x0, must be 0x18000"),
        (IPIB + 128, &max, "header size in the IPIB at 0x19080 is 0xffffffffffffffff, must be 0x2d0"),
        (IPIB + 160, &[0; 8], "tweak of a component at 0x190a0 is 0x0, must be at least 0x28084abcd460b9"),
        (IPIB + 151, &[1], "address of a component at 0x19090 is 0x12001, must be a multiple of 0x1000"),
        (IPIB + 152, &max, "size of a component at 0x19098 is 0xffffffffffffffff, must be 0x1 to 0x70e8"),
        (IPIB + 174, &[0x30], "address of a component at 0x190a8 is 0x13000, must be at least 0x14000"),
        (IPIB + 222, &[0x80], "address of a component at 0x190d8 is 0x18000, must be at least 0x182d0"),
    ];
    for (at, bytes, wanted) in table {
        let error = error_of(&patched(at, bytes));
        let text = error.to_string();
        assert!(matches!(error, ImageError::InvalidField { .. }), "{text}");
        assert!(text.starts_with("damaged image: ") && text.contains(wanted), "{text}\nwanted: {wanted}");
        assert!(!text.contains('\n'));
    }
}

/// Header, list and content are right in these: what QEMU, or the loader, would start is not.
#[test]
fn a_forged_image_is_refused_where_the_file_tells_it() {
    let not_the_loader = "QEMU would start something else than the image's loader, unprotected";
    let another = "the image's loader would start something else than what was checked";
    let arguments = 0x11110;
    // The kernel's own first bytes, as in an unsealed kernel that has metadata, header and list appended.
    let mut kernel = patched(0x10000, &[0; 0x2000]);
    kernel[..8].copy_from_slice(&0x0008_0001_8001_0000_u64.to_be_bytes());
    kernel[0x10008..0x1000e].copy_from_slice(b"S390EP");
    let mut without_component = patched(IPIB + 148, &0x11000_u64.to_be_bytes()[4..]);
    without_component[0x11000..0x12000].fill(1);
    for (image, field, why) in [
        (kernel, "start PSW at 0x0 is 0x8000180010000", not_the_loader),
        (patched(0, b"\x7fELF"), "start PSW at 0x0 is", not_the_loader),
        (patched(5, &[2]), "start PSW at 0x0 is 0x8000180021000, must be 0x8000180011000", not_the_loader),
        // QEMU starts what looks like Linux at 0x10000, whatever the PSW says.
        (patched(0x10008, b"S390EP"), "start of the loader at 0x10008 is 0x533339304550", not_the_loader),
        // A component in clear where the loader's entry should be.
        (without_component, "end of the loader at 0x11000 is 0x11000", not_the_loader),
        (patched(0x11000, &[0; 0x1000]), "offset of the SE header in the loader's arguments", another),
        (
            patched(arguments + 6, &[0]),
            "offset of the SE header in the loader's arguments at 0x11110",
            another,
        ),
        (
            patched(arguments + 15, &[0]),
            "size of the SE header in the loader's arguments at 0x11118",
            another,
        ),
        (patched(arguments + 22, &[0]), "offset of the IPIB in the loader's arguments at 0x11120", another),
        // Others behind the loader's own.
        (patched(arguments + 48, &[1; 24]), "offset of the SE header in the loader's arguments", another),
    ] {
        let text = error_of(&image).to_string();
        assert!(text.contains(field) && text.ends_with(why), "{field}: {text}");
    }
}

#[test]
fn a_component_whose_last_page_is_beyond_the_file_is_refused() {
    // The last component is moved to the end of the file: one byte of it fits, one page does not.
    let mut image = patched(IPIB + 216, &0x19000_u64.to_be_bytes());
    image[IPIB + 224..IPIB + 232].copy_from_slice(&1_u64.to_be_bytes());
    let text = error_of(&image).to_string();
    assert!(
        text.contains("is 0x1, must be at most 0x0: its last page would extend beyond the end of the file"),
        "{text}"
    );
}

/// Every byte of the blocks that are parsed, and some in between.
fn interesting() -> impl Iterator<Item = usize> {
    let blocks = [0..16, 0x11110..0x11128, 0xc000..0xc01c, HEADER..HEADER + 720, IPIB..IMAGE.len()];
    (0..IMAGE.len()).step_by(997).chain(blocks.into_iter().flatten())
}

#[test]
fn an_image_cut_off_anywhere_is_refused() {
    for length in interesting() {
        read(&IMAGE[..length]).expect_err("cut off");
    }
}

#[test]
fn no_changed_byte_leads_out_of_the_file() {
    let mut image = IMAGE.to_vec();
    for at in interesting() {
        for value in [0, 1, 0x7f, 0x80, 0xff, IMAGE[at] ^ 1, IMAGE[at] ^ 0x80] {
            image[at] = value;
            if let Ok(image) = read(&*image) {
                inside(&image);
            }
        }
        image[at] = IMAGE[at];
    }
}

/// What the rest of the program relies on in every accepted image.
fn inside(image: &SealedImage) {
    let header = image.header_at..image.header_at + u64::from(image.header.size);
    assert!(header.end <= image.size);
    assert!((1..=95).contains(&image.header.slots.len()));
    let components = image.ipib.iter().flat_map(|ipib| &ipib.components);
    let mut ranges: Vec<_> = components.map(|c| (c.address, c.end())).collect();
    ranges.push((header.start, header.end));
    ranges.sort_unstable();
    assert!(ranges.iter().all(|(from, to)| from < to && *to <= image.size));
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
}

proptest! {
    #[test]
    fn an_image_with_changed_bytes_is_read_or_refused(
        changes in prop::collection::vec((0_usize..1000, any::<u8>()), 1..20),
    ) {
        let places: Vec<_> = interesting().collect();
        let mut image = IMAGE.to_vec();
        for (place, value) in changes {
            image[places[place % places.len()]] = value;
        }
        if let Ok(image) = read(&*image) {
            inside(&image);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        fuzz_se_image(&bytes);
    }
}

/// Counts what is read; `ends` may be before the size that it reports.
struct Watched<'a> {
    bytes: &'a [u8],
    ends: usize,
    reads: Cell<usize>,
    largest: Cell<usize>,
}

impl ReadAt for Watched<'_> {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> IoResult<()> {
        self.reads.set(self.reads.get() + 1);
        self.largest.set(self.largest.get().max(buffer.len()));
        let end = usize::try_from(offset).expect("small") + buffer.len();
        if end > self.ends {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.bytes.read_at(buffer, offset)
    }
}

fn watched(ends: usize) -> Watched<'static> {
    Watched { bytes: IMAGE, ends, reads: Cell::new(0), largest: Cell::new(0) }
}

#[test]
fn few_and_small_reads_are_enough() {
    let whole = watched(IMAGE.len());
    read(&whole).expect("image");
    assert!(whole.reads.get() <= 9, "{}", whole.reads.get());
    assert!(whole.largest.get() <= 8192, "{}", whole.largest.get());
}

#[test]
fn a_file_that_shrinks_while_it_is_read_has_its_own_error() {
    for ends in [0xc010, HEADER + 4, HEADER + 500, IPIB + 100, IPIB + 140] {
        let error = read(&watched(ends)).expect_err("shrank");
        assert!(matches!(error, ImageError::Shrank { size: 0x190e8, .. }), "{error}");
        assert_eq!(error.into_error().code(), Code::Unavailable);
    }
}

#[test]
fn flags_are_counted_from_the_most_significant_bit() {
    let flags = PlainFlags(0xe0 | 1 << (63 - 34) | 1 << 63);
    assert!(flags.has(PlainFlags::DUMP) && !flags.has(PlainFlags::NO_ENCRYPTION) && !flags.has(64));
    assert_eq!(
        flags.names(),
        ["bit 0", "dump allowed", "PCKMO DEA/TDEA keys", "PCKMO AES keys", "PCKMO ECC keys"]
    );
    assert_eq!(PlainFlags(0).names(), [""; 0]);
}

#[test]
fn a_key_hash_is_parsed_and_shown_whole_or_short() {
    let hash = KeyHash([0xab; 32]);
    assert_eq!(hash.to_string(), "ab".repeat(32));
    assert_eq!(hash.to_string().to_uppercase().parse(), Ok(hash));
    let e = "0123".parse::<KeyHash>().expect_err("short");
    assert_eq!(e.to_string(), "\"0123\" is not a hash of 64 hexadecimal digits");
    assert_eq!(hash.short(), "abababababababab…");
}

#[test]
fn the_digests_of_the_image_made_by_hand_agree() {
    let image = read(IMAGE).expect("image");
    let ipib = image.ipib.as_ref().expect("list");
    let mut seen = Vec::new();
    let verdict = verify(IMAGE, &image.header, ipib, |done, total| seen.push((done, total))).expect("read");
    assert!(verdict.untouched(), "{verdict}");
    assert_eq!(verdict.to_string(), "all 6 pages are as they were sealed");
    assert_eq!(seen.last(), Some(&(6 * 4096, 6 * 4096)));
}

#[test]
fn a_verdict_says_which_values_differ() {
    let tweak_of_ramdisk = IPIB + 136 + 24 + 7;
    let table: [(usize, &[u8], &str); 5] = [
        (0x12000, &[IMAGE[0x12000] ^ 1], "the content of the pages"),
        (0x17fff, &[IMAGE[0x17fff] ^ 0x80], "the content of the pages"),
        (tweak_of_ramdisk, &[IMAGE[tweak_of_ramdisk] ^ 1], "the components' tweaks"),
        (HEADER + 288, &[IMAGE[HEADER + 288] ^ 1], "the components' addresses"),
        (HEADER + 55, &[7], "the number of pages (6, sealed were 7)"),
    ];
    for (at, bytes, wanted) in table {
        let bytes = patched(at, bytes);
        let image = read(&*bytes).expect("image");
        let ipib = image.ipib.as_ref().expect("list");
        let verdict = verify(&*bytes, &image.header, ipib, |_, _| {}).expect("read");
        assert_eq!(verdict.to_string(), format!("modified or truncated since it was sealed: {wanted}"));
    }
}
