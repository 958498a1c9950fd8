//! QEMU's end (exit status, stderr, console, events) to what it means: pure.
//!
//! What QEMU says itself comes first. The console is the guest's: what stands there is believed
//! about the boot only while the loader in front of the image speaks, and is never more than text.

use nix::libc;

use crate::diagnosis::Diagnosis;
use crate::host::cgroup_stats::OomKill;
use crate::host::process::Ended;
use crate::lifecycle::vm::VmEnd;
use crate::limits;
use crate::qemu::event::{GuestPanic, QmpEvent, event};
use crate::qemu::ultravisor;

/// What is known when QEMU has ended.
#[derive(Debug)]
pub(crate) struct Evidence {
    pub ended: Ended,
    /// The host's OOM killer hit the pod's cgroup.
    pub oom_kill: Option<OomKill>,
    /// We asked for the end (quit, kill, DestroySandbox).
    pub asked: bool,
    /// The guest asked for it: `SHUTDOWN` with this reason.
    pub guest_shutdown: Option<String>,
    pub panic: Option<GuestPanic>,
    /// Last lines of QEMU's stderr and of the guest console, escaped and bounded.
    pub stderr: Vec<String>,
    pub console: Vec<String>,
}

/// Where the loader of a sealed image stops its CPU (s390-tools, rust/pvimg/boot: ENOPV and EPV).
const NO_UNPACK_FACILITY: u64 = 0x4607;
const PROTECTED_BOOT_REFUSED: u64 = 0x4608;

/// The end, with its last words in one line, or explained where it is a known one.
pub(crate) fn diagnose(evidence: &Evidence) -> VmEnd {
    if evidence.asked {
        return VmEnd::AskedToStop;
    }
    let text = output_tail(evidence);
    if let Some(mut diagnosis) = out_of_memory(evidence).or_else(|| explained(evidence)) {
        add(&mut diagnosis.evidence, &format!("QEMU ended with {}", evidence.ended));
        return VmEnd::Explained { diagnosis, output_tail: text };
    }
    if let Some(panic) = &evidence.panic {
        return VmEnd::Panicked { text: format!("{panic}; {text}") };
    }
    match evidence.ended {
        Ended::Code(code) => VmEnd::Exited { code, text },
        Ended::Signal(signal) => VmEnd::Killed { signal, text },
    }
}

/// Only a QEMU that was killed: the helpers stand in the same cgroup.
fn out_of_memory(evidence: &Evidence) -> Option<Diagnosis> {
    let oom = evidence.oom_kill.as_ref().filter(|_| evidence.ended == Ended::Signal(libc::SIGKILL))?;
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let used = if oom.peak == 0 { String::new() } else { format!("QEMU had {} MiB, ", mib(oom.peak)) };
    let (limit, advice) = match &oom.limit {
        Some((cgroup, bytes)) => (
            format!("the limit of cgroup /{} is {} MiB", cgroup.display(), mib(*bytes)),
            "raise the overhead of the RuntimeClass (podFixed.memory), which is what QEMU and the guest's own \
             programs need beside the containers' limits",
        ),
        None => ("its cgroups have no limit".to_owned(), "the whole node was out of memory: use fewer pods"),
    };
    Some(Diagnosis {
        cause: "the host's OOM killer ended the VM".to_owned(),
        evidence: format!("{used}{limit}"),
        advice: advice.to_owned(),
    })
}

/// Looks for known failures in any text: stderr, console, QMP lines, our own log.
pub(crate) fn explain_text(text: &str) -> Option<Diagnosis> {
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let panic = lines.iter().find_map(|line| {
        let object = serde_json::from_str(line.trim()).ok()?;
        match event(&object) {
            QmpEvent::GuestPanicked(panic) => Some(panic),
            QmpEvent::DeviceDeleted { .. } | QmpEvent::Shutdown { .. } | QmpEvent::Other => None,
        }
    });
    refused(&lines)
        .or_else(|| by_sign(&lines))
        .or_else(|| by_stop(panic.as_ref()?, &lines))
        .or_else(|| stop_in_text(&lines))
}

