//! Hostile bytes at every door: what the fuzz targets of `integration/fuzz` call, and the ordinary tests for a
//! moment. For tests only.
//!
//! Whatever the bytes are, nothing panics, waits or grows, and what passes a door has what the door is for. An error
//! is one printable line by its type. Each returns whether the bytes were accepted, so that a test can tell that a
//! seed is one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::agent::guard::Guard;
use crate::agent::messages::agent::StatsContainerResponse;
use crate::cli::explain;
use crate::cli::output::Style;
use crate::config::{annotations as pod_annotations, file, initdata as pod_initdata};
use crate::hostkey::{Certificate, Document, RevocationList, Trust, key_hash};
use crate::ids::{ContainerId, SandboxId};
use crate::limits;
use crate::oci::guest_spec::{guest_process, guest_spec};
use crate::oci::pod_spec::PodSpec;
use crate::oci::role::Role;
use crate::oci::volume::{self, SourceKind};
use crate::oci::{resources, spec, storage, unsupported};
use crate::plan::size::Size;
use crate::pod::{journal as pod_journal, record as pod_record};
use crate::qemu::qmp::{Qmp, QueryMigrate};
use crate::shim::{convert, pod_config};

#[cfg(feature = "test-api")]
pub use crate::image::fuzz_se_image as se_image;

const VM: Size = Size { memory_mib: 512, vcpus: 2 };

/// What an agent sends: the first byte is the number of calls that have no answer yet.
pub fn agent_frames(bytes: &[u8]) -> bool {
    let Some((calls, bytes)) = bytes.split_first() else { return false };
    let calls: Vec<u32> = (0..u32::from(calls % 16)).map(|call| 2 * call + 1).collect();
    let mut passed = Vec::new();
    let read = block_on(async {
        let (guest, stream) = tokio::io::duplex(bytes.len() + 4096);
        let (_calls, mut answers) = tokio::io::split(guest);
        let mut guarded = Guard::default().over(stream);
        for call in &calls {
            let request = [&[0; 4][..], &call.to_be_bytes(), &[1, 0]].concat();
            guarded.write_all(&request).await?;
        }
        answers.write_all(bytes).await?;
        answers.shutdown().await?;
        guarded.read_to_end(&mut passed).await
    });
    let (mut rest, mut open): (&[u8], HashSet<u32>) = (&passed, calls.into_iter().collect());
    while let Some(([l0, l1, l2, l3, s0, s1, s2, s3, kind, _], after)) = rest.split_first_chunk() {
        let length = u32::from_be_bytes([*l0, *l1, *l2, *l3]);
        assert!(*kind == 2 && length <= limits::agent::ANSWER_BYTES, "type {kind}, {length} bytes");
        assert!(open.remove(&u32::from_be_bytes([*s0, *s1, *s2, *s3])), "an answer to no call");
        rest = after.get(usize::try_from(length).unwrap_or(usize::MAX)..).unwrap_or_default();
    }
    read.is_ok()
}

/// An agent's statistics.
pub fn agent_statistics(bytes: &[u8]) -> bool {
    let Ok(answer) = StatsContainerResponse::parse_from_bytes(bytes) else { return false };
    let stats = crate::agent::stats::of(answer.cgroup_stats.unwrap_or_default());
    let stats = stats.clamp_to_vm(VM, Duration::from_secs(1));
    let most = u64::from(VM.memory_mib) << 20;
    assert!(stats.memory.usage <= most && stats.memory.details.get("inactive_file") <= stats.memory.usage);
    crate::shim::stats::metrics(&stats).is_ok()
}

/// What QEMU sends, with a command and an unplug waiting.
pub fn qmp_lines(bytes: &[u8]) -> bool {
    block_on(async {
        let Ok((ours, mut theirs)) = UnixStream::pair() else { return false };
        let qmp = Qmp::new(ours);
        let sent = async {
            theirs.write_all(bytes).await.ok();
            theirs.shutdown().await.ok();
        };
        let mut events = 0;
        let read = qmp.read(|event| events += usize::from(!format!("{event:?}").is_empty()));
        let (answer, _, _, end) =
            tokio::join!(qmp.execute(QueryMigrate {}), qmp.delete_device("disk"), sent, read);
        assert!(events <= bytes.len() / 2, "{events} events in {} bytes", bytes.len());
        answer.is_ok() || end.message() == "QEMU closed its QMP connection"
    })
}

