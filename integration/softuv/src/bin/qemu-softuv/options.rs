//! The command line, checked as a QEMU that can run protected guests would; the wording is QEMU 10's.
//!
//! Other mistakes are found by the real QEMU, which runs the guest.

use std::path::PathBuf;

use softuv::Result;
use softuv::machine::Machine;

use crate::{fail, write_stderr};

const MACHINE: &str = "s390-ccw-virtio";
const MACHINE_KEYS: [&str; 4] = ["accel", "confidential-guest-support", "kernel_irqchip", "memory-backend"];
const PV: &str = "s390-pv-guest";
const OBJECTS: [&str; 3] = [PV, "memory-backend-memfd", "memory-backend-ram"];
const DEVICES: [&str; 11] = [
    "sclpconsole",
    "scsi-hd",
    "vfio-ap",
    "vhost-user-vsock-pci",
    "vhost-vsock-ccw",
    "virtconsole",
    "virtio-blk-ccw",
    "virtio-net-ccw",
    "virtio-rng-ccw",
    "virtio-scsi-ccw",
    "virtio-serial-ccw",
];

/// Known to QEMU, and not possible for a protected guest.
const FORBIDDEN: [&str; 8] = [
    "memory-backend-file",
    "vfio-ccw",
    "vfio-pci",
    "vfio-pci-nohotplug",
    "virtio-balloon-ccw",
    "virtio-balloon-pci",
    "virtio-mem-ccw",
    "virtio-mem-pci",
];

/// QEMU's own limit for protected guests (target/s390x/kvm/pv.c).
const MOST_CPUS: u64 = 247;

/// The arguments, and the options that matter here.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Each option with its value.
    pub(crate) all: Vec<(String, Option<String>)>,
    pub(crate) kernel: PathBuf,
    /// The id of the object that makes the guest a protected one.
    pub(crate) confidential: Option<String>,
    pub(crate) qmp: Option<i32>,
    pub(crate) console: Option<i32>,
    /// Bytes.
    pub(crate) memory: u64,
    /// Whether QEMU exits with an error when the guest panics.
    pub(crate) panic_fails: bool,
    kvm: bool,
    cpus: u64,
    objects: Vec<String>,
}

impl Options {
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let all = qemu_double::command_line::split(words)?;
        let mut options = Self { memory: 128 << 20, cpus: 1, ..Self::default() };
        for (name, value) in &all {
            if let Some(value) = value {
                options.take(name, value)?;
            }
        }
        options.all = all;
        options.channels();
        Ok(options)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "-machine" => self.machine(value)?,
            "-object" => self.object(value)?,
            "-device" => device(value)?,
            "-kernel" => self.kernel = value.into(),
            "-m" => {
                let wrong =
                    || format!("-m {value}: Parameter 'size' expects a non-negative number below 2^64");
                self.memory = memory(value).ok_or_else(wrong)?;
            }
            "-smp" => {
                let wrong = || format!("-smp {value}: Parameter 'cpus' expects a number");
                self.cpus = head(value).parse().ok().ok_or_else(wrong)?;
            }
            "-action" => self.panic_fails |= of(value, "panic").is_some_and(|panic| panic == "exit-failure"),
            _ => {}
        }
        Ok(())
    }

    fn machine(&mut self, value: &str) -> Result<()> {
        if head(value) != MACHINE {
            let text = "Use -machine help to list supported machines";
            return Err(format!("unsupported machine type: \"{}\"\n{text}", head(value)));
        }
        for pair in value.split(',').skip(1) {
            let key = pair.split('=').next().unwrap_or_default();
            if !MACHINE_KEYS.contains(&key) {
                return Err(format!("Property '{MACHINE}-10.0-machine.{key}' not found"));
            }
        }
        self.kvm |= of(value, "accel").is_some_and(|accel| accel == "kvm");
        self.confidential =
            of(value, "confidential-guest-support").map(str::to_owned).or(self.confidential.take());
        Ok(())
    }

    fn object(&mut self, value: &str) -> Result<()> {
        let kind = head(value);
        if FORBIDDEN.contains(&kind) {
            return Err(format!("-object {value}: {kind} is not possible for a protected guest"));
        }
        if !OBJECTS.contains(&kind) {
            return Err(format!("-object {value}: Parameter 'qom-type' does not accept value '{kind}'"));
        }
        if kind == PV {
            self.objects.extend(of(value, "id").map(str::to_owned));
        }
        Ok(())
    }

    /// The descriptors behind the monitor and the console.
    fn channels(&mut self) {
        let values = |wanted: &'static str| {
            self.all.iter().filter(move |(name, _)| name == wanted).filter_map(|(_, value)| value.as_deref())
        };
        let number = |id: Option<&str>| {
            let chardev = values("-chardev").find(|value| id.is_some() && of(value, "id") == id)?;
            of(chardev, "fd")?.parse().ok()
        };
        let qmp = number(values("-mon").find_map(|value| of(value, "chardev")));
        let consoles =
            values("-device").filter(|value| ["sclpconsole", "virtconsole"].contains(&head(value)));
        let console = number(consoles.filter_map(|value| of(value, "chardev")).next());
        (self.qmp, self.console) = (qmp, console);
    }

    /// What QEMU checks when it creates the machine.
    pub(crate) fn check(&self, machine: &Machine) -> Result<()> {
        if let Some(id) = &self.confidential {
            if !self.objects.contains(id) {
                return Err(format!("Device '{id}' not found"));
            }
            if !self.kvm {
                return Err("Protected Virtualization requires KVM".into());
            }
            if !machine.is_host() {
                return Err("CPU model does not support Protected Virtualization".into());
            }
            let most = machine.max_cpus()?.min(MOST_CPUS);
            if self.cpus > most {
                return Err(format!("Protected VMs support a maximum of {most} CPUs"));
            }
        }
        if self.kernel.as_os_str().is_empty() {
            return Err("this emulation needs -kernel".into());
        }
        Ok(())
    }

    /// QEMU's error when it cannot load the kernel.
    pub(crate) fn no_kernel(&self) -> ! {
        if let Err(e) = std::fs::File::open(&self.kernel) {
            let text = e.to_string();
            let text = text.split(" (os error").next().unwrap_or_default();
            write_stderr(&format!("{}: {text}\n", self.kernel.display()));
        }
        fail(1, &format!("could not load kernel '{}'", self.kernel.display()))
    }
}