fn explained(evidence: &Evidence) -> Option<Diagnosis> {
    refused(&evidence.stderr).or_else(|| by_sign(&evidence.stderr)).or_else(|| match &evidence.panic {
        Some(panic) => by_stop(panic, &evidence.console),
        // The event was lost, or an older QEMU does not send it. A guest that ended itself does
        // not speak for the machine.
        None if evidence.guest_shutdown.is_none() => refused(&evidence.console),
        None => None,
    })
}

/// The first refusal that is not one of the way down: the others follow from it.
fn refused(lines: &[String]) -> Option<Diagnosis> {
    let found: Vec<_> = lines.iter().filter_map(|line| ultravisor::refusal(line)).collect();
    found.iter().find(|refusal| refusal.is_of_boot()).map(ultravisor::Refusal::explain)
}

/// A CPU stopped where the loader stops it.
fn by_stop(panic: &GuestPanic, console: &[String]) -> Option<Diagnosis> {
    let GuestPanic::Cpu { psw_address, .. } = panic else { return None };
    let mut diagnosis = stopped_at(*psw_address, console)?;
    add(&mut diagnosis.evidence, &panic.to_string());
    Some(diagnosis)
}

fn stopped_at(psw_address: u64, console: &[String]) -> Option<Diagnosis> {
    match psw_address {
        NO_UNPACK_FACILITY => Some(Diagnosis {
            cause:
                "this host or this QEMU cannot start secure guests, and the image cannot start unprotected"
                    .to_owned(),
            evidence: "the image's loader found no unpack facility".to_owned(),
            advice: "run `kata-se check` on this node; boot the host with prot_virt=1".to_owned(),
        }),
        PROTECTED_BOOT_REFUSED => Some(refused(console).unwrap_or_else(|| Diagnosis {
            cause: "the ultravisor refused the image".to_owned(),
            evidence: "its codes are lost: neither QEMU's stderr nor the console has them".to_owned(),
            advice: "run `kata-se check --image` on this node".to_owned(),
        })),
        _ => None,
    }
}

/// The address as our own messages and the CPU's state are printed.
fn stop_in_text(lines: &[String]) -> Option<Diagnosis> {
    let has = |address: u64| {
        let word = format!("{address:#x}");
        lines.iter().any(|l| l.split(|c: char| !c.is_ascii_alphanumeric()).any(|w| w == word))
    };
    [NO_UNPACK_FACILITY, PROTECTED_BOOT_REFUSED]
        .into_iter()
        .find(|a| has(*a))
        .and_then(|a| stopped_at(a, lines))
}

/// A text QEMU prints, and what it means.
struct Sign {
    text: &'static str,
    cause: &'static str,
    advice: &'static str,
}

const NOT_A_HOST: &str = "this machine is not a Secure Execution host";
const PROT_VIRT: &str = "boot the host with the kernel parameter prot_virt=1 on a machine and LPAR with Secure \
     Execution; `kata-se check` shows what is missing";

/// QEMU: target/s390x/kvm/pv.c, hw/s390x/s390-virtio-ccw.c, accel/kvm/kvm-all.c.
const SIGNS: [Sign; 9] = [
    Sign {
        text: "CPU model does not support Protected Virtualization",
        cause: NOT_A_HOST,
        advice: PROT_VIRT,
    },
    Sign { text: "S390 PV guests require KVM", cause: "QEMU runs without KVM", advice: PROT_VIRT },
    Sign { text: "guest does not use protected virtualization mode", cause: NOT_A_HOST, advice: PROT_VIRT },
    Sign {
        text: "Secure unpack facility is not available",
        cause: "this host or this QEMU cannot start secure guests, and the image cannot start unprotected",
        advice: PROT_VIRT,
    },
    Sign {
        text: "invalid object type: s390-pv-guest",
        cause: "this QEMU cannot run secure guests",
        advice: "install qemu-system-s390x 8 or newer, built with KVM, on the Z node, or set qemu.path",
    },
    Sign {
        text: "Please check whether the image is correctly encrypted for this host",
        cause: "the image was built for another machine",
        advice: "rebuild it with this machine's host key document (`kata-se check` shows the machine's keys)",
    },
    Sign {
        text: "Failed to set secure execution parameters",
        cause: "the ultravisor refused the image's header",
        advice: "run `kata-se check --image` on this node",
    },
    Sign {
        text: "Could not access KVM kernel module",
        cause: "KVM cannot be used",
        advice: "load the module kvm and give QEMU's user access to /dev/kvm",
    },
    Sign {
        text: "cannot set up guest memory",
        cause: "this machine has not enough free memory for the guest",
        advice: "make guest.memory_mib smaller, or free memory",
    },
];