/// A bundle's `config.json`, or the process of an exec, or limits to be changed.
pub fn oci_spec(bytes: &[u8]) -> bool {
    let Ok(id) = ContainerId::parse("c1") else { return false };
    let process = spec::parse_process(bytes).map(|process| guest_process(process, true)).is_ok();
    let limits = resources::parse(bytes, VM).is_ok();
    let Ok(bundle) = spec::parse(bytes, &id) else { return process || limits };
    PodSpec::of_bundle(&bundle).ok();
    unsupported::check(&bundle, |_, _| false).ok();
    let kind = |at: usize| match at % 4 {
        0 => SourceKind::File,
        1 => SourceKind::Directory { in_memory: true, gid: 7 },
        2 => SourceKind::Persistent,
        _ => SourceKind::Directory { in_memory: false, gid: 0 },
    };
    let sources = volume::host_sources(&bundle).map(Path::to_path_buf);
    let kinds: BTreeMap<_, _> = sources.enumerate().map(|(at, source)| (source, kind(at))).collect();
    let Ok(volumes) = volume::decide(&bundle, &id, &kinds, 1) else { return true };
    let sent = guest_spec(&bundle, &id, Path::new("/bundle"), volumes.mounts);
    assert!(sent.0.hooks().is_none(), "a hook of the host is sent to the guest");
    for mount in sent.0.mounts().iter().flatten().filter(|mount| spec::is_bind(mount)) {
        let source = mount.source().as_deref().unwrap_or(Path::new(""));
        let is_of_guest =
            source.starts_with(storage::SHARED_DIR) || source.starts_with("/run/kata-containers");
        assert!(is_of_guest, "{} is a path of the host", source.display());
    }
    crate::agent::convert::spec(&sent);
    true
}

/// A pod's annotations, a line each: `name=value`.
pub fn annotations(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let pairs: HashMap<String, String> =
        text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect();
    let (Ok(config), Ok(id)) = (file::parse(&[]), ContainerId::parse("c1")) else { return false };
    let role = Role::from_annotations(&pairs, &id).is_ok();
    let applied = pod_annotations::apply(config, &pairs);
    role && applied.is_ok()
}

/// A pod's initdata, in any of its forms.
pub fn initdata(bytes: &[u8]) -> bool {
    let Ok(text) = pod_initdata::any_form(bytes) else { return false };
    pod_initdata::Document::parse(&text).is_ok()
}

/// A configuration file.
pub fn configuration(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).into_owned();
    file::parse(&[(PathBuf::from("/etc/kata-se/configuration.toml"), text)]).is_ok()
}

/// Host key documents, certificates and revocation lists, as one file: the first certificate is the root, the last
/// the signing key.
pub fn host_key_document(bytes: &[u8]) -> bool {
    const NOW: Duration = Duration::from_secs(1_790_000_000);
    let hashed = key_hash("f", bytes).is_ok();
    let document = Document::parse("f", bytes);
    assert!(hashed || document.is_err(), "a document whose key has no hash");
    let certificates = Certificate::parse_all("f", bytes).unwrap_or_default();
    for certificate in &certificates {
        certificate.check_dates(NOW).ok();
        certificate.check_strength().ok();
        certificate.check_extensions().ok();
        certificate.is_signing_key();
    }
    let lists = RevocationList::parse_all("f", bytes);
    let accepted = document.is_ok() || !certificates.is_empty() || lists.is_ok();
    if let [root, intermediates @ .., signing_key] = certificates.as_slice() {
        let trust = Trust {
            signing_key: signing_key.clone(),
            intermediates: intermediates.to_vec(),
            root: root.clone(),
            lists: lists.unwrap_or_default(),
        };
        if let (Ok(chain), Ok(document)) = (trust.check(NOW), &document) {
            chain.check(document).ok();
        }
    }
    accepted
}

