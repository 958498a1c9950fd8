//! qemu-softuv behaves as QEMU with KVM does on a machine with Secure Execution: it boots what was
//! sealed for the machine, and shows every refusal the way a host program sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde_json::{Value, json};
use softuv::damage::Damage;
use softuv::document;
use softuv::header::{BACKUP_TARGET_KEYS, DUMP_ALLOWED, flag};
use softuv::machine::{self, Machine};
use softuv::seal::{Options, Parts, seal};
use softuv::secrets::Secrets;

/// A machine, an image, and qemu-softuv with its orders, in one folder.
struct Stage(tempfile::TempDir);

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_qemu-softuv"), dir.path().join("qemu")).expect("link");
        let stage = Self(dir);
        stage
            .machine()
            .make(&machine::Options { seed: Some("a".into()), without_dump: true })
            .expect("machine");
        stage.order(&json!({}));
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn machine(&self) -> Machine {
        Machine::at(self.path("machine"))
    }

    fn order(&self, more: &Value) {
        let mut orders = json!({"machine": self.path("machine")});
        let more = more.as_object().expect("object").clone();
        orders.as_object_mut().expect("object").extend(more);
        std::fs::write(self.path("softuv.json"), orders.to_string()).expect("orders");
    }

    fn options(&self) -> Options {
        Options::new(vec![document::host_key(&self.machine().document()).expect("key")])
    }

    /// A small image that could not boot.
    fn image(&self, options: &Options) {
        let parts = Parts {
            kernel: vec![1; 5000],
            ramdisk: None,
            command_line: b"quiet".to_vec(),
            stage3a: vec![0; 4392],
            stage3b: vec![0; 200],
        };
        let image = seal(&parts, options, &Secrets::new(Some("image")).expect("secrets")).expect("seal");
        std::fs::write(self.path("image"), image).expect("image");
    }

    fn start(&self) -> Vm {
        self.start_with(|word| word)
    }

    /// The production command line with this machine's paths.
    fn start_with(&self, change: impl Fn(String) -> String) -> Vm {
        let (qmp, their_qmp) = pair();
        let (console, their_console) = pair();
        let image = self.path("image");
        let words = include_str!("../../../src/qemu/testdata/secure-execution.args").lines().map(|word| {
            change(
                word.replace("qmp,fd=3", &format!("qmp,fd={}", their_qmp.as_raw_fd()))
                    .replace("console,fd=4", &format!("console,fd={}", their_console.as_raw_fd()))
                    .replace("/usr/share/kata-se/kata-se.img", image.to_str().expect("utf-8"))
                    .replace("2048M", "512M"),
            )
        });
        // There is no vhost-vsock here, and no peer.
        let mut words: Vec<_> = words.collect();
        let vsock = words.iter().position(|word| word.starts_with("vhost-vsock-ccw")).expect("vsock");
        words.drain(vsock - 1..=vsock);
        let mut command = Command::new(self.path("qemu"));
        command.args(words).env_clear().stdin(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().expect("qemu-softuv");
        drop((their_qmp, their_console));
        let limit = Some(Duration::from_secs(60));
        for ours in [&qmp, &console] {
            ours.set_read_timeout(limit).expect("timeout");
        }
        Vm { child, qmp: BufReader::new(qmp), console }
    }
}

/// Ours, and theirs that stays open in a child.
fn pair() -> (UnixStream, OwnedFd) {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty()).expect("socketpair");
    nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).expect("cloexec");
    (ours.into(), theirs)
}

struct Vm {
    child: Child,
    qmp: BufReader<UnixStream>,
    console: UnixStream,
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Everything a host program sees of the end.
#[derive(Debug)]
struct End {
    code: Option<i32>,
    stderr: String,
    console: String,
    events: Vec<Value>,
}

impl Vm {
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.qmp.read_line(&mut line).expect("QMP");
        serde_json::from_str(&line).unwrap_or(Value::Null)
    }

