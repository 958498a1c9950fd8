//! What QEMU's end means, from its exit status, stderr, console and events: pure.
//!
//! QEMU's own messages come first. The console is written by the guest, which is not trusted: it counts only
//! for the time in which the loader in front of the image runs, and is otherwise merely quoted.

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
    /// The guest asked for it: the reason of the `SHUTDOWN` event.
    pub guest_shutdown: Option<String>,
    pub panic: Option<GuestPanic>,
    /// While it boots: the serials of the disks that it has. None: its agent has answered.
    pub boot_disks: Option<Vec<String>>,
    /// Last lines of QEMU's stderr and of the guest console, escaped and bounded.
    pub stderr: Vec<String>,
    pub console: Vec<String>,
}

/// The line in QEMU's output about a guest that it has stopped.
pub(super) const STOPPED: &str = "QEMU stopped the guest, which nobody asked for";

/// Where the loader of a sealed image stops its CPU (s390-tools, rust/pvimg/boot: ENOPV and EPV).
const NO_UNPACK_FACILITY: u64 = 0x4607;
const PROTECTED_BOOT_REFUSED: u64 = 0x4608;

/// The VM's end: explained if its reason is known, otherwise with the last output in one line.
pub(crate) fn diagnose(evidence: &Evidence) -> VmEnd {
    if evidence.asked {
        return VmEnd::AskedToStop;
    }
    let text = output_tail(evidence);
    if let Some(mut diagnosis) =
        { out_of_memory(evidence).or_else(|| explained(evidence)).or_else(|| powered_off(evidence)) }
    {
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

/// Only if QEMU was killed: its helpers are in the same cgroup.
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

/// A guest that ends in good order before its agent answers: the mount units of its extension images power it off when
/// one is not as its sealed parameters say (Kata: kata-extension-mount, OnFailure=poweroff.target).
fn powered_off(evidence: &Evidence) -> Option<Diagnosis> {
    let disks = evidence.boot_disks.as_ref()?;
    if evidence.panic.is_some() || evidence.guest_shutdown.as_deref() != Some("guest-shutdown") {
        return None;
    }
    let attached = if disks.is_empty() { "none".to_owned() } else { disks.join(", ") };
    Some(Diagnosis {
        cause: "the guest powered itself off while it booted".to_owned(),
        evidence: format!("disks that it had: {attached}"),
        advice: "usually an extension image that its sealed kernel parameters name (kata.extension.NAME) is missing \
                 or is another one: compare guest.extensions with what the image was built for, and see the last \
                 lines of its console"
            .to_owned(),
    })
}

/// Looks for known failures in any text: stderr, console, QMP lines, our own log.
pub(crate) fn explain_text(text: &str) -> Option<Diagnosis> {
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let panic = lines.iter().find_map(|line| {
        let object = serde_json::from_str(line.trim()).ok()?;
        match event(&object) {
            QmpEvent::GuestPanicked(panic) => Some(panic),
            QmpEvent::DeviceDeleted { .. }
            | QmpEvent::Shutdown { .. }
            | QmpEvent::DiskFailed { .. }
            | QmpEvent::Stopped
            | QmpEvent::Other => None,
        }
    });
    refused(&lines)
        .or_else(|| known_message(&KNOWN_MESSAGES, &lines))
        .or_else(|| by_stop(panic.as_ref()?, &lines))
        .or_else(|| stop_in_text(&lines))
        .or_else(|| known_message(&LOADER_MESSAGES, &lines))
        .or_else(|| known_message(&GUEST_MESSAGES, &lines))
}

fn explained(evidence: &Evidence) -> Option<Diagnosis> {
    let stderr = &evidence.stderr;
    refused(stderr).or_else(|| known_message(&KNOWN_MESSAGES, stderr)).or_else(|| match &evidence.panic {
        Some(panic) => by_stop(panic, &evidence.console),
        // The event was lost, or an older QEMU does not send it. The console of a guest that ended itself
        // says nothing about the machine.
        None if evidence.guest_shutdown.is_none() => refused_by_loader(&evidence.console),
        None => None,
    })
}

/// A refusal as a loader prints it: with the ultravisor's codes, or, if it is an old one, without them.
fn refused_by_loader(console: &[String]) -> Option<Diagnosis> {
    refused(console).or_else(|| known_message(&LOADER_MESSAGES, console))
}

/// The first refusal that is not one of tearing down: the others follow from it.
fn refused(lines: &[String]) -> Option<Diagnosis> {
    let found: Vec<_> = lines.iter().filter_map(|line| ultravisor::refusal(line)).collect();
    found.iter().find(|refusal| refusal.is_of_boot()).map(ultravisor::Refusal::explain)
}

/// A CPU that stopped where the loader stops it.
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
        PROTECTED_BOOT_REFUSED => Some(refused_by_loader(console).unwrap_or_else(|| Diagnosis {
            cause: "the ultravisor refused the image".to_owned(),
            evidence: "its codes are lost: neither QEMU's stderr nor the console has them".to_owned(),
            advice: "run `kata-se check --image` on this node".to_owned(),
        })),
        _ => None,
    }
}