fn device(value: &str) -> Result<()> {
    let model = head(value);
    match () {
        () if FORBIDDEN.contains(&model) => {
            Err(format!("-device {value}: {model} is not possible for a protected guest"))
        }
        () if DEVICES.contains(&model) => Ok(()),
        () => Err(format!("-device {value}: '{model}' is not a valid device model name")),
    }
}

/// The first, nameless part.
pub(crate) fn head(value: &str) -> &str {
    value.split(',').next().unwrap_or_default()
}

/// The value of a key. No value that matters here contains a comma.
pub(crate) fn of<'a>(value: &'a str, key: &str) -> Option<&'a str> {
    value.split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}

/// Of `-m`: MiB without a suffix.
fn memory(value: &str) -> Option<u64> {
    let text = head(value);
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'K') => (&text[..at], 10),
        (at, 'M') => (&text[..at], 20),
        (at, 'G') => (&text[..at], 30),
        _ => (text, 20),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCTION: &str = include_str!("../../../../../src/qemu/testdata/secure-execution.args");

    fn parse(words: &str) -> Result<Options> {
        Options::parse(&words.lines().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_production_command_line_is_taken() {
        for words in [
            PRODUCTION,
            include_str!("../../../../../src/qemu/testdata/nics.args"),
            include_str!("../../../../../src/qemu/testdata/disks.args"),
        ] {
            let options = parse(words).expect("options");
            assert_eq!(options.kernel, PathBuf::from("/usr/share/kata-se/kata-se.img"));
            assert_eq!((options.qmp, options.console), (Some(3), Some(4)));
            assert_eq!((options.memory, options.cpus, options.panic_fails), (2 << 30, 2, true));
            assert_eq!(options.confidential.as_deref(), Some("pv0"));
        }
    }

    #[test]
    fn what_qemu_would_not_take_has_its_words() {
        for (from, to, wanted) in [
            ("-nodefaults", "-foo", "-foo: invalid option"),
            ("accel=kvm", "accel=kvm,foo=1", "Property 's390-ccw-virtio-10.0-machine.foo' not found"),
            (
                "s390-pv-guest,",
                "nope,",
                "-object nope,id=pv0: Parameter 'qom-type' does not accept value 'nope'",
            ),
            ("sclpconsole", "nope", "-device nope,chardev=console: 'nope' is not a valid device model name"),
            (
                "sclpconsole",
                "vfio-pci",
                "-device vfio-pci,chardev=console: vfio-pci is not possible for a protected guest",
            ),
            ("2048M", "1x", "-m 1x: Parameter 'size' expects a non-negative number below 2^64"),
        ] {
            assert_eq!(parse(&PRODUCTION.replace(from, to)).expect_err(wanted), wanted);
        }
    }

    #[test]
    fn what_the_machine_can_not_do_is_refused_at_the_start() {
        let dir = tempfile::tempdir().expect("dir");
        let machine = Machine::at(dir.path());
        machine.make(&softuv::machine::Options::default()).expect("machine");
        let check =
            |from: &str, to: &str| parse(&PRODUCTION.replace(from, to)).expect("options").check(&machine);
        assert_eq!(check("", ""), Ok(()));
        assert_eq!(check("id=pv0", "id=pv1"), Err("Device 'pv0' not found".into()));
        assert_eq!(check("accel=kvm", "accel=tcg"), Err("Protected Virtualization requires KVM".into()));
        assert_eq!(check("\n2\n", "\n248\n"), Err("Protected VMs support a maximum of 247 CPUs".into()));
        std::fs::write(machine.root().join("sys/firmware/uv/prot_virt_host"), "0\n").expect("write");
        assert_eq!(check("", ""), Err("CPU model does not support Protected Virtualization".into()));
    }
}
