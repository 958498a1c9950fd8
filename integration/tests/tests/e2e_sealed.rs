//! Real guests from sealed images, in the production configuration, on a machine with Secure Execution
//! that softuv emulates: what may run runs, everything else is refused in one line, and no secret leaks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use harness::{SealedNode, until};
use kata_se::test_api::image::SealedImage;
use serde_json::Value;

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn image(path: &Path) -> SealedImage {
    kata_se::test_api::image::read(&*fs::read(path).expect("image")).expect("sealed")
}

fn tag(image: &SealedImage) -> String {
    softuv::keys::hex(&image.header.tag)
}

/// Writes a configuration beside the usual one, in a separate folder with separate drop-ins.
fn configured(sealed: &SealedNode, name: &str, text: &str) -> String {
    let folder = sealed.path(&format!("{name}.configuration"));
    fs::create_dir_all(&folder).expect("mkdir");
    fs::write(folder.join("config.toml"), text).expect("config");
    folder.join("config.toml").display().to_string()
}

/// Runs a container to its end with this configuration, passed as the runtime option ConfigPath.
fn run_with(sealed: &SealedNode, config: &str, id: &str, args: &[&str]) -> Output {
    sealed.node.run(&["--rm", "--runtime-config-path", config], id, args).output().expect("ctr")
}

/// The sandbox record of the pod that this container belongs to.
fn record(sealed: &SealedNode, sandbox: &str) -> Value {
    let pods = fs::read_dir(sealed.node.path("run")).expect("run").flatten();
    let records = pods.filter_map(|pod| fs::read(pod.path().join("state.json")).ok());
    let mut records = records.map(|bytes| serde_json::from_slice::<Value>(&bytes).expect("json"));
    records.find(|record| record["sandbox"] == sandbox).expect("a record")
}

fn end(sealed: &SealedNode, id: &str, mut running: Child) {
    sealed.node.ctr_ok(&["task", "kill", id]);
    assert_eq!(running.wait().expect("ctr").code(), Some(0));
}

#[test]
fn a_container_runs_in_a_guest_from_a_sealed_image_and_the_node_says_which() {
    let sealed = SealedNode::new();
    let running = sealed.node.running(&["--rm"], "c1", FOREVER);
    let machine = sealed.node.exec("c1", "e1", &["uname", "-m"]);
    assert_eq!((text(&machine.stdout).as_str(), machine.status.code()), ("s390x\n", Some(0)));

    let path = sealed.path("kata-se.img");
    let image = image(&path);
    let key = image.header.slots[0].host_key.to_string();
    let recorded = record(&sealed, "c1");
    assert_eq!(recorded["image"]["path"], path.display().to_string());
    assert_eq!(recorded["image"]["size"], fs::metadata(&path).expect("stat").len());
    assert_eq!(recorded["image"]["tag"], tag(&image));
    assert_eq!(recorded["image"]["key"], key);
    assert_eq!(recorded["failure"], Value::Null);
    let log = sealed.node.log();
    let line = log.lines().find(|line| line.contains("image checked")).expect("the log's line");
    for fact in [path.display().to_string(), image.size.to_string(), tag(&image), key] {
        assert!(line.contains(&fact), "{fact} is not in: {line}");
    }
    end(&sealed, "c1", running);
    sealed.node.assert_clean();
}

#[test]
fn the_processes_of_a_pod_have_no_rights_on_the_node() {
    let sealed = SealedNode::new();
    let running = sealed.node.running(&["--rm"], "c1", FOREVER);
    let (_, vm) = sealed.node.task("c1").expect("a task");
    let of = |pid: &str, name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let cgroup = of(&vm.to_string(), "cgroup");
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let processes = processes.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let pods: Vec<String> = processes.filter(|pid| of(pid, "cgroup") == cgroup).collect();
    let programs: Vec<String> = pods.iter().map(|pid| of(pid, "comm").trim().to_owned()).collect();
    for program in ["qemu-system-s39", "vsock-program"] {
        assert!(programs.iter().any(|name| name == program), "{program} is not in {programs:?}");
    }
    let (uid, gid) = harness::USER.split_once(':').expect("numbers");
    let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).expect("namespace");
    for (pid, program) in pods.iter().zip(&programs) {
        let status = of(pid, "status");
        let has = |key: &str, value: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            assert_eq!(line.split_whitespace().collect::<Vec<_>>().join(" "), value, "{program}: {key}");
        };
        has("Uid:", &[uid; 4].join(" "));
        has("Gid:", &[gid; 4].join(" "));
        has("Groups:", "");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            has(set, "0000000000000000");
        }
        has("NoNewPrivs:", "1");
        has("Seccomp:", "2");
        assert_ne!(network(pid), network("self"), "{program}");
    }
    end(&sealed, "c1", running);
    sealed.node.assert_clean();
}

