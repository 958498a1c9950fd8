//! Checks whether this image can run on this host in a VM of this size: what would make a secure guest
//! fail is found before time is spent on a boot. Facts in, findings out.
//!
//! An image without a Secure Execution header is always fatal, for every caller and configuration:
//! QEMU would boot it, unprotected.

use crate::hex::hex;
use crate::image::{ComponentKind, ImageError, PAGE, PlainFlags, SealedImage, Verdict};
use crate::plan::finding::{Finding, fatal, pass, unknown, warning};
use crate::plan::host_facts::{Fact, HostFacts, Kvm};
use crate::plan::key_slot::{self, KnownDocument};

/// What the checks look at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CheckInputs<'a> {
    pub host: &'a HostFacts,
    pub image: Result<&'a SealedImage, &'a ImageProblem>,
    /// Host key documents that the configuration names, for kernels that do not list the machine's keys.
    pub documents: &'a [KnownDocument],
    pub memory_mib: u32,
    pub vcpus: u32,
}

/// Why there is no sealed image.
#[derive(Debug)]
pub enum ImageProblem {
    Invalid(ImageError),
    /// The file cannot be opened; why, with its path.
    Unreadable(String),
}

/// The architecture of IBM Z and LinuxONE.
const S390X: &str = "s390x";

/// The most virtual CPUs of a protected guest (KVM: 248 CPUs, of which one id is the ultravisor's).
const VCPUS: u64 = 247;

/// Runs every check.
pub(crate) fn run(inputs: &CheckInputs<'_>) -> Vec<Finding> {
    let mut findings = machine(inputs.host);
    let is_z = inputs.host.architecture == S390X;
    match inputs.image {
        Ok(image) => {
            findings.push(sealed(image));
            // Another architecture has none of these facts.
            if is_z {
                findings.push(version(image, inputs.host));
                findings.push(flags(image, inputs.host));
                findings.push(key_slot::check(image, inputs.host, inputs.documents));
            }
            findings.push(memory(image, inputs));
        }
        Err(ImageProblem::Invalid(error)) => findings.push(invalid(error)),
        Err(ImageProblem::Unreadable(why)) => findings.push(fatal(
            "image",
            "the image cannot be read",
            why,
            "check guest.image in the configuration, and who may read the file",
        )),
    }
    findings.push(cpus(inputs));
    if is_z {
        findings.push(guests(inputs.host));
    }
    findings
}

/// The finding of a comparison of the whole content with its digests.
pub(crate) fn digests(verdict: &Verdict) -> Finding {
    if verdict.untouched() {
        return pass("digests", verdict.to_string());
    }
    fatal(
        "digests",
        "the image was modified or truncated since it was sealed",
        &verdict.to_string(),
        "copy it again from where it was built, or rebuild it",
    )
}

/// The checks of the machine alone.
pub(crate) fn machine(host: &HostFacts) -> Vec<Finding> {
    if host.architecture != S390X {
        return vec![fatal(
            "machine",
            "this machine is not an IBM Z or LinuxONE, and no other runs Secure Execution guests",
            &format!("its architecture is {:?}", host.architecture),
            "run the pod on a Z node: give its RuntimeClass a nodeSelector kubernetes.io/arch: s390x",
        )];
    }
    vec![pass("machine", "IBM Z or LinuxONE (s390x)"), cpu(host), ultravisor(host), kvm(host)]
}

fn cpu(host: &HostFacts) -> Finding {
    match &host.uv_facility {
        Fact::Known(true) => pass("cpu", "the CPU has the ultravisor facility (158)"),
        Fact::Known(false) => fatal(
            "cpu",
            "the CPU does not offer the ultravisor facility",
            "facility 158 is not in /proc/cpuinfo",
            "Secure Execution needs a z15, LinuxONE III or newer with feature code 115, and an LPAR, not z/VM",
        ),
        Fact::Absent => unknown("cpu", "/proc/cpuinfo does not exist"),
        Fact::Unclear(text) => unknown("cpu", text),
    }
}

