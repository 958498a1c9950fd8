//! What was copied into a guest follows the host: configMaps, secrets and tokens as the kubelet replaces them, and files
//! alone. No update is seen half, none outlives its container, and what fails is said once.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use harness::{Bundle, KubeletVolume, NO_STREAMS, TestNode, agent, eventually, rounds, within};
use kata_se::test_api::{Courier, EmptyDirMode, Published, VolumesConfig};
use serde_json::{Value, json};

const SHARED: &str = "/run/kata-containers/shared/containers/";

const BOUNDS: VolumesConfig = VolumesConfig {
    empty_dir: EmptyDirMode::GuestLocal,
    empty_dir_gib: 0,
    max_empty_dir_gib: 0,
    copied_mib: 64,
    copied_files: 4096,
};

fn bind(destination: &str, source: &Path) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", "ro"]})
}

fn with_mounts(bundle: Bundle, mounts: &[Value]) -> Bundle {
    let mut bundle = bundle;
    bundle.config["mounts"].as_array_mut().expect("list").extend_from_slice(mounts);
    bundle
}

/// The guest's copies whose name ends so: it is a plain process, and its files are in a folder of the node.
fn copies(node: &TestNode, end: &str) -> Vec<PathBuf> {
    let folder = node.path("guest").join(SHARED.trim_start_matches('/'));
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_str().is_some_and(|path| path.ends_with(end)))
        .collect();
    found.sort();
    found
}

fn copy(node: &TestNode, end: &str) -> PathBuf {
    let mut found = copies(node, end);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Paths of CopyFile, below the volume that ends so, since the last CreateContainer.
fn sent(node: &TestNode, volume: &str) -> Vec<String> {
    let requests = node.requests();
    let made = requests.iter().rposition(|r| r["call"] == "CreateContainer").map_or(0, |at| at + 1);
    let later = requests[made..].iter().filter(|r| r["call"] == "CopyFile");
    later
        .filter_map(|r| r["request"]["path"].as_str()?.split_once(volume))
        .map(|(_, below)| below.to_owned())
        .collect()
}

/// How many descriptors of inotify a process has.
fn watchers(pid: u32) -> usize {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).expect("fds").flatten();
    all.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.to_str() == Some("anon_inode:inotify")))
        .count()
}