    fn ask(&mut self, command: &str) -> Value {
        let line = json!({"execute": command, "id": 1}).to_string() + "\n";
        self.qmp.get_mut().write_all(line.as_bytes()).expect("QMP");
        loop {
            let answer = self.line();
            assert!(!answer.is_null(), "QMP ended at {command}: {:?}", self.child.wait());
            if answer["id"] == 1 {
                return answer["return"].clone();
            }
        }
    }

    /// Negotiates; the guest exists and does not run.
    fn ready(&mut self) {
        assert!(self.line()["QMP"]["version"].is_object());
        assert_eq!(self.ask("qmp_capabilities"), json!({}));
        assert_eq!(self.ask("query-status")["running"], json!(false));
    }

    fn end(mut self) -> End {
        let mut bytes = Vec::new();
        // QEMU may end with our last newline unread: the kernel then resets the connection.
        if let Err(e) = self.qmp.read_to_end(&mut bytes) {
            assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset);
        }
        let text = String::from_utf8(bytes).expect("UTF-8");
        let events = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let mut console = String::new();
        self.console.read_to_string(&mut console).expect("console");
        let mut stderr = String::new();
        self.child.stderr.take().expect("stderr").read_to_string(&mut stderr).expect("stderr");
        End { code: self.child.wait().expect("wait").code(), stderr, console, events }
    }

    fn run_to_its_end(mut self) -> End {
        self.ready();
        self.ask("cont");
        self.end()
    }
}

fn failed(command: &str, codes: &str) -> String {
    format!("qemu-system-s390x: KVM PV command {command} failed: header rc {codes} IOCTL rc: -22\n")
}

fn panic_address(end: &End) -> Value {
    let names: Vec<_> = end.events.iter().map(|event| event["event"].as_str().expect("event")).collect();
    assert_eq!(names, ["RESUME", "GUEST_PANICKED", "STOP", "SHUTDOWN"]);
    assert_eq!(end.events[3]["data"], json!({"guest": true, "reason": "guest-panic"}));
    assert_eq!(end.events[1]["data"]["info"]["reason"], "disabled-wait");
    end.events[1]["data"]["info"]["psw-addr"].clone()
}

#[test]
fn every_refusal_is_seen_on_stderr_console_and_qmp() {
    let stage = Stage::new();
    let with = |damage| Options { damage: Some(damage), ..stage.options() };
    let flags = |flags| Options { flags: 0xe0 | flags, ..stage.options() };
    let stranger = || Options::new(vec![softuv::keys::private(&[7; 60]).expect("key").public_key()]);
    let table = [
        (stranger(), "2", "108 rrc 5", "does not match the host key of the installed key bundle"),
        (
            Options { flags: flag(BACKUP_TARGET_KEYS), ..stranger() },
            "2",
            "108 rrc 34",
            "The secondary host key hash",
        ),
        (with(Damage::CustomerKey), "2", "108 rrc b", "public customer ECDH key"),
        (with(Damage::Version), "2", "104 rrc 1", "header version"),
        (flags(flag(DUMP_ALLOWED)), "2", "106 rrc 30", "An unsupported plaintext control flag is set."),
        (
            Options { secret_flags: 1, ..stage.options() },
            "2",
            "109 rrc 0",
            "An unsupported secret control flag",
        ),
        (with(Damage::HeaderSize), "2", "10a rrc 31", "Mismatch in IBM Secure Execution image header size."),
        (with(Damage::EncryptedSize), "2", "10a rrc 39", "The size of the encrypted area"),
        (with(Damage::NoSlots), "2", "10a rrc 40", "There are no host keys"),
        (with(Damage::Tag), "2", "10a rrc 41", "Protected boot failed: 0xa02, KVM_PV_SET_SEC_PARMS"),
        (with(Damage::Addresses), "4", "102 rrc 1a", "Address digest list (ALD) mismatch."),
        (with(Damage::Page), "4", "102 rrc 1b", "Page digest list (PLD) mismatch."),
        (with(Damage::Tweaks), "4", "102 rrc 1c", "Tweak digest list (TLD) mismatch."),
        (with(Damage::Pages), "4", "102 rrc 1d", "Mismatch in number of encrypted pages."),
    ];
    for (options, command, codes, sentence) in table {
        stage.image(&options);
        let end = stage.start().run_to_its_end();
        let name = if command == "2" { "2 (KVM_PV_SET_SEC_PARMS)" } else { "4 (KVM_PV_VERIFY)" };
        assert!(end.stderr.starts_with(&failed(name, codes)), "{codes}: {end:?}");
        let hint =
            end.stderr.contains("Please check whether the image is correctly encrypted for this host\n");
        assert_eq!(hint, codes.starts_with("108"), "{end:?}");
        let (rc, rrc) = codes.split_once(" rrc ").expect("codes");
        assert!(end.console.contains(sentence), "{end:?}");
        assert!(end.console.ends_with(&format!(" - RC: 0x{rc}, RRC:0x{rrc}\n")), "{end:?}");
        assert_eq!((panic_address(&end), end.code), (json!(0x4608), Some(1)));
    }
}