/// A pod with this configuration must not start: one line that contains these texts, soon, and an equal census.
fn refused(sealed: &SealedNode, name: &str, config: &str, wanted: &[&str]) {
    let config = configured(sealed, name, config);
    let began = Instant::now();
    let output = run_with(sealed, &config, name, &["true"]);
    assert!(began.elapsed() < Duration::from_secs(10), "{name}: {:?}", began.elapsed());
    let message = text(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty(), "{name} was started: {message}");
    assert_eq!(message.lines().count(), 1, "{name}: {message}");
    for part in wanted {
        assert!(message.contains(part), "{name}: {part:?} is not in: {message}");
    }
    sealed.node.assert_clean();
}

/// A copy of an image with one bit of its sealed part changed.
fn flipped(sealed: &SealedNode, from: &Path) -> PathBuf {
    let mut bytes = fs::read(from).expect("image");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    let path = sealed.path("flipped.img");
    fs::write(&path, bytes).expect("image");
    path
}

/// As with a forged image that passes every check of the file: its guest boots in clear, its agent answers.
#[test]
fn a_guest_that_boots_unprotected_is_ended_before_it_gets_anything_of_the_pod() {
    let sealed = SealedNode::new();
    let orders = serde_json::json!({"machine": sealed.path("machine"), "unprotected": true});
    fs::write(sealed.path("softuv.json"), orders.to_string()).expect("softuv.json");
    let output = sealed.node.run(&["--rm"], "c1", &["true"]).output().expect("ctr");
    let message = text(&output.stderr);
    let cause = "check the guest's protection: the guest was started unprotected, and was ended before it \
                 got anything of the pod";
    assert!(!output.status.success() && message.contains(cause), "{message}");
    sealed.node.assert_clean();
}

#[test]
fn what_may_not_run_is_refused_in_one_line_and_leaves_nothing() {
    let sealed = SealedNode::new();
    let good = sealed.path("kata-se.img");
    let keys = fs::read_to_string(sealed.path("machine/root/sys/firmware/uv/keys/all")).expect("keys");
    let short = |hash: &str| format!("{}…", &hash[..16]);
    let own: Vec<_> = keys.lines().take(2).map(short).collect();

    let other = sealed.seal_for("other-machine", "other.img", "", &[]);
    let slot = short(&image(&other).header.slots[0].host_key.to_string());
    let both = format!("the image's slots: {slot}; this machine's keys: {}, {}", own[0], own[1]);
    let rebuild = "built for another machine: rebuild it with this machine's host key document";
    refused(&sealed, "other", &sealed.config(&other, &[]), &[rebuild, &both, "failed precondition"]);

    let flipped = flipped(&sealed, &good);
    let modified = "the image was modified or truncated since it was sealed";
    let codes = "KVM_PV_VERIFY: rc 0x102 rrc 0x1b (content of pages differs)";
    refused(&sealed, "flipped", &sealed.config(&flipped, &[]), &[modified, codes, "copy the image again"]);
    let verify = sealed.config(&flipped, &[("verify_digest", "true")]);
    refused(&sealed, "verified", &verify, &[modified, "the content of the pages", "failed precondition"]);

    let cut = sealed.path("cut.img");
    let bytes = fs::read(&good).expect("image");
    fs::write(&cut, &bytes[..bytes.len() / 2]).expect("image");
    refused(&sealed, "cut", &sealed.config(&cut, &[]), &["the image is damaged", "copy it again"]);

    let dump = sealed.seal("dump.img", "", &["--dump-allowed"]);
    let flag = ["the image asks for something this machine does not support", "dump allowed", "rc 0x106"];
    refused(&sealed, "dump", &sealed.config(&dump, &[]), &flag);
    let started = sealed.node.log().matches("QEMU started").count();
    assert_eq!(started, 1, "QEMU was started for the flipped bit only, which no header shows");
}

/// QEMU boots a plain kernel with the same command line, unprotected; so does qemu-softuv.
#[test]
fn a_plain_kernel_is_refused_whatever_the_configuration_says() {
    let sealed = SealedNode::new();
    let kernel = harness::cached("guest/kernel");
    let document = sealed.path("machine/host-key.crt").display().to_string();
    let documents = format!("[\"{document}\"]");
    let not_sealed = ["not a Secure Execution image: QEMU would boot it unprotected", "seal kernel, initrd"];
    for (name, more) in [
        ("plain", &[][..]),
        ("verified", &[("verify_digest", "true")]),
        ("unverified", &[("verify_digest", "false")]),
        ("documents", &[("host_key_documents", documents.as_str())]),
        ("confidential", &[("confidential", "true")]),
    ] {
        refused(&sealed, name, &sealed.config(&kernel, more), &not_sealed);
    }
    let switched = sealed.config(&kernel, &[("confidential", "false")]);
    refused(&sealed, "switched", &switched, &["guest.image: is for confidential guests"]);
    let emulated = sealed.config(&kernel, &[("accelerator", "\"tcg\"")]);
    refused(&sealed, "emulated", &emulated, &["emulation cannot protect a guest"]);
    let params = sealed.config(&kernel, &[("vcpus", "1\nkernel_parameters = \"quiet\"")]);
    refused(&sealed, "parameters", &params, &["is sealed in the image of a confidential guest"]);
    assert!(!sealed.node.log().contains("QEMU started"), "QEMU was started");
}

