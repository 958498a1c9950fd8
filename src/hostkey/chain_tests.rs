//! A world of certificates, made here from scratch, and everything that can be wrong in it.

use p384::ecdsa::signature::hazmat::PrehashSigner;
use sha2::{Digest, Sha384};
use x509_cert::der::asn1::ObjectIdentifier;

use super::*;

/// 2026-01-01, when every test takes place.
pub(crate) const NOW: Duration = Duration::from_secs(1_767_225_600);

const IBM: &str = "International Business Machines Corporation";

type Parts = Vec<(&'static str, String)>;

fn parts(all: &[(&'static str, &str)]) -> Parts {
    all.iter().map(|(oid, value)| (*oid, (*value).to_owned())).collect()
}

fn ibm(locality: &str) -> Parts {
    parts(&[
        ("2.5.4.6", "US"),
        ("2.5.4.8", "New York"),
        ("2.5.4.7", locality),
        ("2.5.4.10", IBM),
        ("2.5.4.11", "IBM Z Host Key Signing Service"),
        ("2.5.4.3", IBM),
    ])
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut der = vec![tag];
    match length {
        0..128 => der.push(u8::try_from(length).expect("small")),
        128..256 => der.extend([0x81, u8::try_from(length).expect("small")]),
        _ => {
            der.push(0x82);
            der.extend(u16::try_from(length).expect("medium").to_be_bytes());
        }
    }
    der.extend_from_slice(content);
    der
}

fn seq(items: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, &items.concat())
}

fn oid(text: &str) -> Vec<u8> {
    tlv(6, ObjectIdentifier::new_unwrap(text).as_bytes())
}

fn bits(content: &[u8]) -> Vec<u8> {
    tlv(3, &[&[0], content].concat())
}

fn dn(parts: &Parts) -> Vec<u8> {
    seq(&parts.iter().map(|(o, v)| tlv(0x31, &seq(&[oid(o), tlv(12, v.as_bytes())]))).collect::<Vec<_>>())
}

fn extension(id: &str, critical: bool, value: &[u8]) -> Vec<u8> {
    let flag = if critical { tlv(1, &[0xff]) } else { vec![] };
    seq(&[oid(id), flag, tlv(4, value)])
}

/// A key of a certificate authority on P-384, made of one number.
fn signer(n: u8) -> p384::ecdsa::SigningKey {
    p384::ecdsa::SigningKey::from_slice(&[n; 48]).expect("key")
}

fn algorithm(name: &str) -> Vec<u8> {
    seq(&[oid(name)])
}

fn signed(tbs: Vec<u8>, name: &str, key: u8) -> Vec<u8> {
    let signature: p384::ecdsa::Signature = signer(key).sign_prehash(&Sha384::digest(&tbs)).expect("sign");
    seq(&[tbs, algorithm(name), bits(signature.to_der().as_bytes())])
}

fn public(curve: &str, point: &[u8]) -> Vec<u8> {
    seq(&[seq(&[oid("1.2.840.10045.2.1"), oid(curve)]), bits(point)])
}

fn p384_key(n: u8) -> Vec<u8> {
    public("1.3.132.0.34", signer(n).verifying_key().to_encoded_point(false).as_bytes())
}

fn host_key() -> Vec<u8> {
    let mut scalar = [7; 66];
    scalar[0] = 0;
    let key = p521::ecdsa::SigningKey::from_slice(&scalar).expect("key");
    public("1.3.132.0.35", p521::ecdsa::VerifyingKey::from(&key).to_encoded_point(false).as_bytes())
}

#[derive(Clone)]
struct Cert {
    subject: Parts,
    issuer: Parts,
    serial: u8,
    dates: [&'static str; 2],
    key: Vec<u8>,
    /// Numbers of the keys that the identifiers name; the signer's number.
    skid: Option<u8>,
    akid: Option<u8>,
    signer: u8,
    /// Basic constraints, and the first byte of the key usage.
    ca: Option<Vec<u8>>,
    usage: Option<u8>,
    is_critical: bool,
    /// The algorithm that the signature is said to be of.
    algorithm: &'static str,
    more: Vec<u8>,
}

/// Key usage: to sign certificates, revocation lists; a digital signature.
const CERTIFICATES: u8 = 0x04;
const LISTS: u8 = 0x02;
const SIGNATURE: u8 = 0x80;

const ECDSA_SHA384: &str = "1.2.840.10045.4.3.3";

#[derive(Clone)]
struct List {
    issuer: Parts,
    dates: [&'static str; 2],
    akid: u8,
    signer: u8,
    revoked: Vec<u8>,
    /// An extension of each entry, of the list.
    of_entries: Vec<u8>,
    more: Vec<u8>,
}

impl Cert {
    fn der(&self) -> Vec<u8> {
        let mut extensions = vec![];
        if let Some(ca) = &self.ca {
            extensions.push(extension("2.5.29.19", self.is_critical, ca));
        }
        if let Some(usage) = self.usage {
            extensions.push(extension("2.5.29.15", true, &tlv(3, &[1, usage])));
        }
        if let Some(n) = self.skid {
            extensions.push(extension("2.5.29.14", false, &tlv(4, &[n; 20])));
        }
        if let Some(n) = self.akid {
            extensions.push(extension("2.5.29.35", false, &seq(&[tlv(0x80, &[n; 20])])));
        }
        extensions.push(self.more.clone());
        let dates: Vec<_> = self.dates.iter().map(|date| tlv(23, date.as_bytes())).collect();
        let tbs = seq(&[
            tlv(0xa0, &tlv(2, &[2])),
            tlv(2, &[self.serial]),
            algorithm(self.algorithm),
            dn(&self.issuer),
            seq(&dates),
            dn(&self.subject),
            self.key.clone(),
            tlv(0xa3, &seq(&extensions)),
        ]);
        signed(tbs, self.algorithm, self.signer)
    }
}

impl List {
    fn der(&self) -> Vec<u8> {
        let date = |text: &str| tlv(23, text.as_bytes());
        let more =
            if self.of_entries.is_empty() { vec![] } else { seq(std::slice::from_ref(&self.of_entries)) };
        let entries: Vec<_> =
            self.revoked.iter().map(|n| seq(&[tlv(2, &[*n]), date("251231000000Z"), more.clone()])).collect();
        let akid = extension("2.5.29.35", false, &seq(&[tlv(0x80, &[self.akid; 20])]));
        let mut tbs = vec![tlv(2, &[1]), algorithm(ECDSA_SHA384), dn(&self.issuer)];
        tbs.extend(self.dates.iter().filter(|d| !d.is_empty()).map(|d| date(d)));
        if !entries.is_empty() {
            tbs.push(seq(&entries));
        }
        tbs.push(tlv(0xa0, &seq(&[akid, self.more.clone()])));
        signed(seq(&tbs), ECDSA_SHA384, self.signer)
    }
}

/// Root (key 1), intermediate (2), signing key (3), a host key document; a list of each issuer.
#[derive(Clone)]
struct World {
    root: Cert,
    intermediate: Cert,
    signing: Cert,
    host: Cert,
    lists: Vec<List>,
}

const DATES: [&str; 2] = ["250101000000Z", "270101000000Z"];

fn world() -> World {
    let (root, middle) = (parts(&[("2.5.4.3", "Root")]), parts(&[("2.5.4.3", "Middle")]));
    let ca = Some(seq(&[tlv(1, &[0xff])]));
    let cert = |subject: &Parts, issuer: &Parts, n: u8, by: u8| Cert {
        subject: subject.clone(),
        issuer: issuer.clone(),
        serial: 10 + n,
        dates: DATES,
        key: p384_key(n),
        skid: Some(n),
        akid: Some(by),
        signer: by,
        ca: ca.clone(),
        usage: Some(CERTIFICATES | LISTS),
        is_critical: true,
        algorithm: ECDSA_SHA384,
        more: vec![],
    };
    let list = |issuer: &Parts, n: u8| List {
        issuer: issuer.clone(),
        dates: DATES,
        akid: n,
        signer: n,
        revoked: vec![99],
        of_entries: vec![],
        more: vec![],
    };
    let signing = ibm("Poughkeepsie");
    let host = Cert {
        key: host_key(),
        ca: None,
        usage: None,
        ..cert(&parts(&[("2.5.4.3", "8561-T01")]), &signing, 4, 3)
    };
    World {
        root: cert(&root, &root, 1, 1),
        intermediate: cert(&middle, &root, 2, 1),
        signing: Cert { ca: None, usage: Some(SIGNATURE), ..cert(&signing, &middle, 3, 2) },
        host,
        lists: vec![list(&root, 1), list(&middle, 2), list(&signing, 3)],
    }
}

impl World {
    fn verify(&self) -> Result<Vec<String>> {
        let one = |name: &str, cert: &Cert| {
            Certificate::parse_all(name, &cert.der()).map(|mut all| all.remove(0)).expect("certificate")
        };
        let list = |(n, list): (usize, &List)| {
            RevocationList::parse_all(&format!("crl{n}"), &list.der()).expect("list").remove(0)
        };
        let trust = Trust {
            signing_key: one("signing.crt", &self.signing),
            intermediates: vec![one("middle.crt", &self.intermediate)],
            root: one("root.crt", &self.root),
            lists: self.lists.iter().enumerate().map(list).collect(),
        };
        let chain = trust.check(NOW)?;
        chain.check(&Document::parse("HKD.crt", &self.host.der())?)?;
        Ok(chain.path)
    }
}

/// The files of the good world, by name.
pub(crate) fn files() -> Vec<(&'static str, Vec<u8>)> {
    let w = world();
    vec![
        ("root.crt", w.root.der()),
        ("middle.crt", w.intermediate.der()),
        ("signing.crt", w.signing.der()),
        ("HKD.crt", w.host.der()),
        ("0.crl", w.lists[0].der()),
        ("1.crl", w.lists[1].der()),
        ("2.crl", w.lists[2].der()),
    ]
}

fn refused(change: impl FnOnce(&mut World), wanted: &str) {
    let mut changed = world();
    change(&mut changed);
    let e = changed.verify().expect_err(wanted).to_string();
    assert!(e.starts_with(wanted), "{e}");
}

#[test]
fn a_good_document_is_trusted_along_the_whole_chain() {
    assert_eq!(world().verify(), Ok(vec!["signing.crt".into(), "middle.crt".into(), "root.crt".into()]));
}

#[test]
fn ibms_quirks_of_names_are_known() {
    let mut quirky = world();
    quirky.host.issuer = ibm("Armonk");
    quirky.host.issuer.reverse();
    quirky.lists[2].issuer = ibm("Armonk");
    assert!(quirky.verify().is_ok());
    let mut other = world();
    other.signing.subject = ibm("Armonk");
    assert!(other.verify().is_ok());
    refused(
        |w| w.host.issuer = ibm("Paris"),
        "host key document HKD.crt: issuer: it is CN=International Business Machines Corporation,OU=IBM Z Host Key \
         Signing Service,O=International Business Machines Corporation,L=Paris",
    );
    // The quirks are IBM's alone.
    refused(
        |w| w.lists[1].issuer = parts(&[("2.5.4.10", "Middle")]),
        "signing.crt: revocation: no list of middle",
    );
}

#[test]
fn only_ibms_signing_key_is_one() {
    refused(
        |w| drop(w.signing.subject.pop()),
        "signing.crt: subject: it has 5 parts, IBM's signing key has 6",
    );
    for (at, text) in [
        (0, "signing.crt: subject: C is \"Oops\", must be US"),
        (1, "signing.crt: subject: ST is \"Oops\", must be New York"),
        (2, "signing.crt: subject: L is \"Oops\", must be Poughkeepsie or Armonk"),
        (3, "signing.crt: subject: O is \"Oops\", must be International Business Machines Corporation"),
        (4, "signing.crt: subject: OU is \"Oops\", must be … Key Signing Service"),
        (5, "signing.crt: subject: CN is \"Oops\", must be International Business Machines Corporation"),
    ] {
        refused(|w| w.signing.subject[at].1 = "Oops".into(), text);
    }
}

#[test]
fn every_signature_counts() {
    refused(
        |w| w.host.signer = 9,
        "host key document HKD.crt: signature: it does not verify (key of signing.crt)",
    );
    refused(|w| w.signing.signer = 9, "signing.crt: signature: it does not verify (key of middle.crt)");
    refused(|w| w.intermediate.signer = 9, "middle.crt: signature: it does not verify (key of root.crt)");
    refused(|w| w.root.signer = 9, "root.crt: signature: it does not verify (key of root.crt)");
    refused(|w| w.lists[2].signer = 9, "crl2: signature: it does not verify (key of signing.crt)");
    refused(|w| w.lists[1].signer = 9, "crl1: signature: it does not verify (key of middle.crt)");
}

#[test]
fn dates_of_everything_are_checked() {
    const PAST: [&str; 2] = ["240101000000Z", "251231235959Z"];
    const COMING: [&str; 2] = ["260101000001Z", "270101000000Z"];
    refused(
        |w| w.host.dates = PAST,
        "host key document HKD.crt: not after: 2025-12-31T23:59:59Z has passed, now is 2026-01-01T00:00:00Z",
    );
    refused(
        |w| w.host.dates = COMING,
        "host key document HKD.crt: not before: 2026-01-01T00:00:01Z is still to come, now is",
    );
    refused(|w| w.signing.dates = PAST, "signing.crt: not after: ");
    refused(|w| w.intermediate.dates = COMING, "middle.crt: not before: ");
    refused(|w| w.root.dates = PAST, "root.crt: not after: ");
    refused(|w| w.lists[2].dates = PAST, "crl2: next update: 2025-12-31T23:59:59Z has passed");
    refused(|w| w.lists[0].dates = COMING, "crl0: this update: ");
    refused(|w| w.lists[2].dates = ["250101000000Z", ""], "crl2: next update: not given");
}

#[test]
fn what_is_revoked_or_has_no_list_is_refused() {
    refused(|w| w.lists[2].revoked.push(14), "host key document HKD.crt: serial number: revoked by crl2");
    refused(|w| w.lists[1].revoked.push(13), "signing.crt: serial number: revoked by crl1");
    refused(|w| w.lists[0].revoked = vec![12], "middle.crt: serial number: revoked by crl0");
    refused(
        |w| drop(w.lists.remove(2)),
        "host key document HKD.crt: revocation: no list of signing.crt is given",
    );
    refused(|w| drop(w.lists.remove(1)), "signing.crt: revocation: no list of middle.crt is given");
    refused(|w| w.lists.clear(), "signing.crt: revocation: no list of middle.crt is given");
    // An old list beside a current one does no harm, and hides nothing.
    let mut two = world();
    two.lists.insert(2, List { dates: ["240101000000Z", "250101000000Z"], ..two.lists[2].clone() });
    assert!(two.verify().is_ok());
    two.lists[3].revoked.push(14);
    assert!(two.verify().expect_err("revoked").to_string().ends_with("serial number: revoked by crl3"));
    let delta = extension("2.5.29.27", true, &tlv(2, &[1]));
    refused(|w| w.lists[2].more = delta, "crl2: extensions: 2.5.29.27 is critical and not known here");
}

/// A distribution point with one address, as in a list; in a certificate it is one of a list of them.
fn point(uri: &str) -> Vec<u8> {
    tlv(0xa0, &tlv(0xa0, &tlv(0x86, uri.as_bytes())))
}

fn scope(fields: &[Vec<u8>]) -> Vec<u8> {
    extension("2.5.29.28", true, &seq(fields))
}

#[test]
fn a_list_counts_only_for_the_certificates_that_it_covers() {
    const HERE: &str = "http://ca.example/1.crl";
    const ELSEWHERE: &str = "http://ca.example/2.crl";
    let only = |field: u8| scope(&[tlv(field, &[0xff])]);
    let other = "different CRL scope: it is not of a distribution point of host key document HKD.crt";
    for (extension, wanted) in [
        (only(0x82), "different CRL scope: only CA certificates, host key document HKD.crt is none"),
        (only(0x84), "different CRL scope: it is an indirect list"),
        (only(0x85), "different CRL scope: only attribute certificates"),
        (scope(&[tlv(0x83, &[5, 0x60])]), "different CRL scope: only some reasons"),
        // The document has no distribution point at all.
        (scope(&[point(ELSEWHERE)]), other),
        (extension("2.5.29.28", true, &[5, 0]), ""),
        // It narrows the list whether or not it is critical.
        (extension("2.5.29.28", false, &seq(&[point(ELSEWHERE)])), other),
    ] {
        let wanted = format!("crl2: issuing distribution point: {wanted}");
        refused(|w| w.lists[2].more = extension, &wanted);
    }
    refused(
        |w| w.lists[0].more = only(0x81),
        "crl0: issuing distribution point: different CRL scope: only user certificates, middle.crt is a CA's",
    );

    let with = extension;
    let fits = |extension: Vec<u8>, of_document: &[Vec<u8>]| {
        let mut changed = world();
        changed.lists[2].more = extension;
        changed.host.more = with("2.5.29.31", false, &seq(of_document));
        changed
    };
    let (here, elsewhere) = (seq(&[point(HERE)]), seq(&[point(ELSEWHERE)]));
    let trusted = |w: World| w.verify().map(drop);
    assert_eq!(trusted(fits(only(0x81), std::slice::from_ref(&here))), Ok(()));
    assert_eq!(trusted(fits(scope(&[]), std::slice::from_ref(&here))), Ok(()));
    assert_eq!(trusted(fits(scope(&[point(HERE)]), &[elsewhere.clone(), here.clone()])), Ok(()));
    let foreign = |w: World| w.verify().expect_err("scope").to_string();
    assert!(foreign(fits(scope(&[point(HERE)]), &[elsewhere])).contains(other));
    // Points with reasons, or with lists of another issuer, vouch for nothing.
    let reasons = seq(&[point(HERE), tlv(0x81, &[5, 0x60])]);
    assert!(foreign(fits(scope(&[point(HERE)]), &[reasons])).contains(other));
    let issuer = seq(&[point(HERE), tlv(0xa2, &tlv(0x86, b"x:y"))]);
    assert!(foreign(fits(scope(&[point(HERE)]), &[issuer])).contains(other));

    // Another part of the authority's lists neither helps nor harms beside the right one.
    let mut both = fits(scope(&[point(HERE)]), &[here]);
    both.lists.insert(2, List { more: scope(&[point(ELSEWHERE)]), ..both.lists[2].clone() });
    assert_eq!(trusted(both.clone()), Ok(()));
    both.lists[3].revoked.push(14);
    assert!(foreign(both).ends_with("serial number: revoked by crl3"));
}

#[test]
fn a_critical_extension_of_an_entry_refuses_the_list() {
    // The certificate issuer of an indirect list; a reason, which changes nothing.
    refused(
        |w| w.lists[2].of_entries = extension("2.5.29.29", true, &seq(&[tlv(0x86, b"x:y")])),
        "crl2: extensions of an entry: 2.5.29.29 is critical and not known here",
    );
    let mut reason = world();
    reason.lists[2].of_entries = extension("2.5.29.21", false, &tlv(10, &[1]));
    assert!(reason.verify().is_ok());
}

#[test]
fn key_identifiers_must_match() {
    let wanted =
        "host key document HKD.crt: authority key identifier: it names another key than that of signing";
    refused(|w| w.host.akid = Some(9), wanted);
    refused(|w| w.signing.akid = Some(9), "signing.crt: authority key identifier: it names another key");
    refused(
        |w| w.lists[2].akid = 9,
        "crl2: authority key identifier: it names another key than that of signing",
    );
    let mut without = world();
    without.host.akid = None;
    assert!(without.verify().is_ok());
}

/// Each row of `rules`: what OpenSSL refuses with the flags of pvimg, too.
#[test]
fn every_certificate_of_the_chain_obeys_the_strict_rules() {
    type Change = fn(&mut World);
    let rows: [(Change, &str); 10] = [
        (|w| w.root.is_critical = false, "root.crt: basic constraints: those of a CA must be critical"),
        (|w| w.intermediate.usage = None, "middle.crt: key usage: a CA must have one"),
        (|w| w.signing.usage = Some(CERTIFICATES), "signing.crt: key usage: only a CA may sign certificates"),
        (
            |w| w.signing.ca = Some(seq(&[tlv(2, &[0])])),
            "signing.crt: basic constraints: a path length is for those that sign certificates",
        ),
        (|w| w.intermediate.skid = None, "middle.crt: subject key identifier: a CA must have one"),
        (|w| w.root.skid = None, "root.crt: subject key identifier: a CA must have one"),
        (|w| w.signing.akid = None, "signing.crt: authority key identifier: it must name a key"),
        (|w| w.intermediate.akid = None, "middle.crt: authority key identifier: it must name a key"),
        (
            |w| {
                w.intermediate.subject.clear();
                w.signing.issuer.clear();
            },
            "signing.crt: issuer: it is empty",
        ),
        (
            |w| w.intermediate.usage = Some(CERTIFICATES),
            "middle.crt: key usage: it may not sign revocation lists",
        ),
    ];
    for (change, wanted) in rows {
        refused(change, wanted);
    }
    // A root need not name its own key.
    let mut root = world();
    root.root.akid = None;
    assert!(root.verify().is_ok());
}

#[test]
fn a_roots_own_signature_need_not_be_of_a_hash_that_counts() {
    // ECDSA and RSA with SHA-1, and another that is not accepted.
    for old in ["1.2.840.10045.4.1", "1.2.840.113549.1.1.5"] {
        let mut world = world();
        world.root.algorithm = old;
        world.root.signer = 9;
        assert!(world.verify().is_ok(), "{old}");
    }
    refused(
        |w| w.root.algorithm = "1.2.840.113549.1.1.4",
        "root.crt: signature: algorithm 1.2.840.113549.1.1.4",
    );
    refused(
        |w| w.intermediate.algorithm = "1.2.840.10045.4.1",
        "middle.crt: signature: algorithm 1.2.840.10045.4.1 is not accepted",
    );
}

#[test]
fn an_authority_key_identifier_may_name_the_issuers_issuer() {
    // The serial number and the issuer of the key's certificate (RFC 5280, 4.2.1.1).
    let of = |names: &[Vec<u8>]| {
        let names = tlv(0xa1, &names.iter().map(|name| tlv(0xa4, name)).collect::<Vec<_>>().concat());
        let mut changed = world();
        changed.host.akid = None;
        changed.host.more = extension("2.5.29.35", false, &seq(&[names, tlv(0x82, &[13])]));
        changed.verify()
    };
    assert!(of(&[dn(&parts(&[("2.5.4.3", "Middle")]))]).is_ok());
    let e = of(&[dn(&parts(&[("2.5.4.3", "Root")]))]).expect_err("another issuer").to_string();
    let wanted =
        "host key document HKD.crt: authority key identifier: it names another issuer than that of signing";
    assert!(e.starts_with(wanted), "{e}");
}

#[test]
fn the_chain_must_end_at_the_root_through_authorities() {
    refused(
        |w| w.signing.issuer = parts(&[("2.5.4.3", "Nobody")]),
        "signing.crt: issuer: no certificate of CN=Nobody is given (--intermediate, --root)",
    );
    refused(
        |w| w.root.issuer = parts(&[("2.5.4.3", "X")]),
        "root.crt: issuer: a root certificate issues itself",
    );
    refused(|w| w.intermediate.ca = None, "middle.crt: basic constraints: it is not a CA certificate");
    let no_ca = |w: &mut World| (w.root.ca, w.root.usage) = (Some(seq(&[])), None);
    refused(no_ca, "root.crt: basic constraints: it is not a CA certificate");
    refused(|w| w.intermediate.usage = Some(LISTS), "middle.crt: key usage: it may not sign certificates");
    let only_itself = seq(&[tlv(1, &[0xff]), tlv(2, &[0])]);
    refused(|w| w.root.ca = Some(only_itself), "root.crt: basic constraints: the chain below it is longer");
    let unknown = extension("1.2.3.4", true, &[]);
    refused(|w| w.host.more = unknown, "host key document HKD.crt: extensions: 1.2.3.4 is critical");
    let mut direct = world();
    direct.signing = Cert { issuer: direct.root.subject.clone(), akid: Some(1), signer: 1, ..direct.signing };
    assert_eq!(direct.verify(), Ok(vec!["signing.crt".into(), "root.crt".into()]));
}

#[test]
fn weak_or_impossible_keys_are_refused() {
    refused(
        |w| w.signing.key = public("1.2.840.10045.3.1.7", &[4; 65]),
        "signing.crt: public key: neither RSA nor on the curve P-384 or P-521",
    );
    refused(
        |w| w.host.key = public("1.3.132.0.35", &[4; 133]),
        "host key document HKD.crt: public key: not a point of P-521",
    );
    refused(
        |w| w.host.key = p384_key(4),
        "host key document HKD.crt: its key is on the curve 1.3.132.0.34, a host key is on P-521",
    );
}

#[test]
fn damaged_files_are_refused_without_a_panic() {
    let world = world();
    let (der, list) = (world.signing.der(), world.lists[0].der());
    for end in 0..der.len() {
        assert!(Certificate::parse_all("c", &der[..end]).is_err(), "{end}");
    }
    for end in 0..list.len() {
        assert!(RevocationList::parse_all("l", &list[..end]).is_err(), "{end}");
    }
}
