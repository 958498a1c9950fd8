use super::*;

/// Made by other programs (Python's gzip and base64) of the file beside it.
const ANNOTATION_TEXT: &str = include_str!("testdata/initdata.base64");
const TOML: &str = include_str!("testdata/initdata.toml");
/// Of coreutils' sha384sum.
const SHA384: &str =
    "01d3248ddd3ae769b8c4f80edf30f3008b88c3e71e6aa46c1a2752080fe7781584ab10e3720247ea0fb1d7741a44d611";

fn gzipped(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text).expect("compress");
    encoder.finish().expect("compress")
}

fn refused(annotation: &str) -> String {
    Initdata::of_annotation(annotation).expect_err("refused").to_string()
}

#[test]
fn what_other_programs_made_is_read_and_goes_onto_the_disk_unchanged() {
    let initdata = Initdata::of_annotation(ANNOTATION_TEXT).expect("initdata");
    let digest = InitdataDigest { algorithm: Algorithm::Sha384, hash: SHA384.into() };
    assert_eq!((&initdata.digest, initdata.has_policy), (&digest, true));
    let gzip = STANDARD.decode(ANNOTATION_TEXT.trim()).expect("base64");
    let disk = initdata.disk();
    assert_eq!(disk.len() % 512, 0);
    assert_eq!(&disk[..8], b"initdata");
    assert_eq!(disk[8..16], (gzip.len() as u64).to_le_bytes());
    let (stream, padding) = disk[16..].split_at(gzip.len());
    assert!(stream == gzip && padding.iter().all(|byte| *byte == 0) && padding.len() < 512);
    let folded: String = ANNOTATION_TEXT
        .trim()
        .as_bytes()
        .chunks(76)
        .map(|line| format!("{}\r\n", String::from_utf8_lossy(line)))
        .collect();
    assert_eq!(Initdata::of_annotation(&folded), Ok(initdata), "base64 in lines");
}

#[test]
fn a_stream_that_ends_with_a_sector_has_no_padding() {
    let initdata = |length| Initdata {
        gzip: vec![7; length],
        digest: InitdataDigest { algorithm: Algorithm::Sha256, hash: String::new() },
        has_policy: false,
    };
    let disk = |length| initdata(length).disk().len();
    assert_eq!((disk(495), disk(496), disk(497)), (512, 512, 1024));
}

#[test]
fn every_form_of_it_is_shown_as_the_same_text() {
    for form in [ANNOTATION_TEXT.as_bytes(), &gzipped(TOML.as_bytes()), TOML.as_bytes()] {
        let text = any_form(form).expect("text");
        assert_eq!(text, TOML);
        assert_eq!(Document::parse(&text).expect("document").digest.hash, SHA384);
    }
}

#[test]
fn what_is_built_comes_back_and_is_the_same_each_time() {
    let policy = "package agent_policy\n\n\"'''\\ \u{7f}\u{e9}\r\n\tdefault x := false\n";
    let data = BTreeMap::from([
        (POLICY.to_owned(), policy.to_owned()),
        (AA.to_owned(), "\n\n[a]\nb = '''\nc\n'''\n".to_owned()),
        (CDH.to_owned(), String::new()),
        ("other \"name\"".to_owned(), "'''\"\"\"".to_owned()),
    ]);
    for algorithm in Algorithm::ALL {
        let built = Initdata::build(algorithm, &data).expect("built");
        assert_eq!(Initdata::build(algorithm, &data), Ok(built.clone()));
        assert_eq!(Initdata::of_annotation(&built.annotation()), Ok(built.clone()));
        let text = any_form(built.annotation().as_bytes()).expect("text");
        let document = Document::parse(&text).expect("document");
        assert_eq!((&document.data, &document.digest), (&data, &built.digest));
        assert_eq!(document.digest.algorithm, algorithm);
        assert!(text.starts_with("version = \"0.1.0\"\nalgorithm = \"sha"), "{text}");
    }
}