fn by_sign(lines: &[String]) -> Option<Diagnosis> {
    let found = SIGNS.iter().find_map(|sign| Some((sign, lines.iter().find(|l| l.contains(sign.text))?)));
    found.map(|(sign, line)| Diagnosis {
        cause: sign.cause.to_owned(),
        evidence: line.chars().take(limits::QUOTED_LINE_CHARS).collect(),
        advice: sign.advice.to_owned(),
    })
}

fn output_tail(evidence: &Evidence) -> String {
    let end = |lines: &[String]| {
        lines.get(lines.len().saturating_sub(limits::QUOTED_LINES)..).map(|l| l.join(" | "))
    };
    let mut words = String::new();
    if let Some(stderr) = end(&evidence.stderr).filter(|s| !s.is_empty()) {
        add(&mut words, &format!("stderr: {stderr}"));
    }
    if let Some(reason) = &evidence.guest_shutdown {
        add(&mut words, &format!("the guest ended itself ({reason})"));
    }
    if let Some(console) = end(&evidence.console).filter(|s| !s.is_empty()) {
        // A kernel says why it panics, and then much about where.
        let why = evidence.console.iter().rev().find(|line| line.contains("Kernel panic - "));
        let why = why.filter(|line| !console.contains(line.as_str())).map(|line| format!("{line} | … | "));
        add(&mut words, &format!("console: {}{console}", why.unwrap_or_default()));
    }
    if words.is_empty() { "it left no message".to_owned() } else { words }
}

