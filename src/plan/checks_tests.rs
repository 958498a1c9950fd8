//! One table row for each outcome of a check.

use super::*;
use crate::image::{Bound, Component, CustomerKey, Header, Ipib, KeyHash, KeySlot};
use crate::plan::finding::{Severity, refusal};
use crate::plan::host_facts::HostKeys;

fn key(n: u8) -> KeyHash {
    KeyHash([n; 32])
}

fn z_host() -> HostFacts {
    HostFacts {
        architecture: "s390x".into(),
        uv_facility: Fact::Known(true),
        prot_virt_host: Fact::Known(true),
        prot_virt_guest: Fact::Known(false),
        max_cpus: Fact::Known(248),
        max_guests: Fact::Known(100),
        max_address: Fact::Known((1 << 40) - 1),
        header_versions: Fact::Known(1 << 62),
        header_flags: Fact::Known(0xf0),
        keys: Fact::Known(HostKeys { host: Some(key(0xaa)), backup: Some(key(0xbb)) }),
        kvm: Kvm::Protected,
        running_guests: Some(3),
    }
}

fn image() -> SealedImage {
    let slot = |n| KeySlot { host_key: key(n), wrapped: [0; 32], tag: [0; 16] };
    let loader = Component { address: 0x3c0_0000, size: 0x2000, tweak: 70 << 48 };
    SealedImage {
        size: 60 << 20,
        header_at: 0x1_4000,
        header: Header {
            version: 0x100,
            size: 720,
            iv: [0; 12],
            customer_key: CustomerKey([0; 160]),
            slots: vec![slot(1), slot(0xaa)],
            encrypted_size: 128,
            pages: 15000,
            flags: PlainFlags(0xe0),
            content_digest: [0; 64],
            address_digest: [0; 64],
            tweak_digest: [0; 64],
            tag: [0xab; 16],
        },
        ipib: Some(Ipib { at: 0x2000, components: vec![loader] }),
    }
}

struct Case {
    host: HostFacts,
    image: SealedImage,
    documents: Vec<KnownDocument>,
    memory_mib: u32,
    vcpus: u32,
}

fn case() -> Case {
    Case { host: z_host(), image: image(), documents: vec![], memory_mib: 2048, vcpus: 2 }
}

impl Case {
    fn findings(&self, image: Result<&SealedImage, &ImageProblem>) -> Vec<Finding> {
        run(&CheckInputs {
            host: &self.host,
            image,
            documents: &self.documents,
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
        })
    }

    /// All findings other than a pass.
    fn complaints(&self) -> Vec<String> {
        let findings = self.findings(Ok(&self.image));
        let complaints = findings.iter().filter(|f| f.severity != Severity::Pass);
        complaints.map(|f| format!("{:?} {}: {}", f.severity, f.check, f.text)).collect()
    }
}

/// Changes one thing of a good host, image or size, and expects this one finding.
fn row(change: impl FnOnce(&mut Case), wanted: &str) {
    let mut case = case();
    change(&mut case);
    let complaints = case.complaints();
    assert_eq!(complaints.len(), 1, "{wanted}: {complaints:?}");
    assert!(complaints[0].starts_with(wanted), "{}", complaints[0]);
    assert!(!complaints[0].ends_with(": "), "no advice: {}", complaints[0]);
}

fn unclear<T>() -> Fact<T> {
    Fact::Unclear("/f: \"x\": no".into())
}

#[test]
fn a_good_machine_and_a_good_image_pass_every_check() {
    let findings = case().findings(Ok(&image()));
    let text: Vec<_> = findings.iter().map(|f| format!("{:?} {}: {}", f.severity, f.check, f.text)).collect();
    assert_eq!(
        text,
        [
            "Pass machine: IBM Z or LinuxONE (s390x)",
            "Pass cpu: the CPU has the ultravisor facility (158)",
            "Pass ultravisor: this kernel runs secure guests (prot_virt_host is 1)",
            "Pass kvm: KVM runs protected guests (KVM_CAP_S390_PROTECTED)",
            "Pass image: sealed, header version 0x100, key slots: 2, pages: 15000, tag \
             abababababababababababababababab",
            "Pass version: this machine knows header version 0x100",
            "Pass flags: PCKMO DEA/TDEA keys, PCKMO AES keys, PCKMO ECC keys",
            "Pass key: a key slot fits this machine's host key aaaaaaaaaaaaaaaa…",
            "Pass memory: 2048 MiB, of which the image takes 61 MiB",
            "Pass cpus: 2 virtual CPUs of at most 247",
            "Pass guests: 3 secure guests of at most 100 run",
        ]
    );
    assert_eq!(refusal(&findings), None);
}

