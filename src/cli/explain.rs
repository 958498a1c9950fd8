//! `kata-se explain`: why a secure guest failed, from the pod's record or from any output of QEMU, the guest's
//! console or a log.

use std::io::{IsTerminal, Read};
use std::path::Path;

use clap::Args;
use serde_json::json;

use crate::cli::output::{Report, Style, size};
use crate::diagnosis::Diagnosis;
use crate::error::{Code, Context, Error, Result, one_line};
use crate::host::files::read_bounded;
use crate::limits;
use crate::pod::dir;
use crate::pod::record::Record;
use crate::qemu::failure::explain_text;

/// Explains why a secure guest did not start: cause, evidence, advice.
///
/// With a sandbox id it reads the pod's record, which exists as long as the pod does. Otherwise it searches a file
/// or standard input for known messages:
///
///   journalctl -u containerd --since -10min | kata-se explain -
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// A sandbox id, a file, or `-` for standard input.
    #[arg(value_name = "SANDBOX|dir::RECORD|-", default_value = "-", hide_default_value = true)]
    what: String,
}

impl Explain {
    pub(crate) fn run(&self, style: Style) -> Result<Report> {
        if self.what == "-" {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                return Err(Error::invalid("nothing to explain: name a sandbox or a file, or pipe text in"));
            }
            return Ok(piped_report(&read_begin(stdin.lock(), limits::text::EXPLAINED_BYTES)?, style));
        }
        explain(&self.what, &dir::run_dir(), style)
    }
}

/// Explains the sandbox of this id or, if there is none, the file of this name.
fn explain(what: &str, run_dir: &Path, style: Style) -> Result<Report> {
    let Search { found, unreadable } = find_record(run_dir, what)?;
    if let Some(record) = found {
        return Ok(record_report(&record, style));
    }
    let bytes = read_bounded(Path::new(what), limits::text::EXPLAINED_BYTES).map_err(|e| match e.code() {
        Code::NotFound => neither_sandbox_nor_file(what, &unreadable),
        _ => e,
    })?;
    match serde_json::from_slice::<Record>(&bytes) {
        Ok(record) => Ok(record_report(&record, style)),
        Err(_) => Ok(text_report(&String::from_utf8_lossy(&bytes), style)),
    }
}

/// Any of the records that could not be read may be the wanted one.
fn neither_sandbox_nor_file(what: &str, unreadable: &[String]) -> Error {
    let mut text = format!(
        "{what:?}: neither a sandbox that runs here nor a file: a pod's record is removed with the pod"
    );
    if !unreadable.is_empty() {
        text.push_str(&format!("; records that cannot be read: {}", unreadable.join("; ")));
    }
    Error::not_found(text)
}

/// The begin of a piped text, and whether there is more.
#[derive(Debug, PartialEq, Eq)]
struct Begin {
    text: String,
    is_cut: bool,
}

fn read_begin(input: impl Read, most: u64) -> Result<Begin> {
    let mut bytes = Vec::new();
    input.take(most + 1).read_to_end(&mut bytes).context("read standard input")?;
    let is_cut = bytes.len() as u64 > most;
    bytes.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    Ok(Begin { text: String::from_utf8_lossy(&bytes).into_owned(), is_cut })
}

fn piped_report(begin: &Begin, style: Style) -> Report {
    let mut report = text_report(&begin.text, style);
    report.json["cut"] = begin.is_cut.into();
    if begin.is_cut {
        report.text.push_str(&format!(
            "Only the first {} were read: pipe in the part around the failure, such as `tail -c 10M`.\n",
            size(limits::text::EXPLAINED_BYTES)
        ));
    }
    report
}

/// The records in the pods' directories, searched for one sandbox.
struct Search {
    found: Option<Record>,
    /// Why each of the others could not be read: broken, or written by a newer version.
    unreadable: Vec<String>,
}

/// Finds the record of the sandbox with this id or, as `crictl` shortens ids, with an id that begins so.
/// A folder that this user may not read is no reason not to look for a file.
fn find_record(run_dir: &Path, id: &str) -> Result<Search> {
    let mut unreadable = Vec::new();
    let entries = match std::fs::read_dir(run_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Search { found: None, unreadable }),
        Err(e) => {
            unreadable.push(format!("{}: {e}", run_dir.display()));
            return Ok(Search { found: None, unreadable });
        }
    };
    let mut matches = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if !path.join(dir::RECORD).is_file() {
            continue;
        }
        match Record::read(&path) {
            Ok(record) if record.sandbox == id => return Ok(Search { found: Some(record), unreadable }),
            Ok(record) if id.len() >= 8 && record.sandbox.starts_with(id) => matches.push(record),
            Ok(_) => {}
            Err(e) => unreadable.push(e.to_string()),
        }
    }
    match matches.len() {
        0 | 1 => Ok(Search { found: matches.pop(), unreadable }),
        many => Err(Error::invalid(format!("sandbox {id}: {many} ids begin with it: use more of it"))),
    }
}