#[test]
fn one_node_has_several_images_by_configuration_and_by_annotation() {
    let sealed = SealedNode::new();
    let one = sealed.seal("one.img", "which=one", &[]);
    let two = sealed.seal("two.img", "which=two", &[]);
    // A drop-in beside the node's own configuration, and the runtime's option ConfigPath.
    let folder = sealed.node.path("config.d");
    fs::create_dir(&folder).expect("mkdir");
    let text_of = format!("[guest]\nimage = \"{}\"\n", one.display());
    fs::write(folder.join("image.toml"), text_of).expect("drop-in");
    let config = configured(&sealed, "two", &sealed.config(&two, &[]));

    let first = sealed.node.running(&["--rm"], "c1", FOREVER);
    let second = sealed.node.running(&["--rm", "--runtime-config-path", &config], "c2", FOREVER);
    for (id, image, word) in [("c1", &one, "which=one"), ("c2", &two, "which=two")] {
        let line = text(&sealed.node.exec(id, "e1", &["cat", "/proc/cmdline"]).stdout);
        assert!(line.contains(word), "{id}: {line}");
        assert_eq!(record(&sealed, id)["image"]["path"], image.display().to_string());
    }
    // The first pod created the cgroup that both are in, and removes it.
    end(&sealed, "c2", second);

    // The pod chooses among the images that the operator allows.
    let chosen = format!("io.katacontainers.config.hypervisor.image={}", two.display());
    let refused = sealed.node.run(&["--rm", "--annotation", &chosen], "c3", &["true"]).output().expect("ctr");
    let message = text(&refused.stderr);
    assert!(!refused.status.success() && message.contains("added to guest.allowed_images"), "{message}");
    let allowed = format!("[guest]\nallowed_images = [\"{}\"]\n", two.display());
    fs::write(folder.join("allowed.toml"), allowed).expect("drop-in");
    let third = sealed.node.running(&["--rm", "--annotation", &chosen], "c3", FOREVER);
    let line = text(&sealed.node.exec("c3", "e1", &["cat", "/proc/cmdline"]).stdout);
    assert!(line.contains("which=two"), "{line}");
    end(&sealed, "c3", third);
    end(&sealed, "c1", first);
    sealed.node.assert_clean();
}

/// How many sealed images were found untouched, by the notes about them; packed layers have notes, too.
fn verdicts(sealed: &SealedNode) -> usize {
    let entries = fs::read_dir(sealed.node.path("run")).expect("run").flatten();
    let kept: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    assert!(kept.iter().all(|path| path.display().to_string().contains("/verified-")), "{kept:?}");
    kept.iter().filter(|path| fs::read_to_string(path).expect("note").contains(" tag ")).count()
}

#[test]
fn an_image_replaced_between_two_pods_is_checked_again_and_the_second_pod_runs_it() {
    let sealed = SealedNode::new();
    let place = sealed.path("kata-se.img");
    let first_tag = tag(&image(&place));
    let config = sealed.config(&place, &[("verify_digest", "true")]);
    fs::write(sealed.node.path("config.toml"), config).expect("config");
    let first = sealed.node.running(&["--rm"], "c1", FOREVER);
    assert!(sealed.node.log().contains("pages are as they were sealed"), "{}", sealed.node.log());

    // While the first pod runs: a damaged copy with the same header, then another image.
    fs::rename(flipped(&sealed, &place), &place).expect("rename");
    assert_eq!(tag(&image(&place)), first_tag, "the header is the same");
    let refused = sealed.node.run(&["--rm"], "c2", &["true"]).output().expect("ctr");
    let message = text(&refused.stderr);
    assert!(
        message.contains("modified or truncated since it was sealed: the content of the pages"),
        "{message}"
    );

    let next = sealed.seal("next.img", "which=next", &[]);
    fs::rename(next, &place).expect("rename");
    let second = sealed.node.running(&["--rm"], "c3", FOREVER);
    let line = text(&sealed.node.exec("c3", "e1", &["cat", "/proc/cmdline"]).stdout);
    assert!(line.contains("which=next"), "{line}");
    let second_tag = tag(&image(&place));
    assert_ne!(second_tag, first_tag);
    assert_eq!(record(&sealed, "c3")["image"]["tag"], second_tag);
    assert_eq!(record(&sealed, "c1")["image"]["tag"], first_tag, "the first pod is what it was");
    assert_eq!(text(&sealed.node.exec("c1", "e1", &["uname", "-m"]).stdout), "s390x\n");
    end(&sealed, "c3", second);
    end(&sealed, "c1", first);
    assert_eq!(verdicts(&sealed), 2, "one for each good image");
    sealed.node.assert_clean();
}