#[test]
fn what_the_host_lacks_is_named_with_what_enables_it() {
    row(|c| c.host.uv_facility = Fact::Known(false), "Fatal cpu: the CPU does not offer the ultravisor");
    row(|c| c.host.uv_facility = Fact::Absent, "Warning cpu: this could not be checked: /proc/cpuinfo");
    row(|c| c.host.uv_facility = unclear(), "Warning cpu: this could not be checked: /f: \"x\": no");
    row(
        |c| c.host.prot_virt_host = Fact::Known(false),
        "Fatal ultravisor: this kernel was not started as a Secure Execution host: \
         /sys/firmware/uv/prot_virt_host is 0: add prot_virt=1",
    );
    row(
        |c| c.host.prot_virt_host = Fact::Absent,
        "Fatal ultravisor: there is no ultravisor: /sys/firmware/uv/prot_virt_host does not exist: enable",
    );
    row(|c| c.host.prot_virt_host = unclear(), "Warning ultravisor: this could not be checked: /f");
    row(
        |c| c.host.prot_virt_guest = Fact::Known(true),
        "Fatal ultravisor: this kernel is a secure guest itself",
    );
    row(|c| c.host.kvm = Kvm::Missing, "Fatal kvm: KVM is not available: /dev/kvm does not exist: load");
    row(
        |c| c.host.kvm = Kvm::Unusable("/dev/kvm: Permission denied".into()),
        "Fatal kvm: KVM cannot be used: /dev/kvm: Permission denied: give the user",
    );
    row(
        |c| c.host.kvm = Kvm::Unprotected,
        "Fatal kvm: KVM cannot run protected guests: /dev/kvm does not have",
    );
    row(
        |c| c.host.max_guests = Fact::Known(3),
        "Warning guests: this machine may have no room for another secure guest: 3 run by their command lines, the limit",
    );
    row(|c| c.host.max_guests = unclear(), "Warning guests: this could not be checked");
}

#[test]
fn a_machine_that_is_no_z_has_one_finding_that_says_so() {
    let mut other = case();
    other.host = HostFacts {
        architecture: "x86_64".into(),
        prot_virt_host: Fact::Absent,
        kvm: Kvm::Missing,
        ..z_host()
    };
    let complaints = other.complaints();
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    assert!(
        complaints[0].starts_with(
            "Fatal machine: this machine is not an IBM Z or LinuxONE, and no other runs Secure Execution \
             guests: its architecture is \"x86_64\": run the pod on a Z node"
        ),
        "{complaints:?}"
    );
}

#[test]
fn an_image_that_is_not_sealed_is_always_refused() {
    let first = |problem| refusal(&case().findings(Err(&problem))).expect("fatal");
    assert_eq!(
        first(ImageProblem::Invalid(ImageError::NotSealed { size: 77 })),
        "not a Secure Execution image: QEMU would boot it unprotected: there is no header in its 77 bytes: \
         seal kernel, initrd and parameters with pvimg, and name the result in guest.image"
    );
    let field = ImageError::InvalidField {
        field: "header size",
        offset: 0x1_400c,
        value: 9000,
        bound: Bound::AtMost(8192),
        text: "no header is larger",
    };
    assert!(first(ImageProblem::Invalid(field)).starts_with(
        "the image is damaged: damaged image: header size at 0x1400c is 0x2328, must be at most 0x2000"
    ));
    let shrank = ImageError::Shrank { field: "header", offset: 1, wanted: 2, size: 3 };
    assert!(first(ImageProblem::Invalid(shrank)).starts_with("the image changes while it is read: "));
    let unreadable = ImageError::Unreadable { field: "header", offset: 1, text: "I/O error".into() };
    assert!(first(ImageProblem::Invalid(unreadable)).starts_with("the image cannot be read: "));
    assert_eq!(
        first(ImageProblem::Unreadable("/i: No such file".into())),
        "the image cannot be read: /i: No such file: check guest.image in the configuration, and who may \
         read the file"
    );
}

#[test]
fn a_header_this_machine_does_not_know_is_refused_by_name() {
    row(
        |c| c.image.header.version = 0x200,
        "Fatal version: this machine does not know the version of the image's header: version 0x200, \
         supported mask 0x4000000000000000",
    );
    row(|c| c.host.header_versions = unclear(), "Warning version: this could not be checked");
    row(
        |c| c.image.header.flags = PlainFlags(0xe0 | 1 << 29),
        "Fatal flags: the image asks for something this machine does not support: flags not supported: dump \
         allowed; image 0x00000000200000e0, machine 0x00000000000000f0; the ultravisor would refuse it with \
         rc 0x106 rrc 0x30: rebuild",
    );
    row(|c| c.host.header_flags = unclear(), "Warning flags: this could not be checked");
    row(
        |c| {
            c.image.header.flags = PlainFlags(1 << 28);
            c.host.header_flags = Fact::Known(u64::MAX);
        },
        "Warning image: the image's content is not encrypted",
    );
    let mut old = case();
    old.host.header_versions = Fact::Absent;
    old.host.header_flags = Fact::Absent;
    assert_eq!(old.complaints(), Vec::<String>::new());
}