#[test]
fn each_fault_is_one_line_that_names_it_and_quotes_no_document() {
    let of_toml = |text: &str| refused(&STANDARD.encode(gzipped(text.as_bytes())));
    let base = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n";
    let whole = gzipped(base.as_bytes());
    let cut = STANDARD.encode(&whole[..whole.len() - 4]);
    let twice = STANDARD.encode([whole.clone(), whole.clone()].concat());
    let mut changed = whole.clone();
    let checksum = changed.len() - 6;
    changed[checksum] ^= 1;
    for (e, wanted) in [
        (refused(""), "is empty: make it with `kata-se initdata build`"),
        (refused(" \n"), "is empty"),
        (refused("H4sI_w=="), "not base64 with the standard alphabet and padding"),
        (refused("H4sI"), "not a whole gzip stream"),
        (refused("H4s"), "not base64"),
        (refused("dmVyc2lvbiA9ICIwLjEuMCIK"), "not a whole gzip stream"),
        (refused(&cut), "not a whole gzip stream"),
        (refused(&STANDARD.encode(changed)), "not a whole gzip stream"),
        (refused(&twice), "bytes follow the gzip stream, which the guest would not read"),
        (refused(&STANDARD.encode(gzipped(b"\xff"))), "unpacked it is not UTF-8 text"),
        (of_toml("version = \"0.1.0\"\nx = S3CRET\n"), "not TOML: line 2: "),
        (of_toml("algorithm = \"sha256\"\n[data]"), "version is missing"),
        (of_toml("version = 1\nalgorithm = \"sha256\"\n[data]"), "version is not a text"),
        (of_toml("version = \"0.2.0\"\nalgorithm = \"sha256\"\n[data]"), "version \"0.2.0\": guests know"),
        (of_toml("version = \"0.1.0\"\n[data]"), "algorithm is missing"),
        (
            of_toml("version = \"0.1.0\"\nalgorithm = \"md5\"\n[data]"),
            "algorithm \"md5\": is none of sha256, sha384, sha512",
        ),
        (of_toml("version = \"0.1.0\"\nalgorithm = \"SHA256\"\n[data]"), "is none of"),
        (of_toml("version = \"0.1.0\"\nalgorithm = \"sha256\"\n"), "[data] is missing"),
        (of_toml("version = \"0.1.0\"\nalgorithm = \"sha256\"\ndata = \"S3CRET\""), "data is not a table"),
        (
            of_toml(&format!("{base}\"policy.rego\" = \"package agent_policy\\n{}\"", "#".repeat(65537))),
            "policy.rego: line 2 has 65537 bytes, more than the 65536 that the guest's agent reads",
        ),
        (of_toml(&format!("{base}\"aa.toml\" = 1")), "[data] \"aa.toml\" is not a text, as guests need it"),
        (
            of_toml(&format!("{base}\"aa.toml\" = \"\"\n\"aa.toml\" = \"\"")),
            "not TOML: line 5: duplicate key",
        ),
        (of_toml(&format!("{base}a = {}", "[".repeat(9_000))), "not TOML: line 4: "),
    ] {
        assert!(e.contains(wanted) && e.lines().count() == 1 && e.len() < 400, "{wanted}: {e}");
        assert!(!e.contains("S3CRET"), "{e}");
    }
    assert_eq!(Initdata::of_annotation(&STANDARD.encode(whole)).map(|i| i.has_policy), Ok(false));
}

#[test]
fn what_is_made_to_be_large_is_refused_by_its_size() {
    let long = "A".repeat(limits::guest_data::INITDATA_TEXT_BYTES + 1);
    assert!(refused(&long).starts_with("2097153 bytes of base64, at most 2097152 are taken"));
    let bomb = STANDARD.encode(gzipped(&vec![b'#'; 64 << 20]));
    assert!(bomb.len() < 100_000);
    assert!(refused(&bomb).starts_with("unpacked it has more than 4194304 bytes"), "{}", refused(&bomb));
    let many =
        format!("version = \"0.1.0\"\nalgorithm = \"sha256\"\nx = [{}]\n[data]\n", "[],".repeat(5_000));
    assert!(refused(&STANDARD.encode(gzipped(many.as_bytes()))).starts_with("more than 10000 parts of TOML"));
    let noise: String = (0..2_000_000_u32).map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761))).collect();
    let data = |text: &str| BTreeMap::from([(AA.to_owned(), text.to_owned())]);
    let built = |text| Initdata::build(Algorithm::Sha256, &data(text)).map_err(|e| e.to_string());
    assert!(built(&noise).expect_err("large").starts_with("unpacked it has more than"));
    assert!(built(&noise[..3_900_000]).expect_err("large").contains("bytes of base64, at most"));
}