fn ultravisor(host: &HostFacts) -> Finding {
    const HOST: &str = "/sys/firmware/uv/prot_virt_host";
    if host.prot_virt_guest == Fact::Known(true) {
        return fatal(
            "ultravisor",
            "this kernel is a secure guest itself and cannot run others",
            "/sys/firmware/uv/prot_virt_guest is 1",
            "run the pod on the LPAR",
        );
    }
    match &host.prot_virt_host {
        Fact::Known(true) => pass("ultravisor", "this kernel runs secure guests (prot_virt_host is 1)"),
        Fact::Known(false) => fatal(
            "ultravisor",
            "this kernel was not started as a Secure Execution host",
            &format!("{HOST} is 0"),
            "add prot_virt=1 to the kernel's parameters, run zipl, reboot",
        ),
        Fact::Absent => fatal(
            "ultravisor",
            "there is no ultravisor",
            &format!("{HOST} does not exist"),
            "enable Secure Execution for the machine and the LPAR at the HMC, boot with prot_virt=1",
        ),
        Fact::Unclear(text) => unknown("ultravisor", text),
    }
}

fn kvm(host: &HostFacts) -> Finding {
    match &host.kvm {
        Kvm::Protected => pass("kvm", "KVM runs protected guests (KVM_CAP_S390_PROTECTED)"),
        Kvm::Missing => {
            fatal("kvm", "KVM is not available", "/dev/kvm does not exist", "load the module: modprobe kvm")
        }
        Kvm::Unusable(why) => fatal(
            "kvm",
            "KVM cannot be used",
            why,
            "give the user of the shim read and write access to /dev/kvm",
        ),
        Kvm::Unprotected => fatal(
            "kvm",
            "KVM cannot run protected guests",
            "/dev/kvm does not have KVM_CAP_S390_PROTECTED (180)",
            "boot the host with prot_virt=1; the kernel must be 5.7 or newer",
        ),
    }
}

fn invalid(error: &ImageError) -> Finding {
    let (cause, evidence, advice) = match error {
        ImageError::NotSealed { size } => (
            "not a Secure Execution image: QEMU would boot it unprotected".to_owned(),
            format!("there is no header in its {size} bytes"),
            "seal kernel, initrd and parameters with pvimg, and name the result in guest.image",
        ),
        ImageError::InvalidField { .. } => (
            "the image is damaged".to_owned(),
            error.to_string(),
            "copy it again from where it was built, or rebuild it with pvimg",
        ),
        ImageError::Shrank { .. } => (
            "the image changes while it is read".to_owned(),
            error.to_string(),
            "replace images by renaming, not in place",
        ),
        ImageError::Unreadable { .. } => {
            ("the image cannot be read".to_owned(), error.to_string(), "check the file and its file system")
        }
    };
    fatal("image", &cause, &evidence, advice)
}

fn sealed(image: &SealedImage) -> Finding {
    let header = &image.header;
    let text = format!(
        "sealed, header version {:#x}, key slots: {}, pages: {}, tag {}",
        header.version,
        header.slots.len(),
        header.pages,
        tag(image)
    );
    if header.flags.has(PlainFlags::NO_ENCRYPTION) {
        return warning(
            "image",
            "the image's content is not encrypted",
            "flag \"no component encryption\"",
            "anyone who can read the file knows its content: rebuild it encrypted if it contains secrets",
        );
    }
    pass("image", text)
}

/// The header's GCM tag in hexadecimal: attestation identifies an image by it.
pub(crate) fn tag(image: &SealedImage) -> String {
    hex(&image.header.tag)
}

fn version(image: &SealedImage, host: &HostFacts) -> Finding {
    let version = image.header.version;
    match &host.header_versions {
        Fact::Known(mask) if PlainFlags(*mask).has(version >> 8) => {
            pass("version", format!("this machine knows header version {version:#x}"))
        }
        Fact::Known(mask) => fatal(
            "version",
            "this machine does not know the version of the image's header",
            &format!("version {version:#x}, supported mask {mask:#018x}"),
            "rebuild the image with an older header version, or update the machine's firmware",
        ),
        Fact::Absent => {
            pass("version", format!("{version:#x}; this kernel does not report which are supported"))
        }
        Fact::Unclear(text) => unknown("version", text),
    }
}