#[test]
fn an_image_for_another_machine_is_refused_with_both_lists() {
    row(
        |c| c.image.header.slots.truncate(1),
        "Fatal key: built for another machine: rebuild it with this machine's host key document: the image's \
         slots: 0101010101010101…; this machine's keys: aaaaaaaaaaaaaaaa…, bbbbbbbbbbbbbbbb…: IBM provides the document",
    );
    row(
        |c| {
            let slot = |n| KeySlot { host_key: key(n), wrapped: [0; 32], tag: [0; 16] };
            c.image.header.slots = (1..=9).map(slot).collect();
        },
        "Fatal key: built for another machine: rebuild it with this machine's host key document: the image's \
         slots: 0101010101010101…, 0202020202020202…, 0303030303030303…, 0404040404040404… and 5 more; this",
    );
    row(
        |c| c.image.header.slots[1].host_key = key(0xbb),
        "Warning key: the image fits only this machine's backup host key, and does not allow it",
    );
    let mut backup = case();
    backup.image.header.slots[1].host_key = key(0xbb);
    backup.image.header.flags = PlainFlags(2);
    backup.host.header_flags = Fact::Known(2);
    assert_eq!(backup.complaints(), Vec::<String>::new());
    assert_eq!(key_slot::matched(&backup.image, &backup.host, &[]), Some(key(0xbb)));
}

#[test]
fn without_a_key_list_the_configured_documents_decide() {
    let document = |key| KnownDocument { path: "/etc/HKD.crt".into(), key };
    row(
        |c| c.host.keys = Fact::Absent,
        "Warning key: whether the image fits this machine could not be checked: this kernel does not report the \
         machine's keys: use Linux 6.13",
    );
    row(
        |c| {
            c.host.keys = unclear();
            c.documents = vec![document(Err("not a certificate".into()))];
        },
        "Warning key: whether the image fits this machine could not be checked: /f: \"x\": no; /etc/HKD.crt: \
         not a certificate",
    );
    row(
        |c| {
            c.host.keys = Fact::Absent;
            c.documents = vec![document(Ok(key(7)))];
        },
        "Fatal key: built for another machine: rebuild it with this machine's host key document: the image's \
         slots: 0101010101010101…, aaaaaaaaaaaaaaaa…; keys of the configured documents: 0707070707070707…",
    );
    let mut fits = case();
    fits.host.keys = Fact::Absent;
    fits.documents = vec![document(Ok(key(7))), document(Ok(key(1)))];
    assert_eq!(fits.complaints(), Vec::<String>::new());
    assert_eq!(key_slot::matched(&fits.image, &fits.host, &fits.documents), Some(key(1)));
}

#[test]
fn a_vm_of_the_wrong_size_is_refused_with_number_and_limit() {
    row(
        |c| c.memory_mib = 60,
        "Fatal memory: the VM's memory is too small for the image: 60 MiB (guest.memory_mib and \
         the pod's limits), the image needs 61 MiB",
    );
    row(
        |c| c.host.max_address = Fact::Known((1 << 31) - 2),
        "Fatal memory: the VM's memory is larger than a secure guest can have here: 2048 MiB (guest.memory_mib and \
         the pod's limits), the highest guest address is 0x7ffffffe",
    );
    row(|c| c.host.max_address = unclear(), "Warning memory: this could not be checked");
    row(
        |c| c.vcpus = 248,
        "Fatal cpus: the VM has more CPUs than a secure guest can have: 248 (guest.vcpus and the pod's \
         limits), the limit is 247, KVM's",
    );
    row(
        |c| c.host.max_cpus = Fact::Known(1),
        "Fatal cpus: the VM has more CPUs than a secure guest can have: 2 (guest.vcpus and the pod's \
         limits), the limit is 1, this machine's",
    );
    row(|c| c.host.max_cpus = unclear(), "Warning cpus: this could not be checked");
    let mut exact = case();
    exact.host.max_address = Fact::Known((1 << 31) - 1);
    exact.memory_mib = 2048;
    assert_eq!(exact.complaints(), Vec::<String>::new());
}

#[test]
fn several_reasons_are_one_line_and_the_first_is_complete() {
    let mut case = case();
    case.host.kvm = Kvm::Missing;
    case.vcpus = 300;
    let line = refusal(&case.findings(Ok(&image()))).expect("fatal");
    assert_eq!(
        line,
        "KVM is not available: /dev/kvm does not exist: load the module: modprobe kvm; also: the VM has more CPUs \
         than a secure guest can have"
    );
}

#[test]
fn digests_that_differ_are_fatal() {
    let good = Verdict { content: true, addresses: true, tweaks: true, pages: (9, 9) };
    assert_eq!(digests(&good).severity, Severity::Pass);
    let finding = digests(&Verdict { content: false, ..good });
    assert_eq!(finding.severity, Severity::Fatal);
    assert!(
        finding.text.to_string().starts_with("the image was modified or truncated since it was sealed: ")
    );
}