fn add(text: &mut String, more: &str) {
    if !text.is_empty() {
        text.push_str("; ");
    }
    text.push_str(more);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(ended: Ended) -> Evidence {
        Evidence {
            ended,
            oom_kill: None,
            asked: false,
            guest_shutdown: None,
            panic: None,
            stderr: vec![],
            console: vec![],
        }
    }

    fn stopped(psw_address: u64) -> Option<GuestPanic> {
        let reason = "disabled-wait".to_owned();
        Some(GuestPanic::Cpu { core: 0, psw_mask: 0x2_0001_8000_0000, psw_address, reason })
    }

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn the_last_words_are_in_the_text() {
        let e = Evidence {
            stderr: vec!["qemu: could not load kernel '/x'".into()],
            console: vec!["Booting".into(), "oops".into()],
            ..evidence(Ended::Code(1))
        };
        assert_eq!(
            diagnose(&e).to_string(),
            "QEMU ended with exit code 1: stderr: qemu: could not load kernel '/x'; console: Booting | oops"
        );
        assert_eq!(
            diagnose(&evidence(Ended::Signal(11))).to_string(),
            "QEMU was killed by signal 11: it left no message"
        );
        let trace = lines(&["[ 3.2] Kernel panic - not syncing: No working init found.", "a", "b", "c"]);
        let panicked = Evidence { panic: stopped(1), console: trace, ..evidence(Ended::Code(1)) };
        assert!(
            diagnose(&panicked).to_string().ends_with(
                "console: [ 3.2] Kernel panic - not syncing: No working init found. | … | a | b | c"
            )
        );
        let asked = Evidence { asked: true, ..evidence(Ended::Signal(9)) };
        assert_eq!(diagnose(&asked), VmEnd::AskedToStop);
    }

    #[test]
    fn a_vm_that_was_too_large_for_its_cgroup_says_so() {
        let limit = Some(("kubepods/pod1".into(), 300 << 20));
        let hit = OomKill { peak: (299 << 20) + 1, limit };
        let e = Evidence { oom_kill: Some(hit.clone()), ..evidence(Ended::Signal(9)) };
        assert!(
            diagnose(&e).to_string().starts_with(
                "the host's OOM killer ended the VM: QEMU had 300 MiB, the limit of cgroup /kubepods/pod1 is 300 MiB; \
                 QEMU ended with signal 9: raise the overhead of the RuntimeClass"
            ),
            "{}",
            diagnose(&e)
        );
        let node = OomKill { limit: None, peak: 0 };
        let e = Evidence { oom_kill: Some(node), ..e };
        assert!(diagnose(&e).to_string().contains("its cgroups have no limit"), "{}", diagnose(&e));
        let helper = Evidence { oom_kill: Some(hit), ..evidence(Ended::Code(1)) };
        assert!(!diagnose(&helper).to_string().contains("OOM"), "a helper was hit, QEMU ended by itself");
    }

    #[test]
    fn another_machines_image_is_named_first() {
        let e = Evidence {
            stderr: lines(&[
                "qemu-system-s390x: KVM PV command 2 (KVM_PV_SET_SEC_PARMS) failed: header rc 108 rrc 5 IOCTL rc: -22",
                "qemu-system-s390x: Failed to set secure execution parameters",
                "Please check whether the image is correctly encrypted for this host",
                "qemu-system-s390x: KVM PV command 1 (KVM_PV_DISABLE) failed: header rc 3 rrc 0 IOCTL rc: -22",
            ]),
            panic: stopped(0x4608),
            console: lines(&["Protected boot failed: 0xa02, KVM_PV_SET_SEC_PARMS - RC: 0x108, RRC:0x5"]),
            ..evidence(Ended::Code(1))
        };
        let end = diagnose(&e);
        assert_eq!(
            end.to_string(),
            "the image was built for another machine: KVM_PV_SET_SEC_PARMS: rc 0x108 rrc 0x5 (no key slot for \
             this machine); QEMU ended with exit code 1: rebuild it with this \
             machine's host key document (`kata-se check` shows the machine's keys, `kata-se image inspect` \
             the image's)"
        );
        let VmEnd::Explained { output_tail: words, .. } = end else { panic!("not explained") };
        assert!(
            words.contains("KVM_PV_DISABLE") && words.contains("console: Protected boot failed"),
            "{words}"
        );
    }

    /// QEMU's stderr, where the CPU stopped (0: nowhere), the console, and how the answer begins.
    type Row = (&'static [&'static str], u64, &'static [&'static str], &'static str);

    const ROWS: [Row; 13] = [
        (
            &["KVM PV command 4 (KVM_PV_VERIFY) failed: header rc 102 rrc 1b IOCTL rc: -22"],
            0x4608,
            &[],
            "the image was modified or truncated since it was sealed: KVM_PV_VERIFY: rc 0x102 rrc 0x1b \
                 (content of pages differs",
        ),
        (
            &["KVM PV command 0 (KVM_PV_ENABLE) failed: header rc 0 rrc 0 IOCTL rc: -12"],
            0x4608,
            &[],
            "this machine has no room for another secure guest: KVM_PV_ENABLE: rc 0x0 rrc 0x0 (no more is \
                 told, Cannot allocate memory",
        ),
        (
            &["KVM PV command 3 (KVM_PV_UNPACK) failed: header rc abc rrc 7 IOCTL rc: -22"],
            0,
            &[],
            "the ultravisor refused the guest: KVM_PV_UNPACK: rc 0xabc rrc 0x7 (not a known code",
        ),
        (
            &[
                "qemu-system-s390x: Failed to set secure execution parameters",
                "Please check whether the \
                   image is correctly encrypted for this host",
            ],
            0x4608,
            &[],
            "the image was built for another machine: Please check",
        ),
        (
            &["qemu-system-s390x: CPU model does not support Protected Virtualization"],
            0,
            &[],
            "this machine is not a Secure Execution host: qemu-system-s390x: CPU model",
        ),
        (&["S390 PV guests require KVM support"], 0, &[], "QEMU runs without KVM: S390 PV"),
        (
            &["qemu: guest does not use protected virtualization mode"],
            0,
            &[],
            "this machine is not a Secure Execution host: ",
        ),
        (
            &["qemu-system-s390x: -object s390-pv-guest,id=pv0: invalid object type: s390-pv-guest"],
            0,
            &[],
            "this QEMU cannot run secure guests: ",
        ),
        (
            &["Could not access KVM kernel module: No such file or directory"],
            0,
            &[],
            "KVM cannot be used: Could not access KVM kernel module: No such file",
        ),
        (&[], 0x4607, &[], "this host or this QEMU cannot start secure guests, and the image cannot"),
        (
            &[],
            0x4608,
            &[
                "An unsupported plaintext control flag is set.",
                "Protected boot failed: 0xa02, \
                   KVM_PV_SET_SEC_PARMS - RC: 0x106, RRC:0x30",
            ],
            "the image asks for something this machine does not support: KVM_PV_SET_SEC_PARMS: rc 0x106 \
                 rrc 0x30 (unsupported plaintext control flag, such as dumping); CPU 0: disabled-wait, PSW",
        ),
        (&[], 0x4608, &["noise"], "the ultravisor refused the image: its codes are lost"),
        (
            &[],
            0,
            &["Protected boot failed: 0xa02, KVM_PV_VERIFY - RC: 0x102, RRC:0x1d"],
            "the image was modified or truncated since it was sealed: KVM_PV_VERIFY: rc 0x102 rrc 0x1d",
        ),
    ];

    #[test]
    fn every_known_end_is_explained() {
        for (stderr, at, console, wanted) in ROWS {
            let e = Evidence {
                stderr: lines(stderr),
                console: lines(console),
                panic: if at == 0 { None } else { stopped(at) },
                ..evidence(Ended::Code(1))
            };
            let text = diagnose(&e).to_string();
            assert!(text.starts_with(wanted), "{text}");
            assert!(text.contains("QEMU ended with exit code 1: "), "{text}");
        }
    }

    #[test]
    fn a_later_panic_is_the_guests_own_whatever_its_console_claims() {
        let e = Evidence {
            panic: stopped(0x11_2233),
            console: lines(&["Protected boot failed: 0xa02, KVM_PV_VERIFY - RC: 0x102, RRC:0x1d"]),
            ..evidence(Ended::Code(1))
        };
        let text = diagnose(&e).to_string();
        assert!(
            text.starts_with(
                "the guest kernel panicked: CPU 0: disabled-wait, PSW 0x2000180000000 0x112233; console: "
            ),
            "{text}"
        );
        let ended = Evidence { panic: None, guest_shutdown: Some("guest-shutdown".into()), ..e };
        assert!(
            diagnose(&ended).to_string().starts_with("QEMU ended with exit code 1: the guest ended itself")
        );
    }

    #[test]
    fn any_text_can_be_explained_later() {
        let starts = |text: &str, wanted: &str| {
            let said = explain_text(text).map(|d| d.to_string()).unwrap_or_default();
            assert!(said.starts_with(wanted), "{said}");
        };
        let event = r#"{"event":"GUEST_PANICKED","data":{"info":{"type":"s390","core":0,"psw-mask":1,"psw-addr":17928,"reason":"disabled-wait"}}}"#;
        starts(event, "the ultravisor refused the image");
        starts(
            &format!("{event}\nProtected boot failed: 0xa02, KVM_PV_VERIFY - RC: 0x102, RRC:0x1b"),
            "the image was modified",
        );
        starts(
            "a\nCPU 0: disabled-wait, PSW 0x2000180000000 0x4607\n",
            "this host or this QEMU cannot start",
        );
        starts("{\"msg\":\"KVM_PV_VERIFY: rc 0x102 rrc 0x1b (content)\"}", "the image was modified");
        assert_eq!(explain_text("0x46071 all is well rc 5"), None);
    }

    proptest::proptest! {
        /// What a guest prints is text and stays text: one bounded line, whatever is in it.
        #[test]
        fn hostile_text_is_one_bounded_line(
            text in "(KVM PV command|KVM_PV_|Protected boot failed:|rc|rrc|RC:|0x| |[0-9a-f]{1,9}|\\PC|\n|\t|-){0,60}",
            at in 0_u64..0x5000,
        ) {
            if let Some(diagnosis) = explain_text(&text) {
                proptest::prop_assert!(diagnosis.to_string().len() < 2000);
            }
            let tail = crate::host::tail::Tail::default();
            tail.add(text.as_bytes());
            let lines = tail.last_lines(crate::limits::SEARCHED_LINES);
            let e = Evidence {
                stderr: lines.clone(),
                console: lines,
                panic: stopped(at),
                ..evidence(Ended::Code(1))
            };
            let line = diagnose(&e).to_string();
            proptest::prop_assert!(!line.chars().any(char::is_control), "{}", line);
        }
    }
}