const CANARY: &str = "canary-5b1d4e0c77a94f0fb2a6";

/// All files of the node and all processes that contain the canary.
fn sightings(sealed: &SealedNode, more: &[(&str, &[u8])]) -> Vec<String> {
    let mut found = Vec::new();
    let mut look = |name: String, bytes: &[u8]| {
        if bytes.windows(CANARY.len()).any(|part| part == CANARY.as_bytes()) {
            found.push(name);
        }
    };
    let mut folders = vec![sealed.node.path("")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() => {
                    look(path.display().to_string(), &fs::read(&path).unwrap_or_default())
                }
                _ => {}
            }
        }
    }
    for process in fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path()) {
        for name in ["cmdline", "environ", "comm"] {
            look(format!("{}/{name}", process.display()), &fs::read(process.join(name)).unwrap_or_default());
        }
    }
    for (name, bytes) in more {
        look((*name).to_owned(), bytes);
    }
    found
}

/// softuv's emulator has the sealed command line in its arguments, so that the secrets are files.
#[test]
fn secrets_of_an_image_appear_nowhere_even_when_its_boot_fails() {
    let sealed = SealedNode::new();
    let secret = sealed.path("secret");
    fs::write(&secret, format!("password={CANARY}\n")).expect("secret");
    let embed = format!("{}:etc/kata/secret", secret.display());
    let good = sealed.seal("secret.img", "", &["--embed", &embed]);
    let damaged = sealed.seal("damaged.img", "", &["--embed", &embed, "--damage", "tweaks"]);
    let panics = sealed.seal("panics.img", "rdinit=/no/such/init init=/no/such/init", &["--embed", &embed]);
    let host = softuv::machine::Machine::at(sealed.path("machine")).host().expect("host");
    let bytes = fs::read(&good).expect("image");
    let unpacked = softuv::unpack::unpack(bytes.clone(), &host).expect("unpack").ramdisk.expect("ramdisk");
    let has = |bytes: &[u8]| bytes.windows(CANARY.len()).any(|part| part == CANARY.as_bytes());
    assert!(has(&unpacked) && !has(&bytes), "it is in the image, and sealed");

    let mut events = sealed.node.command(&["events"]);
    let mut events = events.stdout(Stdio::piped()).spawn().expect("ctr events");
    let config = configured(&sealed, "good", &sealed.config(&good, &[("verify_digest", "true")]));
    let running = sealed.node.running(&["--rm", "--runtime-config-path", &config], "c1", FOREVER);
    assert_eq!(sightings(&sealed, &[]), Vec::<String>::new(), "while it runs");
    let state = record(&sealed, "c1")["image"]["path"].to_string();
    assert!(state.contains("secret.img"), "the record is among what was searched");
    end(&sealed, "c1", running);
    assert_eq!(verdicts(&sealed), 1);

    let mut message = Vec::new();
    for (image, wanted) in [(&damaged, "rc 0x102 rrc 0x1c"), (&panics, "the guest kernel panicked: ")] {
        let config = configured(&sealed, "failing", &sealed.config(image, &[]));
        let output = run_with(&sealed, &config, "c2", &["true"]);
        let error = text(&output.stderr);
        assert!(error.contains(wanted) && error.lines().count() == 1, "{error}");
        assert!(
            image != &panics || error.contains("console: ") && error.contains("Kernel panic - "),
            "{error}"
        );
        message.extend(output.stderr);
    }
    let inspected = std::process::Command::new(harness::test_program("kata-se"))
        .args(["image", "inspect", "--verify", "--json"])
        .arg(&good)
        .output()
        .expect("kata-se");
    assert!(inspected.status.success(), "{}", text(&inspected.stderr));
    events.kill().expect("kill");
    let events = events.wait_with_output().expect("ctr events").stdout;
    assert!(text(&events).contains("/tasks/exit"), "{}", text(&events));
    let more = [("errors", &message[..]), ("events", &events), ("inspect", &inspected.stdout)];
    assert_eq!(sightings(&sealed, &more), Vec::<String>::new(), "in the end");
    assert!(sealed.node.log().contains("\"level\":\"debug\""), "at debug level");
    until("everything is gone", 10, || harness::pods(&sealed.node.path("run")).is_empty());
    sealed.node.assert_clean();
}