/// The same in text: the address as our own messages print it, and QEMU with zeros in front.
fn stop_in_text(lines: &[String]) -> Option<Diagnosis> {
    let has = |address: u64| {
        let is = |word: &str| {
            word.strip_prefix("0x").is_some_and(|digits| u64::from_str_radix(digits, 16) == Ok(address))
        };
        lines.iter().any(|l| l.split(|c: char| !c.is_ascii_alphanumeric()).any(is))
    };
    [NO_UNPACK_FACILITY, PROTECTED_BOOT_REFUSED]
        .into_iter()
        .find(|a| has(*a))
        .and_then(|a| stopped_at(a, lines))
}

/// A message of QEMU, of a loader or of a guest, and what it means.
struct KnownMessage {
    text: &'static str,
    cause: &'static str,
    advice: &'static str,
}

const NOT_A_HOST: &str = "this machine is not a Secure Execution host";
const PROT_VIRT: &str = "boot the host with the kernel parameter prot_virt=1 on a machine and LPAR with Secure \
     Execution; `kata-se check` shows what is missing";

/// Our own words behind QEMU's, when a guest that has to be protected is not.
pub(crate) const UNPROTECTED: &str = "the guest answers, and QEMU's machine is not protected (query-migrate)";

/// QEMU: target/s390x/kvm/pv.c, hw/s390x/s390-virtio-ccw.c, accel/kvm/kvm-all.c.
const KNOWN_MESSAGES: [KnownMessage; 13] = [
    KnownMessage {
        text: UNPROTECTED,
        cause: "the guest was started unprotected, and was ended before it got anything of the pod",
        advice: "the image is forged, or QEMU does not report protection: copy the image again from where it \
                 was built, check the host's QEMU (8 or newer)",
    },
    KnownMessage {
        text: "CPU model does not support Protected Virtualization",
        cause: NOT_A_HOST,
        advice: PROT_VIRT,
    },
    KnownMessage { text: "S390 PV guests require KVM", cause: "QEMU runs without KVM", advice: PROT_VIRT },
    KnownMessage {
        text: "guest does not use protected virtualization mode",
        cause: NOT_A_HOST,
        advice: PROT_VIRT,
    },
    KnownMessage {
        text: "Secure unpack facility is not available",
        cause: "this host or this QEMU cannot start secure guests, and the image cannot start unprotected",
        advice: PROT_VIRT,
    },
    KnownMessage {
        text: "invalid object type: s390-pv-guest",
        cause: "this QEMU cannot run secure guests",
        advice: "install qemu-system-s390x 8 or newer, built with KVM, on the Z node, or set qemu.path",
    },
    KnownMessage {
        text: "Please check whether the image is correctly encrypted for this host",
        cause: "the image was built for another machine",
        advice: "rebuild it with this machine's host key document (`kata-se check` shows the machine's keys)",
    },
    KnownMessage {
        text: "Failed to set secure execution parameters",
        cause: "the ultravisor refused the image's header",
        advice: "run `kata-se check --image` on this node",
    },
    KnownMessage {
        text: "Could not access KVM kernel module",
        cause: "KVM cannot be used",
        advice: "load the module kvm and give QEMU's user access to /dev/kvm",
    },
    KnownMessage {
        text: "cannot set up guest memory",
        cause: "this machine has not enough free memory for the guest",
        advice: "make guest.memory_mib smaller, or free memory",
    },
    // target/s390x/cpu_models.c, which names the features after it.
    KnownMessage {
        text: "Some features requested in the CPU model are not available in the current configuration: unpack",
        cause: "this host has no unpack facility for guests, which secure guests need",
        advice: PROT_VIRT,
    },
    // Our own lines, of the events BLOCK_IO_ERROR and STOP.
    KnownMessage {
        text: "QEMU's action: stop",
        cause: "a disk of the VM failed on the host",
        advice: "look at the storage behind it: a thin pool or a file system may be full",
    },
    KnownMessage {
        text: STOPPED,
        cause: "QEMU stopped the guest because of an error of its own",
        advice: "look at the lines before it, and at the kernel's log (dmesg) for KVM",
    },
];