#[test]
fn what_the_machine_lacks_is_seen_too() {
    let stage = Stage::new();
    stage.image(&stage.options());
    stage.order(&json!({"no_resources": true}));
    let end = stage.start().run_to_its_end();
    assert_eq!(
        end.stderr,
        "qemu-system-s390x: KVM PV command 0 (KVM_PV_ENABLE) failed: header rc 0 rrc 0 IOCTL rc: -12\n"
    );
    assert_eq!(panic_address(&end), json!(0x4608));

    stage.order(&json!({"no_facility": true}));
    let end = stage.start().run_to_its_end();
    assert_eq!(
        (end.stderr.as_str(), end.console.as_str()),
        ("", "Secure unpack facility is not available\n")
    );
    assert_eq!((panic_address(&end), end.code), (json!(0x4607), Some(1)));

    stage.order(&json!({}));
    std::fs::write(stage.machine().root().join("sys/firmware/uv/prot_virt_host"), "0\n").expect("write");
    let end = stage.start().end();
    assert_eq!(end.stderr, "qemu-system-s390x: CPU model does not support Protected Virtualization\n");
    assert_eq!((end.code, end.events.len()), (Some(1), 0));
}

#[test]
fn a_sign_can_be_lost_and_a_panic_can_end_well() {
    let stage = Stage::new();
    stage.image(&Options { damage: Some(Damage::Page), ..stage.options() });
    for lost in ["stderr", "console", "events"] {
        stage.order(&json!({"lost": lost}));
        let end = stage.start().run_to_its_end();
        let seen = [!end.stderr.is_empty(), !end.console.is_empty(), !end.events.is_empty()];
        assert_eq!(seen, ["stderr", "console", "events"].map(|sign| sign != lost));
    }
    stage.order(&json!({}));
    let end = stage.start_with(|word| word.replace("panic=exit-failure", "panic=shutdown")).run_to_its_end();
    assert_eq!(end.code, Some(0));
}

#[test]
fn a_refused_guest_that_never_runs_can_be_ended() {
    let stage = Stage::new();
    stage.image(&Options { damage: Some(Damage::Page), ..stage.options() });
    let mut vm = stage.start();
    vm.ready();
    vm.ask("quit");
    let end = vm.end();
    assert_eq!((end.code, end.stderr.as_str(), end.console.as_str()), (Some(0), "", ""));
    assert_eq!(end.events[0]["data"], json!({"guest": false, "reason": "host-qmp-quit"}));
}

