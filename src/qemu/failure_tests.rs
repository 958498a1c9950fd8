//! The output that QEMU, the ultravisor and the guest leave behind, and its explanation.

use super::*;

fn evidence(ended: Ended) -> Evidence {
    Evidence {
        ended,
        oom_kill: None,
        asked: false,
        guest_shutdown: None,
        panic: None,
        boot_disks: None,
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
fn the_last_output_is_in_the_text() {
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
        diagnose(&panicked)
            .to_string()
            .ends_with("console: [ 3.2] Kernel panic - not syncing: No working init found. | … | a | b | c")
    );
    let asked = Evidence { asked: true, ..evidence(Ended::Signal(9)) };
    assert_eq!(diagnose(&asked), VmEnd::AskedToStop);
}

#[test]
fn a_guest_that_powers_itself_off_while_it_boots_is_told_with_its_disks() {
    let off = |disks: Option<&[&str]>, reason: &str| Evidence {
        guest_shutdown: Some(reason.to_owned()),
        boot_disks: disks.map(lines),
        console: lines(&["[FAILED] Failed to mount extension coco"]),
        ..evidence(Ended::Code(0))
    };
    let text = diagnose(&off(Some(&["extension-coco", "initdata"]), "guest-shutdown")).to_string();
    assert!(
        text.starts_with(
            "the guest powered itself off while it booted: disks that it had: extension-coco, initdata; QEMU ended \
             with exit code 0: usually an extension image"
        ),
        "{text}"
    );
    assert!(diagnose(&off(Some(&[]), "guest-shutdown")).to_string().contains("disks that it had: none"));
    for other in [
        off(None, "guest-shutdown"),
        off(Some(&[]), "guest-reset"),
        Evidence { panic: stopped(1), ..off(Some(&[]), "guest-shutdown") },
    ] {
        assert!(!diagnose(&other).to_string().contains("extension image"), "{other:?}");
    }
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
    let VmEnd::Explained { output_tail, .. } = end else { panic!("not explained") };
    assert!(
        output_tail.contains("KVM_PV_DISABLE") && output_tail.contains("console: Protected boot failed"),
        "{output_tail}"
    );
}

/// QEMU's stderr, where the CPU stopped (0: nowhere), the console, and how the answer begins.
type Row = (&'static [&'static str], u64, &'static [&'static str], &'static str);

const ROWS: [Row; 16] = [
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
        "this machine has no room for another secure guest: KVM_PV_ENABLE: rc 0x0 rrc 0x0 (no further \
             detail, Cannot allocate memory",
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
    (
        &["qemu-system-s390x: Some features requested in the CPU model are not available in the current \
             configuration: unpack"],
        0,
        &[],
        "this host has no unpack facility for guests, which secure guests need: qemu-system-s390x: Some",
    ),
    (
        &[],
        0x4608,
        &["Protected boot has failed: 0xa02"],
        "the host could not start the guest as a secure one, and the image's old loader does not say why: \
         Protected boot has failed: 0xa02; CPU 0: disabled-wait, PSW",
    ),
    (
        &[],
        0,
        &["Protected boot setup has failed: 0x402"],
        "the host refused the image's header, and the image's old loader does not say why: Protected boot",
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
    assert!(diagnose(&ended).to_string().starts_with("QEMU ended with exit code 1: the guest ended itself"));
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
    starts("a\nCPU 0: disabled-wait, PSW 0x2000180000000 0x4607\n", "this host or this QEMU cannot start");
    starts("{\"msg\":\"KVM_PV_VERIFY: rc 0x102 rrc 0x1b (content)\"}", "the image was modified");
    assert_eq!(explain_text("0x46071 all is well rc 5"), None);
    assert_eq!(explain_text("0x 0xzz 0x00000000000046080"), None);
}

/// Words of hosts and guests as their sources and manuals have them.
#[test]
fn documented_words_are_explained_in_a_text() {
    const OLD_LOADER: &str = "the host could not start the guest as a secure one, and the image's old loader";
    for (text, wanted, advice) in [
        (
            "qemu-system-s390x: Some features requested in the CPU model are not available in the current \
             configuration: unpack",
            "this host has no unpack facility for guests",
            "prot_virt=1",
        ),
        ("Protected boot has failed: 0xa02", OLD_LOADER, "vmalloc="),
        (
            "Protected boot has failed: 0xa02\nGuest crashed on cpu 0: disabled-wait\n\
             PSW: 0x0002000080000000 0x0000000000004608",
            OLD_LOADER,
            "vmalloc=",
        ),
        // QEMU knows more.
        (
            "qemu-kvm: KVM PV command 4 (KVM_PV_VERIFY) failed: header rc 102 rrc 1a IOCTL rc: -22\n\
             Protected boot has failed: 0xa02",
            "the image was modified or truncated since it was sealed",
            "inspect --verify",
        ),
        (
            "virtio_blk virtio0: swiotlb buffer is full (sz: 65536 bytes), total 32768 (slots), used 32768 (slots)",
            "the guest's bounce buffer, through which all its I/O goes, is too small",
            "swiotlb=",
        ),
        (
            "Guest crashed on cpu 0: disabled-wait\nPSW: 0x0002000080000000 0x0000000000004608",
            "the ultravisor refused the image: its codes are lost",
            "check --image",
        ),
        (
            "Guest crashed on cpu 0: disabled-wait\nPSW: 0x0002000180000000 0x000000000010f146",
            "the guest's kernel, or the loader in front of it, stopped for good",
            "console",
        ),
    ] {
        let said = explain_text(text).map(|d| d.to_string()).unwrap_or_default();
        assert!(said.starts_with(wanted) && said.contains(advice), "{said}");
    }
}

#[test]
fn what_a_guest_prints_while_it_runs_explains_nothing() {
    let e = Evidence {
        panic: stopped(0x11_2233),
        console: lines(&["virtio0: swiotlb buffer is full", "Protected boot has failed: 0xa02"]),
        ..evidence(Ended::Code(1))
    };
    assert!(matches!(diagnose(&e), VmEnd::Panicked { .. }));
}

proptest::proptest! {
    /// Whatever a guest prints becomes one bounded line.
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
        let lines = tail.last_lines(crate::limits::text::SEARCHED_LINES);
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

#[test]
fn a_vm_whose_disk_failed_says_which_and_why() {
    let text = "I/O error of disk hot-5: write: No space left on device; QEMU's action: stop";
    let e = Evidence { stderr: lines(&[text, STOPPED]), ..evidence(Ended::Signal(9)) };
    let end = diagnose(&e).to_string();
    let wanted =
        format!("a disk of the VM failed on the host: {text}; QEMU ended with signal 9: look at the storage");
    assert!(end.starts_with(&wanted), "{end}");
    let e = Evidence { stderr: lines(&["KVM: error", STOPPED]), ..evidence(Ended::Signal(9)) };
    let end = diagnose(&e).to_string();
    assert!(end.starts_with("QEMU stopped the guest because of an error of its own: QEMU stopped"), "{end}");
    // What was reported to the guest is not the cause of its end.
    let reported = text.replace("stop", "report");
    let e = Evidence { stderr: lines(&[&reported]), ..evidence(Ended::Code(1)) };
    assert!(matches!(diagnose(&e), VmEnd::Exited { .. }));
}
