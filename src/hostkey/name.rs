//! Names in certificates: when two are the same, and which one IBM's signing key has.
//!
//! IBM's documents and lists name the signing key with its parts in another order, or with the other
//! of its two localities (s390-tools: rust/pv/src/verify/helper.rs calls both quirks).

use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::name::Name;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const COUNTRY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.6");
const LOCALITY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.7");
const STATE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.8");
const ORGANISATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");
const UNIT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.11");

const IBM: &str = "International Business Machines Corporation";

/// Both mean the same signing key.
const LOCALITIES: [&str; 2] = ["Poughkeepsie", "Armonk"];

/// The unit's name ends with it; what precedes it names the machine's generation.
const UNIT_SUFFIX: &str = "Key Signing Service";

type Part = (ObjectIdentifier, Vec<u8>);

fn parts(name: &Name) -> Vec<Part> {
    name.0.iter().flat_map(|rdn| rdn.0.iter()).map(|part| (part.oid, part.value.value().to_vec())).collect()
}

/// The same parts in the same order; how a text is encoded does not matter.
pub(crate) fn same(a: &Name, b: &Name) -> bool {
    parts(a) == parts(b)
}

/// The same parts in any order, either locality for the other.
pub(crate) fn same_ibm(a: &Name, b: &Name) -> bool {
    let plain = |name: &Name| {
        let mut parts = parts(name);
        for (oid, value) in &mut parts {
            if *oid == LOCALITY && LOCALITIES.iter().any(|known| known.as_bytes() == value) {
                *value = LOCALITIES[0].into();
            }
        }
        parts.sort();
        parts
    };
    plain(a) == plain(b)
}

/// Why this is not the name of IBM's host key signing key.
pub(crate) fn check_signing_key(name: &Name) -> Result<(), String> {
    let parts = parts(name);
    if parts.len() != 6 {
        return Err(format!("it has {} parts, IBM's signing key has 6", parts.len()));
    }
    let is = |what: &str, oid: ObjectIdentifier, wanted: &dyn Fn(&str) -> bool, text: &str| {
        let value = parts.iter().find(|(known, _)| *known == oid);
        match value.and_then(|(_, value)| std::str::from_utf8(value).ok()) {
            Some(value) if wanted(value) => Ok(()),
            Some(value) => Err(format!("{what} is {value:?}, must be {text}")),
            None => Err(format!("{what} is missing, must be {text}")),
        }
    };
    is("C", COUNTRY, &|v| v == "US", "US")?;
    is("O", ORGANISATION, &|v| v == IBM, IBM)?;
    is("L", LOCALITY, &|v| LOCALITIES.contains(&v), "Poughkeepsie or Armonk")?;
    is("ST", STATE, &|v| v == "New York", "New York")?;
    is("CN", COMMON_NAME, &|v| v == IBM, IBM)?;
    is("OU", UNIT, &|v| v.ends_with(UNIT_SUFFIX), "… Key Signing Service")
}

/// For messages, in one line.
pub(crate) fn show(name: &Name) -> String {
    crate::error::one_line(&name.to_string().chars().take(300).collect::<String>())
}