/// A pod's journal.
pub fn journal(bytes: &[u8]) -> bool {
    let entries = pod_journal::parse(bytes);
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(entries.len(), lines, "each complete line is an entry or an error");
    !entries.is_empty() && entries.iter().all(std::result::Result::is_ok)
}

/// A sandbox record, or any text, for `kata-se explain`.
pub fn record(bytes: &[u8]) -> bool {
    let record = pod_record::Record::parse(bytes);
    let reports = [
        record.as_ref().ok().map(|record| explain::record_report(record, Style::default())),
        Some(explain::text_report(&String::from_utf8_lossy(bytes), Style::default())),
    ];
    for report in reports.into_iter().flatten() {
        let hidden = report.text.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(hidden, None, "for the terminal: {:?}", report.text);
    }
    record.is_ok()
}

/// CRI's configuration of a pod, and the options of a runtime.
pub fn cri_messages(bytes: &[u8]) -> bool {
    let Ok(id) = SandboxId::parse("s1") else { return false };
    let pod = pod_config::pod_spec(bytes, &id);
    let type_url = "runtimeoptions.v1.Options".to_owned();
    let options = Any { type_url, value: bytes.to_vec(), ..Default::default() };
    convert::config_path(&options).is_ok() || pod.is_ok()
}

#[allow(clippy::panic)] // of a test
fn block_on<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap_or_else(|e| panic!("start a runtime: {e}"));
    }
    RUNTIME.with(|runtime| runtime.block_on(work))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::image::Hostile;

    type Target = fn(&[u8]) -> bool;

    /// Each target by the name of its folder of seeds.
    const TARGETS: [(&str, Target); 11] = [
        ("agent_frames", agent_frames),
        ("agent_statistics", agent_statistics),
        ("annotations", annotations),
        ("configuration", configuration),
        ("cri_messages", cri_messages),
        ("host_key_document", host_key_document),
        ("initdata", initdata),
        ("journal", journal),
        ("oci_spec", oci_spec),
        ("qmp_lines", qmp_lines),
        ("record", record),
    ];

    /// The files of the target's folder, and those that `shared` names for it.
    fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let corpus = root.join("integration/fuzz/corpus");
        let own = std::fs::read_dir(corpus.join(target)).into_iter().flatten();
        let mut files: Vec<PathBuf> = own.map(|file| file.expect("entry").path()).collect();
        let shared = std::fs::read_to_string(corpus.join("shared")).expect("shared");
        let named = shared.lines().filter_map(|line| line.split_once(' ')).filter(|(of, _)| *of == target);
        files.extend(named.map(|(_, file)| root.join(file)));
        files.sort();
        files.into_iter().map(|path| (path.clone(), std::fs::read(path).expect("seed"))).collect()
    }

    #[test]
    fn every_seed_is_accepted_and_a_moment_of_hostile_bytes_does_no_harm() {
        let mut hostile = Hostile::default();
        for (name, target) in TARGETS {
            let seeds = seeds(name);
            assert!(!seeds.is_empty(), "{name} has no seed");
            for (path, bytes) in &seeds {
                assert!(target(bytes), "{} is not accepted", path.display());
            }
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(300) {
                let (_, seed) = &seeds[hostile.below(seeds.len())];
                target(&hostile.changed(seed));
            }
        }
    }

    #[test]
    fn every_target_can_be_called_by_the_fuzzer() {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/fuzz/src/bin");
        let files = std::fs::read_dir(manifest).expect("targets");
        let mut named: Vec<String> =
            files.map(|f| f.expect("entry").file_name().to_string_lossy().replace(".rs", "")).collect();
        named.sort();
        let mut wanted: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).chain(["se_image"]).collect();
        wanted.sort_unstable();
        assert_eq!(named, wanted);
    }
}