pub(crate) fn record_report(record: &Record, style: Style) -> Report {
    let mut guest = record.image.as_ref().map_or_else(String::new, |image| {
        let (path, tag) = (one_line(&image.path), one_line(&image.tag));
        let key = one_line(image.key.as_deref().unwrap_or("not known"));
        format!("image     {path}\ntag       {tag}\nkey       {key}\n")
    });
    if let Some(initdata) = &record.initdata {
        let (algorithm, digest) = (one_line(&initdata.algorithm), one_line(&initdata.digest));
        guest.push_str(&format!("initdata  {algorithm} {digest}\n"));
    }
    if !record.confidential {
        guest.push_str("guest     NOT protected from the host (guest.confidential = false)\n");
    }
    if let Some(mode) = &record.rootfs {
        guest.push_str(&format!("rootfs    {}\n", one_line(mode)));
    }
    let sandbox = one_line(&record.sandbox);
    let Some(failure) = &record.failure else {
        return Report {
            text: format!("sandbox   {sandbox}\n{guest}\nIts VM has not failed.\n"),
            json: record_json(Some(record), None),
            yes: true,
        };
    };
    // This version may know messages that the shim's did not.
    let messages = format!("{}\n{}\n{}", failure.cause, failure.evidence, failure.output_tail);
    let diagnosis = Diagnosis {
        cause: failure.cause.clone(),
        evidence: failure.evidence.clone(),
        advice: failure.advice.clone(),
    };
    let known = !failure.advice.is_empty();
    let diagnosis = if known { diagnosis } else { explain_text(&messages).unwrap_or(diagnosis) };
    let text = format!(
        "sandbox   {sandbox}\n{guest}{}words     {}\n",
        diagnosis_text(&diagnosis, style),
        one_line(&failure.output_tail)
    );
    Report { text, json: record_json(Some(record), Some(&diagnosis)), yes: !diagnosis.advice.is_empty() }
}

pub(crate) fn text_report(text: &str, style: Style) -> Report {
    match explain_text(text) {
        Some(diagnosis) => Report {
            text: diagnosis_text(&diagnosis, style),
            json: record_json(None, Some(&diagnosis)),
            yes: true,
        },
        None => Report {
            text: format!("No known failure in this text of {} lines.\n", text.lines().count()),
            json: record_json(None, None),
            yes: false,
        },
    }
}

fn diagnosis_text(diagnosis: &Diagnosis, style: Style) -> String {
    let cause = style.strong(&one_line(&diagnosis.cause));
    let mut text = format!("cause     {cause}\n");
    for (name, part) in [("evidence", &diagnosis.evidence), ("advice", &diagnosis.advice)] {
        if !part.is_empty() {
            text.push_str(&format!("{name:<9} {}\n", one_line(part)));
        }
    }
    text
}

