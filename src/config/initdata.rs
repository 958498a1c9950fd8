//! Initdata: documents that a pod gives to its guest's programs, from the annotation's text to the disk that carries
//! them into the guest. Pure.
//!
//! The text is base64 of gzip of TOML (Confidential Containers, initdata 0.1.0). The guest's agent looks for the disk
//! at boot and takes aa.toml, cdh.toml and policy.rego out of it; a guest that cannot read its initdata does not boot,
//! so it is read here first. What the documents say is the guest's business.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use serde::Serialize;
use sha2::{Digest, Sha256, Sha384, Sha512};
use toml::de::{DeTable, DeValue};

use crate::config::policy;
use crate::error::{Context, Error, Result};
use crate::hex::hex;
use crate::limits;

/// The annotation that has it.
pub(crate) const ANNOTATION: &str = "io.katacontainers.config.hypervisor.cc_init_data";

/// The disk's first bytes, by which the agent knows it.
pub(crate) const MAGIC: &[u8; 8] = b"initdata";

/// The disk's length is a multiple of it.
const SECTOR: usize = 512;

const VERSION: &str = "0.1.0";

/// The documents that an agent takes; it ignores others.
pub(crate) const AA: &str = "aa.toml";
pub(crate) const CDH: &str = "cdh.toml";
pub(crate) const POLICY: &str = "policy.rego";

/// A pod's initdata, checked, as it goes onto the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Initdata {
    gzip: Vec<u8>,
    pub(crate) digest: InitdataDigest,
    /// It has a policy, which the agent sets before it takes any call.
    pub(crate) has_policy: bool,
}

/// The hash of the TOML text, by the algorithm that the text names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InitdataDigest {
    pub(crate) algorithm: Algorithm,
    /// In hexadecimal.
    pub(crate) hash: String,
}

/// The hash algorithms of initdata 0.1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Sha256,
    Sha384,
    Sha512,
}

/// The TOML text, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) digest: InitdataDigest,
    /// What is under `[data]`.
    pub(crate) data: BTreeMap<String, String>,
}

impl Initdata {
    /// Reads an annotation's value. Errors do not quote it: it may have secrets.
    pub(crate) fn of_annotation(text: &str) -> Result<Self> {
        Self::of_gzip(unbase64(text)?)
    }

    fn of_gzip(gzip: Vec<u8>) -> Result<Self> {
        let document = Document::parse(&inflate(&gzip)?)?;
        let policy = document.data.get(POLICY);
        policy.map_or(Ok(()), |text| policy::check_lines(text)).context(POLICY)?;
        let has_policy = policy.is_some();
        Ok(Self { gzip, digest: document.digest, has_policy })
    }

    /// Makes initdata of documents; the same ones always give the same bytes.
    pub(crate) fn build(algorithm: Algorithm, data: &BTreeMap<String, String>) -> Result<Self> {
        #[derive(Serialize)]
        struct Written<'a> {
            version: &'a str,
            algorithm: &'a str,
            data: &'a BTreeMap<String, String>,
        }
        let written = Written { version: VERSION, algorithm: algorithm.name(), data };
        let text = toml::to_string_pretty(&written).context("write TOML")?;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        let gzip = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish()).context("compress")?;
        let built = Self::of_gzip(gzip)?;
        let length = built.annotation().len();
        if length > limits::guest_data::INITDATA_TEXT_BYTES {
            return Err(too_long(length));
        }
        Ok(built)
    }

    /// The annotation's value.
    pub(crate) fn annotation(&self) -> String {
        STANDARD.encode(&self.gzip)
    }

    /// The disk's content: the magic, the gzip stream's length, the stream.
    pub(crate) fn disk(&self) -> Vec<u8> {
        let head = MAGIC.len() + size_of::<u64>();
        let mut disk = Vec::with_capacity((head + self.gzip.len()).next_multiple_of(SECTOR));
        disk.extend(MAGIC);
        disk.extend((self.gzip.len() as u64).to_le_bytes());
        disk.extend(&self.gzip);
        disk.resize(disk.len().next_multiple_of(SECTOR), 0);
        disk
    }
}

/// An annotation's value, its gzip stream, or the TOML text itself, as the TOML text.
pub(crate) fn any_form(bytes: &[u8]) -> Result<String> {
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return inflate(bytes);
    }
    let text = std::str::from_utf8(bytes).map_err(|e| Error::invalid(format!("not text: {e}")))?;
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || "+/=\r\n".contains(c);
    if text.trim().chars().all(is_base64) { inflate(&unbase64(text)?) } else { Ok(text.to_owned()) }
}