/// Loaders of s390-tools before they printed the ultravisor's codes (genprotimg/boot/stage3a.c). That the host's
/// vmalloc area is one of the causes: https://www.ibm.com/docs/en/linuxonibm/lxse/lxse_pd_vma.html.
const LOADER_MESSAGES: [KnownMessage; 2] = [
    KnownMessage {
        text: "Protected boot has failed: 0x",
        cause: "the host could not start the guest as a secure one, and the image's old loader does not say why",
        advice: "look for \"KVM PV command\" in QEMU's output; with large or many guests the host's vmalloc \
                 area may be too small: boot the host with a large vmalloc=, such as vmalloc=1T; run `kata-se check --image` on this \
                 node; rebuild the image with a newer pvimg to see the ultravisor's codes",
    },
    KnownMessage {
        text: "Protected boot setup has failed: 0x",
        cause: "the host refused the image's header, and the image's old loader does not say why",
        advice: "run `kata-se check --image` on this node; rebuild the image with a newer pvimg to see the \
                 ultravisor's codes",
    },
];

/// Words of the guest's kernel, and of those who watch it: only in a text that a person asks about. While a VM
/// runs, the guest is not trusted to explain its end.
const GUEST_MESSAGES: [KnownMessage; 2] = [
    // Linux: kernel/dma/swiotlb.c. All I/O of a secure guest goes through this buffer.
    KnownMessage {
        text: "swiotlb buffer is full",
        cause: "the guest's bounce buffer, through which all its I/O goes, is too small",
        advice: "seal the image again with a larger swiotlb= in its kernel parameters (slots of 2 KiB)",
    },
    // QEMU: system/runstate.c and qapi/run-state.json (S390CrashReason); also libvirt's log. Addresses at which the
    // loader stops are explained before.
    KnownMessage {
        text: "disabled-wait",
        cause: "the guest's kernel, or the loader in front of it, stopped for good",
        advice: "the guest's console says why, in its last lines: give them to `kata-se explain`",
    },
];

fn known_message(known: &[KnownMessage], lines: &[String]) -> Option<Diagnosis> {
    let found = known.iter().find_map(|known| Some((known, lines.iter().find(|l| l.contains(known.text))?)));
    found.map(|(known, line)| Diagnosis {
        cause: known.cause.to_owned(),
        evidence: line.chars().take(limits::text::QUOTED_LINE_CHARS).collect(),
        advice: known.advice.to_owned(),
    })
}

fn output_tail(evidence: &Evidence) -> String {
    let end = |lines: &[String]| {
        lines.get(lines.len().saturating_sub(limits::text::QUOTED_LINES)..).map(|l| l.join(" | "))
    };
    let mut tail = String::new();
    if let Some(stderr) = end(&evidence.stderr).filter(|s| !s.is_empty()) {
        add(&mut tail, &format!("stderr: {stderr}"));
    }
    if let Some(reason) = &evidence.guest_shutdown {
        add(&mut tail, &format!("the guest ended itself ({reason})"));
    }
    if let Some(console) = end(&evidence.console).filter(|s| !s.is_empty()) {
        // A kernel first prints why it panics, and then a long trace.
        let why = evidence.console.iter().rev().find(|line| line.contains("Kernel panic - "));
        let why = why.filter(|line| !console.contains(line.as_str())).map(|line| format!("{line} | … | "));
        add(&mut tail, &format!("console: {}{console}", why.unwrap_or_default()));
    }
    if tail.is_empty() { "it left no message".to_owned() } else { tail }
}

fn add(text: &mut String, more: &str) {
    if !text.is_empty() {
        text.push_str("; ");
    }
    text.push_str(more);
}

#[cfg(test)]
#[path = "failure_tests.rs"]
mod tests;