#[tokio::test]
async fn a_volume_follows_the_kubelets_and_no_known_link_is_sent_again() {
    let node = TestNode::new().await;
    let mut volume = KubeletVolume::new(node.path("config"), &[("a", "1"), ("gone", "1")]);
    let mounts = [bind("/etc/config", volume.path())];
    let shim = node.running("c1", &with_mounts(Bundle::sh("sleep 1000").sandbox(), &mounts)).await;
    let guest = copy(&node, "-config");
    assert_eq!((text(&guest.join("a")), text(&guest.join("gone"))), ("1".into(), "1".into()));

    volume.update(&[("a", "2"), ("new", "2")]);
    eventually("the new key", 5, || text(&guest.join("new")) == "2").await;
    assert_eq!((text(&guest.join("a")), guest.join("gone").exists()), ("2".into(), false));
    let folder = volume.folder();
    let wanted = [
        format!("/{folder}"),
        format!("/{folder}/a"),
        format!("/{folder}/new"),
        format!("/{folder}"),
        "/..data".into(),
        "/new".into(),
        String::new(),
    ];
    eventually("the whole update", 5, || sent(&node, "-config").len() >= wanted.len()).await;
    assert_eq!(sent(&node, "-config"), wanted, "in this order");

    // A container that is frozen finds the newest when it goes on.
    shim.pause("c1").await.expect("pause");
    volume.update(&[("a", "3"), ("new", "3")]);
    eventually("the third revision", 5, || text(&guest.join("a")) == "3").await;
    shim.resume("c1").await.expect("resume");
    volume.update(&[("a", "4"), ("new", "4")]);
    eventually("the fourth revision", 5, || text(&guest.join("a")) == "4").await;
    // Of older ones than that before nothing but an empty file is left.
    let folders = || {
        let all = fs::read_dir(&guest).expect("list").flatten();
        all.filter(|entry| entry.file_type().is_ok_and(|typ| typ.is_dir())).count()
    };
    eventually("the old ones are removed", 5, || folders() == 2).await;
    assert!(!node.log().contains("is not seen"), "nothing has failed");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn each_container_has_its_own_copy_and_watches_end_with_the_last() {
    let node = TestNode::new().await;
    let mut volume = KubeletVolume::new(node.path("config"), &[("a", "1")]);
    let shim = node.running("pod", &Bundle::sh("sleep 1000").sandbox()).await;
    let pid = node.shim_pid().await;
    assert_eq!(watchers(pid), 0);
    for id in ["c1", "c2"] {
        let bundle =
            with_mounts(Bundle::sh("sleep 1000").member("pod"), &[bind("/etc/config", volume.path())]);
        let dir = node.bundle(id, &bundle);
        shim.create(id, &dir, NO_STREAMS).await.expect("create");
        shim.start(id, "").await.expect("start");
    }
    assert_eq!(watchers(pid), 2, "one instance, and what waits for it");
    let [one, two] = &copies(&node, "-config")[..] else { panic!("{:?}", copies(&node, "-config")) };
    volume.update(&[("a", "2")]);
    eventually("both", 5, || text(&one.join("a")) == "2" && text(&two.join("a")) == "2").await;
    // The first ends: the other's goes on.
    shim.kill("c1", "", 9).await.expect("kill");
    shim.wait("c1", "").await.expect("wait");
    volume.update(&[("a", "3")]);
    eventually("the other", 5, || text(&two.join("a")) == "3").await;
    assert_eq!(text(&one.join("a")), "2");
    shim.delete("c1", "").await.expect("delete");
    shim.kill("c2", "", 9).await.expect("kill");
    shim.wait("c2", "").await.expect("wait");
    eventually("no watch is left", 5, || watchers(pid) == 0).await;
    shim.delete("c2", "").await.expect("delete");
    node.end(&shim, "pod").await;
}

#[tokio::test]
async fn a_file_alone_is_replaced_in_two_steps_also_after_one_that_failed() {
    let node = TestNode::new().await;
    let hosts = node.path("hosts");
    fs::write(&hosts, "one\n").expect("write");
    let shim = node
        .running("c1", &with_mounts(Bundle::sh("sleep 1000").sandbox(), &[bind("/etc/hosts", &hosts)]))
        .await;
    let guest = copy(&node, "-hosts");
    assert_eq!(text(&guest), "one\n");
    fs::write(&hosts, "one and two\n").expect("write");
    eventually("the change", 5, || text(&guest) == "one and two\n").await;
    assert_eq!(sent(&node, "-hosts"), [".kse", ""]);

    // The step that puts it in place fails, and the next text is shorter than what is left.
    node.script(&json!([{"call": "CopyFile", "request": {"offset": "20"}, "skip": true, "error": {"code": 13, "text": "on purpose"}}]));
    fs::write(&hosts, "twenty bytes of it.\n").expect("write");
    let seen = std::cell::RefCell::new(String::new());
    let failed = || {
        seen.borrow_mut().push_str(&node.log());
        seen.borrow().contains("a change of the host is not seen in c1")
    };
    eventually("the failure", 5, failed).await;
    assert_eq!(text(&guest), "one and two\n");
    fs::write(&hosts, "three\n").expect("write");
    eventually("the next", 5, || text(&guest) == "three\n").await;
    // A file that takes its place on the node is followed, too.
    fs::write(node.path("other"), "four\n").expect("write");
    fs::rename(node.path("other"), &hosts).expect("rename");
    eventually("another file", 5, || text(&guest) == "four\n").await;
    fs::write(&hosts, "").expect("write");
    eventually("empty", 5, || fs::read(&guest).is_ok_and(|bytes| bytes.is_empty())).await;
    fs::write(&hosts, "five\n").expect("write");
    eventually("and full again", 5, || text(&guest) == "five\n").await;
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_failed_update_is_told_once_and_a_guest_that_takes_no_files_too() {
    let node = TestNode::new().await;
    let mut volume = KubeletVolume::new(node.path("config"), &[("a", "1")]);
    let mut other = KubeletVolume::new(node.path("other"), &[("a", "1")]);
    let mounts = [bind("/etc/config", volume.path()), bind("/etc/other", other.path())];
    let shim = node.running("c1", &with_mounts(Bundle::sh("sleep 1000").sandbox(), &mounts)).await;
    let (guest, others) = (copy(&node, "-config"), copy(&node, "-other"));
    let (log, lines) =
        (std::cell::RefCell::new(String::new()), |log: &str, what: &str| log.matches(what).count());
    let look = |what: &str| {
        log.borrow_mut().push_str(&node.log());
        lines(&log.borrow(), what)
    };
    node.script(&json!([{"call": "CopyFile", "error": {"code": 13, "text": "on purpose"}}]));
    for round in ["2", "3", "4"] {
        let before = sent(&node, "-config").len();
        volume.update(&[("a", round)]);
        eventually("a try", 5, || sent(&node, "-config").len() > before).await;
    }
    assert_eq!((text(&guest.join("a")).as_str(), look("on purpose")), ("1", 1), "{}", log.borrow());
    node.script(&json!([]));
    volume.update(&[("a", "5")]);
    eventually("a change", 5, || text(&guest.join("a")) == "5").await;
    eventually("the good news", 5, || look("is up to date again") == 1).await;

    node.script(&json!([{"call": "CopyFile", "error": {"code": 7, "text": "CopyFileRequest is blocked by policy: x"}}]));
    volume.update(&[("a", "6")]);
    other.update(&[("a", "6")]);
    eventually("the refusal", 5, || look("this guest takes no files") == 1).await;
    eventually("both", 5, || sent(&node, "-other").len() == 1).await;
    assert_eq!((text(&guest.join("a")).as_str(), text(&others.join("a")).as_str()), ("5", "1"));
    assert_eq!(shim.run_exec("c1", "e1", &["/bin/true"]).await, 0, "the pod goes on");
    assert_eq!(look("this guest takes no files"), 1, "{}", log.borrow());
    node.script(&json!([]));
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn no_update_shows_the_text_of_a_sealed_secret() {
    let node = TestNode::new().await;
    let first = [("plain", "p1"), ("secret", "sealed.one")];
    let mut volume = KubeletVolume::new(node.path("config"), &first);
    let mounts = [bind("/etc/config", volume.path())];
    let shim = node.running("c1", &with_mounts(Bundle::sh("sleep 1000").sandbox(), &mounts)).await;
    let guest = copy(&node, "-config");
    // As the agent does when it makes the container.
    let unsealed = volume.folder() + "/secret.unsealed";
    fs::write(guest.join(&unsealed), "clear").expect("write");
    fs::remove_file(guest.join("secret")).expect("link");
    std::os::unix::fs::symlink(&unsealed, guest.join("secret")).expect("link");

    let reader = {
        let guest = guest.clone();
        Reader::start(move || ["plain", "secret", "new"].map(|key| text(&guest.join(key))))
    };
    for round in 2..6 {
        let (plain, secret) = (format!("p{round}"), format!("sealed.{round}"));
        volume.update(&[("plain", &plain), ("secret", &secret), ("new", "sealed.new")]);
        eventually("the plain key", 5, || text(&guest.join("plain")) == plain).await;
    }
    let seen: BTreeSet<String> = reader.end().into_iter().flatten().collect();
    assert!(!seen.iter().any(|text| text.starts_with("sealed")), "{seen:?}");
    assert_eq!(text(&guest.join("secret")), "clear");
    let log = node.log();
    assert_eq!(
        log.matches("sealed secrets stay as they were until a restart of the container").count(),
        1,
        "{log}"
    );
    // A key that the container sees as it is would show its sealed text: that revision is not sent.
    volume.update(&[("plain", "sealed.now"), ("secret", "sealed.6")]);
    let log = std::cell::RefCell::new(String::new());
    let told = || {
        log.borrow_mut().push_str(&node.log());
        log.borrow().contains("plain: its new text is sealed, and only a new container gets it unsealed")
    };
    eventually("a line", 5, told).await;
    assert_eq!(text(&guest.join("plain")), "p5");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_delete_waits_for_the_update_that_runs_and_none_begins_after_it() {
    let node = TestNode::new().await;
    let keys: Vec<(String, &str)> = (0..20).map(|n| (format!("k{n}"), "1")).collect();
    let keys: Vec<(&str, &str)> = keys.iter().map(|(key, text)| (key.as_str(), *text)).collect();
    let mut volume = KubeletVolume::new(node.path("config"), &keys);
    let shim = node.running("pod", &Bundle::sh("sleep 1000").sandbox()).await;
    let bundle = with_mounts(Bundle::sh("sleep 1000").member("pod"), &[bind("/etc/config", volume.path())]);
    let dir = node.bundle("c1", &bundle);
    shim.create("c1", &dir, NO_STREAMS).await.expect("create");
    shim.start("c1", "").await.expect("start");
    node.script(&json!([{"call": "CopyFile", "delay_ms": 300}]));
    volume.update(&keys);
    eventually("an update", 5, || !sent(&node, "-config").is_empty()).await;
    shim.kill("c1", "", 9).await.expect("kill");
    shim.wait("c1", "").await.expect("wait");
    within("delete", 5, shim.delete("c1", "")).await.expect("delete");
    let calls: Vec<String> =
        node.requests().iter().filter_map(|r| r["call"].as_str().map(str::to_owned)).collect();
    let removed = calls.iter().rposition(|call| call == "RemoveContainer").expect("removed");
    let copied = calls.iter().rposition(|call| call == "CopyFile").expect("copied");
    assert!(copied < removed || sent(&node, "-config").last().is_some_and(String::is_empty), "{calls:?}");
    assert!(sent(&node, "-config").len() < 10, "it ended between two files");
    node.script(&json!([]));
    volume.update(&keys);
    assert_eq!(watchers(node.shim_pid().await), 0);
    node.end(&shim, "pod").await;
}

/// A thread that reads as fast as it can, and what its reads were, each that differs once.
struct Reader<T> {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<BTreeSet<T>>,
}

impl<T: Ord + Send + 'static> Reader<T> {
    fn start(mut read: impl FnMut() -> T + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                seen.insert(read());
            }
            seen
        });
        Self { stop, thread }
    }

    fn end(self) -> BTreeSet<T> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a reader that saw nothing wrong")
    }
}

