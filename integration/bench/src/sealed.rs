//! The cost of checking a sealed image: before each pod its header, on demand its whole content.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kata_se::test_api::ImageFile;
use kata_se::test_api::collect;
use kata_se::test_api::{Count, Root};
use softuv::seal::{Options, Parts, seal};
use softuv::secrets::Secrets;

use crate::process::spent;
use crate::table::{Table, Wanted, median};

const RAMDISK: usize = 192 << 20;
const ROUNDS: usize = 5;

pub(crate) fn measure(table: &mut Table) {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("image");
    let megabytes = image(&path);

    table.heading(&format!("a sealed image of {megabytes:.0} MB"));
    let times = (0..50).map(|_| header(&path)).collect();
    table.row("preflight of a pod, header only, milliseconds", median(times), None, Wanted::AtMost(5.0));

    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        ours.push(content(&path));
        theirs.push(sha512sum(&path));
    }
    let rate = |times: Vec<Duration>| megabytes * 1e3 / median(times);
    let wall = |times: &[(Duration, Duration)]| rate(times.iter().map(|(wall, _)| *wall).collect());
    let used = |times: &[(Duration, Duration)]| rate(times.iter().map(|(_, used)| *used).collect());
    table.row("digests, MB/s; reference: sha512sum", wall(&ours), Some(wall(&theirs)), Wanted::Nothing);
    table.row(
        "digests, MB per second of CPU; reference: sha512sum",
        used(&ours),
        Some(used(&theirs)),
        Wanted::Nothing,
    );
    let percent = used(&ours) / used(&theirs) * 100.0;
    table.row("percent of sha512sum's, for each second of CPU", percent, None, Wanted::AtLeast(60.0));
}

/// Seals the image; returns its size in MB.
fn image(path: &Path) -> f64 {
    let parts = Parts {
        kernel: vec![1; 8 << 20],
        ramdisk: Some(vec![2; RAMDISK]),
        command_line: b"quiet".to_vec(),
        stage3a: vec![0; 4392],
        stage3b: vec![0; 200],
    };
    let secrets = Secrets::new(Some("bench")).expect("secrets");
    let host = softuv::keys::private(&[7; 60]).expect("key").public_key();
    let image = seal(&parts, &Options::new(vec![host]), &secrets).expect("seal");
    fs::write(path, &image).expect("write");
    File::open(path).and_then(|file| file.sync_all()).expect("sync");
    f64::from(u32::try_from(image.len() / 1000).expect("fits")) / 1e3
}

/// What the shim checks before it starts QEMU, on this machine.
fn header(path: &Path) -> Duration {
    let began = Instant::now();
    let survey = collect(&Root::of_this_machine(), Count::NearLimit, path, &[] as &[PathBuf]);
    assert!(!survey.findings(2048, 1).is_empty(), "findings");
    began.elapsed()
}

/// Elapsed time, and CPU time.
fn content(path: &Path) -> (Duration, Duration) {
    let file = ImageFile::open(path).expect("open");
    let image = kata_se::test_api::image::read(&file).expect("image");
    let ipib = image.ipib.expect("list");
    let (began, before) = (Instant::now(), spent());
    let verdict = kata_se::test_api::image::verify(&file, &image.header, &ipib, |_, _| ()).expect("read");
    assert!(verdict.untouched(), "{verdict}");
    (began.elapsed(), spent().saturating_sub(before))
}

fn sha512sum(path: &Path) -> (Duration, Duration) {
    let (began, before) = (Instant::now(), spent());
    let output = Command::new("sha512sum").arg(path).output().expect("sha512sum");
    assert!(output.status.success(), "{output:?}");
    (began.elapsed(), spent().saturating_sub(before))
}