fn too_long(length: usize) -> Error {
    let most = limits::guest_data::INITDATA_TEXT_BYTES;
    Error::invalid(format!("{length} bytes of base64, at most {most} are taken: make the documents smaller"))
}

/// Line breaks are let pass: `base64` makes them.
fn unbase64(text: &str) -> Result<Vec<u8>> {
    if text.len() > limits::guest_data::INITDATA_TEXT_BYTES {
        return Err(too_long(text.len()));
    }
    let text: String = text.trim().chars().filter(|c| !"\r\n".contains(*c)).collect();
    if text.is_empty() {
        return Err(Error::invalid("is empty: make it with `kata-se initdata build`, or remove it"));
    }
    STANDARD.decode(&text).map_err(|e| {
        Error::invalid(format!("not base64 with the standard alphabet and padding ({e}): encode it again"))
    })
}

fn inflate(gzip: &[u8]) -> Result<String> {
    let most = limits::guest_data::INITDATA_BYTES;
    let mut decoder = GzDecoder::new(gzip);
    let mut bytes = Vec::new();
    (&mut decoder)
        .take(most as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::invalid(format!("not a whole gzip stream ({e}): compress it again with gzip")))?;
    if bytes.len() > most {
        return Err(Error::invalid(format!(
            "unpacked it has more than {most} bytes, which no guest needs: make the documents smaller"
        )));
    }
    let rest = decoder.into_inner().len();
    if rest > 0 {
        return Err(Error::invalid(format!(
            "{rest} bytes follow the gzip stream, which the guest would not read: compress all documents as one"
        )));
    }
    String::from_utf8(bytes).map_err(|e| {
        Error::invalid(format!("unpacked it is not UTF-8 text ({}): it has to be TOML", e.utf8_error()))
    })
}

impl Algorithm {
    pub(crate) const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    fn hash(self, text: &str) -> String {
        match self {
            Self::Sha256 => hex(&Sha256::digest(text)),
            Self::Sha384 => hex(&Sha384::digest(text)),
            Self::Sha512 => hex(&Sha512::digest(text)),
        }
    }
}

impl Document {
    /// Reads the TOML text. Keys beside `version`, `algorithm` and `[data]` are let be: they count in the digest.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let most = limits::guest_data::INITDATA_TOKENS;
        if toml_parser::Source::new(text).lex().nth(most).is_some() {
            return Err(Error::invalid(format!(
                "more than {most} parts of TOML, a document being one: no guest needs so many: leave some out"
            )));
        }
        let table = DeTable::parse(text).map_err(|e| {
            let start = e.span().map_or(0, |span| span.start);
            let line = text.get(..start).unwrap_or(text).matches('\n').count() + 1;
            Error::invalid(format!("not TOML: line {line}: {}", e.message()))
        })?;
        let table = table.get_ref();
        let of = |key: &str| match table.get(key).map(|value| value.get_ref()) {
            Some(DeValue::String(text)) => Ok(text.as_ref()),
            Some(_) => Err(Error::invalid(format!("{key} is not a text"))),
            None => Err(Error::invalid(format!("{key} is missing"))),
        };
        let quoted = |text: &str| text.chars().take(limits::text::QUOTED_CHARS).collect::<String>();
        let version = of("version")?;
        if version != VERSION {
            return Err(Error::invalid(format!(
                "version {:?}: guests know {VERSION:?} only: write it in that form",
                quoted(version)
            )));
        }
        let named = of("algorithm")?;
        let algorithm = Algorithm::ALL.into_iter().find(|known| known.name() == named).ok_or_else(|| {
            let known = Algorithm::ALL.map(Algorithm::name).join(", ");
            Error::invalid(format!("algorithm {:?}: is none of {known}", quoted(named)))
        })?;
        let data = match table.get("data").map(|value| value.get_ref()) {
            Some(DeValue::Table(data)) => data,
            Some(_) => return Err(Error::invalid("data is not a table: write the documents below [data]")),
            None => return Err(Error::invalid("[data] is missing: write the documents below it")),
        };
        let text_of = |(name, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
            let name: &std::borrow::Cow<'_, str> = name.get_ref();
            match value.get_ref() {
                DeValue::String(text) => Ok((name.to_string(), text.to_string())),
                _ => {
                    Err(Error::invalid(format!("[data] {:?} is not a text, as guests need it", quoted(name))))
                }
            }
        };
        let data = data.iter().map(text_of).collect::<Result<_>>()?;
        let hash = algorithm.hash(text);
        Ok(Self { digest: InitdataDigest { algorithm, hash }, data })
    }
}

#[cfg(test)]
#[path = "initdata_tests.rs"]
mod tests;