/// Publishes a volume again and again, while a thread reads it with `read`: how many reads there were, and how many
/// found nothing.
async fn published(
    node: &TestNode,
    source: PathBuf,
    name: &str,
    mut change: impl FnMut(u32),
    read: impl Fn(&Path) -> Option<()> + Send + 'static,
) -> (u64, u64) {
    let agent = agent(&node.pod_dir()).await;
    let target = format!("{SHARED}c1-0123456789abcdef-{name}");
    let guest = node.path("guest").join(target.trim_start_matches('/'));
    let mut volume = Published::new(source, target);
    volume.publish(&mut Courier::new(&agent, BOUNDS)).await.expect("first");
    let (reads, missing) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let reader = {
        let (reads, missing) = (Arc::clone(&reads), Arc::clone(&missing));
        Reader::start(move || {
            reads.fetch_add(1, Ordering::Relaxed);
            missing.fetch_add(u64::from(read(&guest).is_none()), Ordering::Relaxed);
        })
    };
    let times = rounds(500);
    for round in 1..=times {
        change(round);
        let done = volume.publish(&mut Courier::new(&agent, BOUNDS)).await;
        assert!(done.expect("publish").sent > 0, "round {round}");
    }
    reader.end();
    let (reads, missing) = (reads.load(Ordering::Relaxed), missing.load(Ordering::Relaxed));
    println!("{times} updates of a {name}, {reads} reads, {missing} found nothing");
    (reads, missing)
}

