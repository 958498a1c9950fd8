//! Names, paths and texts passed to QEMU arrive unchanged and are never parsed as options: checked with the real
//! program, which is queried over QMP.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use harness::cached;
use kata_se::test_api::DevNo;
use kata_se::test_api::SandboxId;
use kata_se::test_api::{Accelerator, Boot};
use kata_se::test_api::{DiskPlan, VmPlan, VsockPlan};
use kata_se::test_api::{FdTable, Launch};
use kata_se::test_api::{args, sealed};
use serde_json::{Value, json};

/// Known bad names, then generated ones.
fn hostile_names() -> Vec<String> {
    let known = [
        "x,logfile=evil",
        ",,",
        "a=b,id=qmp",
        "a,,b,",
        "-S",
        "\"quoted\" {json}",
        "%s%n",
        " ",
        "é\u{202e}\n\t",
    ];
    let mut names: Vec<String> = known.map(str::to_owned).to_vec();
    let alphabet: Vec<char> = ",,,,==%\\\"'{}[]:;|&$ \n\tabcé\u{1f600}".chars().collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..40 {
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % 1_000_003) as usize
        };
        let length = 1 + next() % 18;
        names.push((0..length).map(|_| alphabet[next() % alphabet.len()]).collect());
    }
    names
}

/// As much of it as fits into a disk's serial number.
fn serial(name: &str) -> String {
    let mut serial = String::new();
    for c in name.chars() {
        if serial.len() + c.len_utf8() > 20 {
            break;
        }
        serial.push(c);
    }
    serial
}

struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("QMP");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        let text = json!({"execute": command, "arguments": arguments}).to_string();
        self.0.get_mut().write_all(text.as_bytes()).expect("QMP");
        loop {
            let answer = self.line();
            if answer.get("event").is_none() {
                return answer["return"].clone();
            }
        }
    }

    fn property(&mut self, path: &str, name: &str) -> Value {
        self.ask("qom-get", &json!({"path": path, "property": name}))
    }
}

/// The command line without the vsock device, and with its socket created by QEMU instead of connected to.
fn listening(all: Vec<OsString>) -> Vec<OsString> {
    let mut kept: Vec<OsString> = Vec::new();
    let mut words = all.into_iter();
    while let Some(word) = words.next() {
        let vsock = |value: &OsString| value.to_string_lossy().starts_with("socket,id=vsock,");
        if word == "-device" || word == "-chardev" {
            let mut value = words.next().expect("value");
            if value.to_string_lossy().starts_with("vhost-user-vsock") {
                continue;
            }
            if vsock(&value) {
                value.push(",server=on,wait=off");
            }
            kept.extend([word, value]);
        } else {
            kept.push(word);
        }
    }
    kept
}

async fn arrives(dir: &Path, name: &str) {
    let (kernel, initrd, socket) =
        (dir.join(format!("k{name}")), dir.join(format!("i{name}")), dir.join(format!("s{name}")));
    std::os::unix::fs::symlink(cached("guest/kernel"), &kernel).expect("kernel");
    std::os::unix::fs::symlink(cached("guest/initrd.img"), &initrd).expect("initrd");
    let (ours, theirs) = UnixStream::pair().expect("socketpair");
    let (_console, console) = UnixStream::pair().expect("socketpair");
    ours.set_read_timeout(Some(Duration::from_secs(20))).expect("limit");
    let disk = std::fs::File::open(cached("guest/kernel")).expect("disk");
    let mut fds = FdTable::default();
    let plan = VmPlan {
        sandbox: SandboxId::parse("s1").expect("id"),
        accelerator: Accelerator::Tcg,
        boot: Boot::Plain { kernel: kernel.clone(), initrd: initrd.clone(), parameters: format!("p{name}") },
        memory_mib: 256,
        vcpus: 1,
        qmp: fds.give(theirs.into()),
        console: fds.give(console.into()),
        vsock: VsockPlan::VhostUser { socket: socket.clone() },
        nics: vec![],
        scsi: DevNo::new(9),
        disks: vec![
            DiskPlan {
                file: fds.give(disk.into()),
                read_only: true,
                devno: DevNo::new(7),
                serial: serial(name),
            },
            DiskPlan {
                file: fds.give(sealed("memory", &[7; 1024]).expect("memory file")),
                read_only: true,
                devno: DevNo::new(8),
                serial: "memory".to_owned(),
            },
        ],
    };
    let launch = Launch {
        program: "/usr/bin/qemu-system-s390x".into(),
        args: listening(args(&plan).expect("args")),
        fds,
        ..Launch::default()
    };
    let child = launch.spawn().expect("QEMU");
    let mut qmp = Qmp(BufReader::new(ours));
    assert!(qmp.line().get("QMP").is_some(), "{name:?}");
    qmp.ask("qmp_capabilities", &json!({}));
    assert_eq!(qmp.property("/machine", "kernel"), kernel.to_str().expect("utf-8"), "{name:?}");
    assert_eq!(qmp.property("/machine", "initrd"), initrd.to_str().expect("utf-8"), "{name:?}");
    assert_eq!(qmp.property("/machine", "append"), format!("p{name}"));
    assert_eq!(qmp.property("/machine/peripheral/disk-cold0", "serial"), serial(name));
    assert_eq!(qmp.property("/machine/peripheral/disk-cold1", "serial"), "memory");
    assert_eq!(qmp.ask("query-name", &json!({}))["name"], "sandbox-s1");
    assert_eq!(qmp.ask("query-status", &json!({}))["running"], false, "stopped until `cont`");
    let mut found: Vec<_> = std::fs::read_dir(dir).expect("list").flatten().map(|e| e.path()).collect();
    found.sort();
    assert_eq!(found, [initrd, kernel, socket], "{name:?}: nothing else was made");
    qmp.ask("quit", &json!({}));
    child.wait().await.expect("end");
}

#[tokio::test]
async fn no_text_injects_into_qemus_command_line() {
    for name in hostile_names() {
        let dir = tempfile::Builder::new().prefix("kst").tempdir_in("/tmp").expect("folder");
        arrives(dir.path(), &name).await;
    }
}
