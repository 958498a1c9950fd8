//! `kata-se initdata`: makes the annotation by which a pod gives its guest's programs their documents, and shows what
//! is in one.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::output::Report;
use crate::config::initdata::{AA, ANNOTATION, Algorithm, CDH, Document, Initdata, POLICY, any_form};
use crate::error::{Context, Error, Result, one_line};
use crate::host::files::read_bounded;
use crate::limits;

#[derive(Debug, Subcommand)]
pub(crate) enum InitdataCommand {
    Build(Build),
    Show(Show),
    Digest(Digest),
}

/// Makes a pod's initdata of files, and prints the value of its annotation.
///
/// The value belongs to io.katacontainers.config.hypervisor.cc_init_data in the pod's metadata. The guest's agent
/// takes aa.toml, cdh.toml and policy.rego out of it at boot. Secure Execution binds initdata to nothing today: the
/// host can change it, and attestation does not tell.
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// aa.toml, cdh.toml, policy.rego: the name in the initdata is the file's.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The hash of the digest: sha256, sha384 or sha512.
    #[arg(long, default_value = "sha256", value_parser = Algorithm::ALL.map(Algorithm::name))]
    algorithm: String,
    /// Take files of other names as well, which agents up to Kata 4.1 ignore.
    #[arg(long)]
    any_name: bool,
}

/// Prints the TOML text in an annotation's value.
#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    input: Input,
}

/// Prints the algorithm and the digest of initdata, as the shim logs it: a hash of the TOML text.
#[derive(Debug, Args)]
pub(crate) struct Digest {
    #[command(flatten)]
    input: Input,
}

#[derive(Debug, Args)]
struct Input {
    /// A file with the annotation's value, its gzip stream or the TOML text, or `-` for standard input.
    #[arg(value_name = "FILE|-", default_value = "-", hide_default_value = true)]
    file: PathBuf,
}

impl InitdataCommand {
    pub(crate) fn run(&self) -> Result<Report> {
        match self {
            Self::Build(build) => build.run(),
            Self::Show(show) => show.run(std::io::stdout().is_terminal()),
            Self::Digest(digest) => digest.run(),
        }
    }
}

impl Build {
    fn run(&self) -> Result<Report> {
        let mut data = BTreeMap::new();
        for path in &self.files {
            let (name, text) = self.read(path)?;
            if data.insert(name.clone(), text).is_some() {
                return Err(Error::invalid(format!("two files are called {name}: give one")));
            }
        }
        let algorithm = Algorithm::ALL.into_iter().find(|known| known.name() == self.algorithm);
        let initdata = Initdata::build(algorithm.unwrap_or(Algorithm::Sha256), &data)?;
        let value = initdata.annotation();
        let names: Vec<_> = data.keys().collect();
        Ok(Report {
            text: format!("{value}\n"),
            json: json!({"annotation": ANNOTATION, "value": value, "algorithm": initdata.digest.algorithm.name(),
                "digest": initdata.digest.hash, "documents": names}),
            yes: true,
        })
    }

    /// A file's name and text, checked as far as a guest would fail by it.
    fn read(&self, path: &Path) -> Result<(String, String)> {
        let place = path.display();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::invalid(format!("{place}: has no name in UTF-8")))?;
        let bytes = read_bounded(path, limits::guest_data::INITDATA_BYTES as u64)?;
        let text = String::from_utf8(bytes)
            .map_err(|e| Error::invalid(format!("{place}: not UTF-8 text: {}", e.utf8_error())))?;
        match name {
            AA | CDH => {
                toml::from_str::<toml::Table>(&text)
                    .map_err(|e| Error::invalid(format!("{place}: not TOML: {}", e.message())))?;
            }
            POLICY => {}
            _ if self.any_name => {}
            _ => {
                return Err(Error::invalid(format!(
                    "{place}: guests take {AA}, {CDH} and {POLICY} and ignore {name:?}: rename it, or give --any-name"
                )));
            }
        }
        Ok((name.to_owned(), text))
    }
}

impl Show {
    fn run(&self, for_a_terminal: bool) -> Result<Report> {
        let (text, document) = self.input.read()?;
        // On a terminal nothing of it can do more than be read; elsewhere it is what the digest is of.
        let shown = if for_a_terminal {
            let line = |line: &str| line.split('\t').map(escaped).collect::<Vec<_>>().join("\t") + "\n";
            text.lines().map(line).collect()
        } else {
            text.clone()
        };
        let mut json = digest_json(&document);
        json["toml"] = text.into();
        json["documents"] = json!(document.data.keys().collect::<Vec<_>>());
        Ok(Report { text: shown, json, yes: true })
    }
}