#[test]
fn options_that_qemu_does_not_take_end_it_at_once() {
    let stage = Stage::new();
    stage.image(&stage.options());
    for (from, to, wanted) in [
        ("-nodefaults", "-nodefault", "-nodefault: invalid option"),
        ("id=pv0", "id=pv1", "Device 'pv0' not found"),
        ("512M", "0M", "could not load kernel"),
    ] {
        let end = stage.start_with(|word| word.replace(from, to)).end();
        assert!(end.stderr.contains(wanted) && end.code == Some(1), "{end:?}");
    }
    std::fs::remove_file(stage.path("image")).expect("remove");
    let end = stage.start().end();
    let image = stage.path("image").display().to_string();
    assert_eq!(
        end.stderr,
        format!("{image}: No such file or directory\nqemu-system-s390x: could not load kernel '{image}'\n")
    );
}

/// The kernel and the loaders that hack/setup installs; None, with a message, if they are missing.
fn cache() -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache");
    let guest = std::env::var_os("KATA_SE_CACHE").map_or(own, PathBuf::from).join("guest");
    let there = guest.join("loaders/stage3b_reloc.bin").is_file() && guest.join("kernel").is_file();
    let emulator = Path::new("/usr/bin/qemu-system-s390x").is_file();
    if !there || !emulator {
        std::io::stderr()
            .write_all(b"SKIPPED: needs kernel, loaders and QEMU: hack/setup brings them\n")
            .ok();
        return None;
    }
    Some(guest)
}

/// Reads the console until `text`.
fn console_says(vm: &mut Vm, text: &str) -> String {
    let mut seen = String::new();
    let mut bytes = [0; 4096];
    while !seen.contains(text) {
        let count = vm.console.read(&mut bytes).expect("console");
        assert!(count > 0, "the console ended: {seen}");
        seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    seen
}

#[test]
fn a_sealed_kernel_boots_with_the_command_line_that_was_sealed_with_it() {
    let Some(guest) = cache() else { return };
    let stage = Stage::new();
    let read = |name: &str| std::fs::read(guest.join(name)).expect("file");
    let mut ramdisk = Vec::new();
    let content = b"of the guest".to_vec();
    let file = softuv::initrd::Embedded { path: "secret".into(), content };
    softuv::initrd::append(&mut ramdisk, &[file]).expect("ramdisk");
    let parts = Parts {
        kernel: read("kernel"),
        ramdisk: Some(ramdisk),
        command_line: b"console=ttysclp0 panic=-1 sealed.word=1".to_vec(),
        stage3a: read("loaders/stage3a.bin"),
        stage3b: read("loaders/stage3b_reloc.bin"),
    };
    let image = seal(&parts, &stage.options(), &Secrets::new(None).expect("secrets")).expect("seal");
    std::fs::write(stage.path("image"), image).expect("image");

    let mut vm = stage.start();
    vm.ready();
    vm.ask("cont");
    let seen = console_says(&mut vm, "sealed.word=1");
    assert!(seen.contains("Linux version") && seen.contains("Kernel command line"), "{seen}");
    let protected = json!({"blocked-reasons": ["protected VMs are currently not migratable."]});
    assert_eq!(vm.ask("query-migrate"), protected);
    vm.ask("quit");
    let end = vm.end();
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), ""));

    // The same kernel without a seal, and with a header that it never uses: QEMU boots it, unprotected.
    // Only the runtime can refuse it.
    let sealed = std::fs::read(stage.path("image")).expect("image");
    let metadata = sealed.get(0xc000..0xc01c).expect("metadata");
    let mut forged = parts.kernel.clone();
    forged.resize(sealed.len(), 0);
    let header = u64::from_be_bytes(*metadata[8..].first_chunk().expect("offset of the header"));
    let header = usize::try_from(header).expect("small");
    forged[header..].copy_from_slice(&sealed[header..]);
    forged[0xc000..0xc01c].copy_from_slice(metadata);
    for plain in [parts.kernel, forged] {
        std::fs::write(stage.path("image"), plain).expect("image");
        let mut vm = stage.start();
        vm.ready();
        vm.ask("cont");
        assert_eq!(vm.ask("query-migrate"), json!({}));
        vm.ask("quit");
        assert_eq!(vm.end().code, Some(0));
    }
}