fn record_json(record: Option<&Record>, diagnosis: Option<&Diagnosis>) -> serde_json::Value {
    json!({
        "sandbox": record.map(|record| &record.sandbox),
        "confidential": record.map(|record| record.confidential),
        "image": record.and_then(|record| record.image.as_ref()),
        "initdata": record.and_then(|record| record.initdata.as_ref()),
        "failure": diagnosis.map(|d| json!({"cause": d.cause, "evidence": d.evidence, "advice": d.advice})),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RootfsMode;
    use crate::pod::record::{Failure, ImageRecord, InitdataRecord};

    fn failed() -> Record {
        let image =
            ImageRecord { path: "/i.img".into(), size: 7, tag: "abcd".into(), key: Some("12".into()) };
        let mut record = Record::new("0123456789abcdef", RootfsMode::GuestPull, Some(image));
        record.failure = Some(Failure {
            cause: "the image was built for another machine".into(),
            evidence: "KVM_PV_SET_SEC_PARMS: rc 0x108 rrc 0x5 (no key slot for this machine)".into(),
            advice: "rebuild it".into(),
            output_tail: "stderr: KVM PV command 2\u{1b}[31m".into(),
        });
        record
    }

    #[test]
    fn a_failed_sandbox_is_explained_by_its_record() {
        let report = record_report(&failed(), Style::default());
        assert_eq!(report.text, include_str!("testdata/explain.txt"), "{}", report.text);
        assert!(report.yes);
        assert_eq!(report.json["failure"]["advice"], "rebuild it");
        let mut plain = failed();
        plain.failure = Some(Failure {
            cause: "QEMU ended with exit code 1: stderr: S390 PV guests require KVM".into(),
            evidence: String::new(),
            advice: String::new(),
            output_tail: String::new(),
        });
        assert!(record_report(&plain, Style::default()).text.contains("cause     QEMU runs without KVM\n"));
        let running = record_report(&Record::new("s1", RootfsMode::Packed, None), Style::default());
        assert!(running.yes && running.text.ends_with("Its VM has not failed.\n"));
        let unprotected = "guest     NOT protected from the host (guest.confidential = false)\n";
        assert!(running.text.contains(unprotected), "{}", running.text);
        assert_eq!(
            (&running.json["confidential"], &report.json["confidential"]),
            (&json!(false), &json!(true))
        );
    }

    #[test]
    fn the_digest_of_initdata_is_shown() {
        let mut record = Record::new("s1", RootfsMode::Packed, None);
        record.initdata = Some(InitdataRecord { algorithm: "sha256".into(), digest: "ab12".into() });
        let report = record_report(&record, Style::default());
        assert!(report.text.contains("initdata  sha256 ab12\n"), "{}", report.text);
        assert_eq!(report.json["initdata"]["digest"], "ab12");
    }

    #[test]
    fn a_record_is_found_by_its_id_or_a_prefix_of_it() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(find_record(&dir.path().join("none"), "s").expect("no directory").found.is_none());
        for (name, id) in [("a", "0123456789abcdef"), ("b", "0123456789abcxyz")] {
            std::fs::create_dir(dir.path().join(name)).expect("mkdir");
            Record::new(id, RootfsMode::Packed, None).write(&dir.path().join(name)).expect("write");
        }
        let find =
            |id: &str| find_record(dir.path(), id).map(|search| search.found.map(|record| record.sandbox));
        assert_eq!(find("0123456789abcdef"), Ok(Some("0123456789abcdef".into())));
        assert_eq!(find("0123456789abcx"), Ok(Some("0123456789abcxyz".into())));
        assert_eq!(find("0123"), Ok(None), "too short to be meant");
        assert!(find("0123456789").expect_err("two").to_string().contains("2 ids begin with it"));
    }

    #[test]
    fn an_unreadable_record_of_another_pod_does_not_hide_the_wanted_one() {
        let dir = tempfile::tempdir().expect("dir");
        let record_in = |name: &str, text: &[u8]| {
            std::fs::create_dir(dir.path().join(name)).expect("mkdir");
            std::fs::write(dir.path().join(name).join(dir::RECORD), text).expect("write");
        };
        record_in("broken", b"{");
        let newer =
            json!({"version": 2, "sandbox": "s2", "confidential": false, "image": null, "failure": null});
        record_in("newer", newer.to_string().as_bytes());
        record_in("good", &serde_json::to_vec(&Record::new("s1", RootfsMode::Packed, None)).expect("json"));
        let explain = |what: &str| explain(what, dir.path(), Style::default());
        assert!(explain("s1").expect("readable").text.contains("Its VM has not failed"));
        let text = explain("s3").expect_err("unknown").to_string();
        assert!(text.starts_with("\"s3\": neither a sandbox that runs here nor a file: "), "{text}");
        for part in ["records that cannot be read: ", "/broken/state.json: ", "/newer/state.json: version 2"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let hidden = dir.path().join("broken").join(dir::RECORD);
        let search = find_record(&hidden, "s1").expect("a folder that cannot be read");
        assert!(search.found.is_none() && search.unreadable.concat().contains("Not a directory"));
        let log = dir.path().join("log").display().to_string();
        std::fs::write(&log, "all\nis well\n").expect("write");
        assert!(explain(&log).expect("a file").text.starts_with("No known failure"));
    }

    #[test]
    fn a_piped_text_that_is_cut_says_so() {
        let begin = |most| read_begin(&b"all is well\n"[..], most).expect("read");
        assert_eq!((begin(12).is_cut, begin(11).is_cut), (false, true));
        assert_eq!(begin(3).text, "all");
        let report = piped_report(&begin(3), Style::default());
        assert!(report.text.contains("\nOnly the first 16 MiB were read: "), "{}", report.text);
        assert_eq!((&report.json["cut"], &report.json["failure"]), (&json!(true), &json!(null)));
        assert!(!piped_report(&begin(12), Style::default()).text.contains("Only the first"));
    }

    #[test]
    fn any_text_is_searched_for_known_messages() {
        let known = text_report(
            "x\nKVM PV command 4 (KVM_PV_VERIFY) failed: header rc 102 rrc 1b IOCTL rc: -22\n",
            Style::default(),
        );
        assert!(known.yes && known.text.starts_with("cause     the image was modified"), "{}", known.text);
        let unknown = text_report("all\nis well\n", Style::default());
        assert!(!unknown.yes);
        assert_eq!(unknown.text, "No known failure in this text of 2 lines.\n");
    }
}