/// `one_line` without its trimming.
fn escaped(text: &str) -> String {
    let inside = text.trim();
    let (before, after) = text.split_once(inside).unwrap_or(("", ""));
    format!("{}{}{}", " ".repeat(before.chars().count()), one_line(inside), " ".repeat(after.chars().count()))
}

impl Digest {
    fn run(&self) -> Result<Report> {
        let (_, document) = self.input.read()?;
        let digest = &document.digest;
        Ok(Report {
            text: format!("{} {}\n", digest.algorithm.name(), digest.hash),
            json: digest_json(&document),
            yes: true,
        })
    }
}

fn digest_json(document: &Document) -> serde_json::Value {
    let digest = &document.digest;
    json!({"algorithm": digest.algorithm.name(), "digest": digest.hash})
}

impl Input {
    fn read(&self) -> Result<(String, Document)> {
        let most = limits::guest_data::INITDATA_BYTES as u64;
        let bytes = if self.file == Path::new("-") {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                return Err(Error::invalid("no initdata: name a file, or pipe the annotation's value in"));
            }
            let mut bytes = Vec::new();
            stdin.lock().take(most + 1).read_to_end(&mut bytes).context("read standard input")?;
            if bytes.len() as u64 > most {
                return Err(Error::invalid(format!("standard input: larger than {most} bytes")));
            }
            bytes
        } else {
            read_bounded(&self.file, most)?
        };
        let name = self.file.display();
        let text = any_form(&bytes).with_context(|| format!("initdata {name}"))?;
        let document = Document::parse(&text).with_context(|| format!("initdata {name}"))?;
        Ok((text, document))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = include_str!("../config/testdata/initdata.toml");
    const ANNOTATION_TEXT: &str = include_str!("../config/testdata/initdata.base64");

    fn input(dir: &Path, content: &[u8]) -> Input {
        let file = dir.join("input");
        std::fs::write(&file, content).expect("write");
        Input { file }
    }

    fn build(dir: &Path, files: &[(&str, &str)], any_name: bool) -> Result<Report> {
        let made = files.iter().map(|(name, text)| {
            std::fs::write(dir.join(name), text).expect("write");
            dir.join(name)
        });
        Build { files: made.collect(), algorithm: "sha512".into(), any_name }.run()
    }

    #[test]
    fn files_become_an_annotation_that_shows_them_again() {
        let dir = tempfile::tempdir().expect("dir");
        let files = [("policy.rego", "package agent_policy\n"), ("aa.toml", "a = 1\n")];
        let built = build(dir.path(), &files, false).expect("built");
        assert_eq!(built.json["annotation"], ANNOTATION);
        assert_eq!(built.json["documents"], json!(["aa.toml", "policy.rego"]));
        assert_eq!(built.text.trim_end(), built.json["value"]);
        let shown = Show { input: input(dir.path(), built.text.as_bytes()) }.run(false).expect("shown");
        assert!(shown.text.contains("\"aa.toml\" = ") && shown.json["toml"] == shown.text, "{}", shown.text);
        let digest = Digest { input: input(dir.path(), shown.text.as_bytes()) }.run().expect("digest");
        assert_eq!(digest.json["digest"], built.json["digest"]);
        assert_eq!(digest.text, format!("sha512 {}\n", built.json["digest"].as_str().expect("text")));
    }

    #[test]
    fn what_a_guest_would_ignore_or_fail_by_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let refused =
            |files: &[(&str, &str)]| build(dir.path(), files, false).expect_err("refused").to_string();
        let ignored = [("policy.reg", "")];
        assert!(refused(&ignored).contains("guests take aa.toml, cdh.toml and policy.rego and ignore"));
        assert!(build(dir.path(), &ignored, true).is_ok());
        assert!(refused(&[("cdh.toml", "x = = 1")]).contains("/cdh.toml: not TOML: "));
        assert!(refused(&[("aa.toml", ""), ("aa.toml", "")]).contains("two files are called aa.toml"));
        let e = Show { input: input(dir.path(), b"H4sI") }.run(false).expect_err("no initdata").to_string();
        assert!(e.starts_with("initdata ") && e.contains("/input: not a whole gzip stream"), "{e}");
    }

    #[test]
    fn a_terminal_gets_no_character_that_it_would_obey() {
        let dir = tempfile::tempdir().expect("dir");
        let show = |bytes: &[u8], terminal| {
            Show { input: input(dir.path(), bytes) }.run(terminal).expect("shown").text
        };
        assert_eq!(show(ANNOTATION_TEXT.as_bytes(), true), TOML);
        let hostile = format!("{TOML}\t# \u{9b}31m x \u{202e} \n");
        assert_eq!(show(hostile.as_bytes(), false), hostile);
        assert_eq!(show(hostile.as_bytes(), true), format!("{TOML}\t# \\u{{9b}}31m x \\u{{202e}} \n"));
    }
}