/// A text of many bytes of which each says the round.
fn long(round: u32) -> String {
    char::from(b'a' + u8::try_from(round % 26).expect("a letter"))
        .to_string()
        .repeat(3000 + (round % 7) as usize * 100)
}

#[tokio::test]
async fn a_file_that_is_replaced_is_never_missing_and_never_torn() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000").sandbox()).await;
    let file = node.path("file");
    fs::write(&file, long(0)).expect("write");
    let read = |guest: &Path| {
        let bytes = fs::read(guest).ok()?;
        let first = *bytes.first().expect("torn: empty");
        assert!(
            bytes.len() >= 3000 && bytes.iter().all(|byte| *byte == first),
            "torn: {} bytes",
            bytes.len()
        );
        Some(())
    };
    let write = |round| fs::write(&file, long(round)).expect("write");
    let (reads, missing) = published(&node, file.clone(), "file", write, read).await;
    assert!(reads > 0);
    assert_eq!(missing, 0);
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_volume_never_shows_two_revisions_at_once() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000").sandbox()).await;
    let mut volume = KubeletVolume::new(node.path("config"), &[("a", &long(0)), ("b", &long(0))]);
    // By the folder that `..data` leads to, as a program reads it that wants both keys of one revision.
    let read = |guest: &Path| {
        let folder = guest.join(fs::read_link(guest.join("..data")).ok()?);
        let (a, b) = (fs::read_to_string(folder.join("a")).ok()?, fs::read_to_string(folder.join("b")).ok()?);
        assert!(a == b && a.len() >= 3000, "a mixture: {} and {} bytes", a.len(), b.len());
        fs::read(guest.join("a")).ok().map(|_| ())
    };
    let source = volume.path().to_owned();
    let change = |round| volume.update(&[("a", &long(round)), ("b", &long(round))]);
    let (reads, missing) = published(&node, source, "config", change, read).await;
    assert!(missing < reads, "each read found nothing");
    node.end(&shim, "c1").await;
}