fn flags(image: &SealedImage, host: &HostFacts) -> Finding {
    let flags = image.header.flags;
    match &host.header_flags {
        Fact::Known(mask) if flags.0 & !mask == 0 => pass("flags", names(flags)),
        Fact::Known(mask) => fatal(
            "flags",
            "the image asks for something this machine does not support",
            &format!(
                "flags not supported: {}; image {:#018x}, machine {mask:#018x}; the ultravisor would refuse it \
                 with rc 0x106 rrc 0x30",
                names(PlainFlags(flags.0 & !mask)),
                flags.0
            ),
            "rebuild the image without them, or update the machine's firmware",
        ),
        Fact::Absent => {
            pass("flags", format!("{}; this kernel does not report which are supported", names(flags)))
        }
        Fact::Unclear(text) => unknown("flags", text),
    }
}

fn names(flags: PlainFlags) -> String {
    let names = flags.names();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn memory(image: &SealedImage, inputs: &CheckInputs<'_>) -> Finding {
    let memory = u64::from(inputs.memory_mib) << 20;
    let loader =
        image.ipib.iter().flat_map(|ipib| &ipib.components).find(|c| c.kind() == ComponentKind::Stage3b);
    let needed = image.size.div_ceil(PAGE).saturating_mul(PAGE).saturating_add(loader.map_or(0, |c| c.size));
    if needed > memory {
        return fatal(
            "memory",
            "the VM's memory is too small for the image",
            &format!(
                "{} MiB (guest.memory_mib and the pod's limits), the image needs {} MiB",
                inputs.memory_mib,
                needed.div_ceil(1 << 20)
            ),
            "increase guest.memory_mib: the workload needs memory, too",
        );
    }
    match &inputs.host.max_address {
        Fact::Known(highest) if memory.saturating_sub(1) > *highest => fatal(
            "memory",
            "the VM's memory is larger than a secure guest can have here",
            &format!(
                "{} MiB (guest.memory_mib and the pod's limits), the highest guest address is {highest:#x}",
                inputs.memory_mib
            ),
            "reduce guest.memory_mib or the pod's memory limits",
        ),
        Fact::Unclear(text) => unknown("memory", text),
        Fact::Known(_) | Fact::Absent => pass(
            "memory",
            format!("{} MiB, of which the image takes {} MiB", inputs.memory_mib, needed.div_ceil(1 << 20)),
        ),
    }
}

fn cpus(inputs: &CheckInputs<'_>) -> Finding {
    let vcpus = u64::from(inputs.vcpus);
    let (limit, whose) = match &inputs.host.max_cpus {
        Fact::Unclear(text) => return unknown("cpus", text),
        Fact::Known(limit) if *limit < VCPUS => (*limit, "this machine's (query/max_cpus)"),
        Fact::Known(_) | Fact::Absent => (VCPUS, "KVM's"),
    };
    if vcpus > limit {
        return fatal(
            "cpus",
            "the VM has more CPUs than a secure guest can have",
            &format!("{vcpus} (guest.vcpus and the pod's limits), the limit is {limit}, {whose}"),
            "reduce guest.vcpus or the pod's CPU limits",
        );
    }
    pass("cpus", format!("{vcpus} virtual CPUs of at most {limit}"))
}

fn guests(host: &HostFacts) -> Finding {
    let limit = match &host.max_guests {
        Fact::Known(limit) => *limit,
        Fact::Absent => return pass("guests", "this kernel does not report how many secure guests can run"),
        Fact::Unclear(text) => return unknown("guests", text),
    };
    match host.running_guests {
        // No reason to refuse a start: any user can write such a command line.
        Some(running) if running >= limit => warning(
            "guests",
            "this machine may have no room for another secure guest",
            &format!("{running} run by their command lines, the limit is {limit} (query/max_guests)"),
            "if the start fails, stop another pod or run this one on another node",
        ),
        Some(running) => pass("guests", format!("{running} secure guests of at most {limit} run")),
        None => pass("guests", format!("at most {limit} secure guests")),
    }
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
