//! Runs the guest in emulation: execs the real QEMU with every option that was
//! given, except those that make a guest a protected one.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::memfd::{MFdFlags, memfd_create};
use softuv::Result;
use softuv::refusal::QEMU;
use softuv::unpack::Guest;

use crate::options::{Options, head, of};
use crate::{Orders, fail, relay};

/// What replaces `-kernel` and related options.
enum Kernel {
    /// The file, as it was given.
    Given,
    /// Kernel, initrd and command line.
    Unpacked { kernel: String, initrd: Option<String>, command_line: String },
}

/// A file that is no sealed image: booted as it is.
pub(crate) fn plain(orders: &Orders, options: &Options) -> ! {
    run(orders, &words(options, &Kernel::Given))
}

/// The unpacked components, in unnamed files that QEMU inherits, so that nothing is left behind.
pub(crate) fn sealed(orders: &Orders, options: &Options, guest: &Guest) -> ! {
    let mut files = Vec::new();
    let kernel = unpacked(guest, &mut files).unwrap_or_else(|e| fail(70, &e));
    if let Some(qmp) = options.qmp.filter(|_| !orders.unprotected) {
        relay::start(qmp).unwrap_or_else(|e| fail(70, &e));
    }
    run(orders, &words(options, &kernel))
}

fn unpacked(guest: &Guest, files: &mut Vec<OwnedFd>) -> Result<Kernel> {
    let mut pass = |bytes: &[u8]| -> Result<String> {
        let file = nameless(bytes).map_err(|e| format!("memfd: {e}"))?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        files.push(file);
        Ok(path)
    };
    let command_line =
        String::from_utf8(guest.command_line.clone()).map_err(|e| format!("command line: {e}"))?;
    let initrd = guest.ramdisk.as_deref().map(&mut pass).transpose()?;
    Ok(Kernel::Unpacked { kernel: pass(&guest.kernel)?, initrd, command_line })
}

fn run(orders: &Orders, words: &[String]) -> ! {
    let failed = Command::new(&orders.qemu).arg0(QEMU).args(words).exec();
    fail(70, &format!("{}: {failed}", orders.qemu.display()))
}

/// Stays open across exec.
fn nameless(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"sealed", MFdFlags::empty())?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// The real QEMU's command line.
fn words(options: &Options, kernel: &Kernel) -> Vec<String> {
    let mut words = Vec::new();
    for (name, value) in &options.all {
        let value = value.as_deref().unwrap_or_default();
        let instead: Vec<String> = match (name.as_str(), kernel) {
            ("-machine", _) => vec![name.clone(), machine(value)],
            ("-object", _) if head(value) == "s390-pv-guest" => continue,
            ("-cpu", _) if head(value) == "host" => vec![name.clone(), "max".into()],
            // Without effect for a sealed image.
            ("-initrd" | "-append", Kernel::Unpacked { .. }) => continue,
            ("-kernel", Kernel::Unpacked { kernel, initrd, command_line }) => {
                let mut all = vec![name.clone(), kernel.clone(), "-append".into(), command_line.clone()];
                if let Some(initrd) = initrd {
                    all.extend(["-initrd".into(), initrd.clone()]);
                }
                all
            }
            _ if value.is_empty() => vec![name.clone()],
            _ => vec![name.clone(), value.to_owned()],
        };
        words.extend(instead);
    }
    words
}

fn machine(value: &str) -> String {
    let mut machine = format!("{},accel=tcg", head(value));
    if let Some(backend) = of(value, "memory-backend") {
        machine.push_str(&format!(",memory-backend={backend}"));
    }
    machine
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_protects_is_translated() {
        let given = include_str!("../../../../../src/qemu/testdata/secure-execution.args");
        // A command line and an initrd beside a sealed image have no effect.
        let given = given.lines().chain(["-append", "inert", "-initrd", "inert"]);
        let given: Vec<_> = given.map(str::to_owned).collect();
        let options = Options::parse(&given).expect("options");
        let kernel = Kernel::Unpacked {
            kernel: "/proc/self/fd/7".into(),
            initrd: Some("/proc/self/fd/8".into()),
            command_line: "a b=c".into(),
        };
        let words = words(&options, &kernel);
        let only = |these: &[String], those: &[String]| -> Vec<String> {
            these.iter().filter(|word| !those.contains(word)).cloned().collect()
        };
        assert_eq!(
            only(&given, &words),
            [
                "s390-ccw-virtio,accel=kvm,confidential-guest-support=pv0",
                "-object",
                "s390-pv-guest,id=pv0",
                "host",
                "/usr/share/kata-se/kata-se.img",
                "inert",
                "inert",
            ]
        );
        assert_eq!(
            only(&words, &given),
            ["s390-ccw-virtio,accel=tcg", "max", "/proc/self/fd/7", "a b=c", "/proc/self/fd/8"]
        );
    }
}
