//! A `VmPlan` as QEMU's argument vector: pure.
//!
//! Nothing is left to QEMU's defaults; every virtio device has an explicit device number. A
//! protected guest gets its image and nothing that could change it: no command line, no initrd.
//! The pv object alone protects nothing (QEMU boots a plain kernel with it too): whoever makes the
//! plan has checked that the image is a sealed one.

use std::ffi::OsString;

use crate::ccw::DevNo;
use crate::config::{Accelerator, Boot};
use crate::error::{Error, Result};
use crate::limits;
use crate::plan::vm::{DiskPlan, NicPlan, VmPlan, VsockPlan};
use crate::qemu::opt::{Opt, plain};

/// The SCSI controller's name; its bus is called after it.
pub(super) const SCSI_CONTROLLER: &str = "scsi0";

/// QEMU's whole argument vector, without the program's name.
pub fn args(plan: &VmPlan) -> Result<Vec<OsString>> {
    let mut all = Args(Vec::new());
    all.option("-name", Opt::new("").set("guest", format!("sandbox-{}", plan.sandbox)));
    all.flags(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"]);
    all.machine(plan);
    all.boot(&plan.boot)?;
    all.option("-chardev", Opt::new("socket").set("id", "qmp").set("fd", plan.qmp.0.to_string()));
    all.option("-mon", Opt::new("").set("chardev", "qmp").set("mode", "control"));
    all.option("-chardev", Opt::new("socket").set("id", "console").set("fd", plan.console.0.to_string()));
    all.option("-device", Opt::new("sclpconsole").set("chardev", "console"));
    all.vsock(plan)?;
    for (index, nic) in plan.nics.iter().enumerate() {
        all.nic(index, nic, plan.confidential());
    }
    all.scsi(plan.scsi, plan.confidential());
    for (index, disk) in plan.disks.iter().enumerate() {
        all.disk(index, disk, plan.confidential());
    }
    // With a refused or crashed guest, QEMU ends with a failure instead of exit code 0.
    all.flags(&["-action", "panic=exit-failure"]);
    // QEMU needs nothing of what is denied: descriptors are passed in, the uid is not changed.
    all.flags(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    Ok(all.0)
}

impl VmPlan {
    /// Whether the guest runs under Secure Execution.
    pub(super) fn confidential(&self) -> bool {
        matches!(self.boot, Boot::Sealed { .. })
    }
}

struct Args(Vec<OsString>);

impl Args {
    fn flags(&mut self, args: &[&str]) {
        self.0.extend(args.iter().map(Into::into));
    }

    fn option(&mut self, name: &str, opt: Opt) {
        self.0.push(name.into());
        self.0.push(opt.into_arg());
    }

    fn machine(&mut self, plan: &VmPlan) {
        let (accel, cpu) = match plan.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Tcg => ("tcg", "max"),
        };
        let mut machine = Opt::new("s390-ccw-virtio").set("accel", accel);
        if plan.confidential() {
            machine = machine.set("confidential-guest-support", "pv0");
        }
        // vhost-user programs map the guest's memory; everything else gets anonymous memory,
        // the safe backend for a protected guest.
        let size = format!("{}M", plan.memory_mib);
        if matches!(plan.vsock, VsockPlan::VhostUser { .. }) {
            machine = machine.set("memory-backend", "memory");
            let memory =
                Opt::new("memory-backend-memfd").set("id", "memory").set("size", &size).set("share", "on");
            self.option("-object", memory);
        }
        self.option("-machine", machine);
        if plan.confidential() {
            self.option("-object", Opt::new("s390-pv-guest").set("id", "pv0"));
        }
        self.flags(&["-cpu", cpu, "-m", &size, "-smp", &plan.vcpus.to_string()]);
    }

    fn boot(&mut self, boot: &Boot) -> Result<()> {
        match boot {
            Boot::Sealed { image } => self.0.extend(["-kernel".into(), plain("guest.image", image)?]),
            Boot::Plain { kernel, initrd, parameters } => self.0.extend([
                "-kernel".into(),
                plain("guest.kernel", kernel)?,
                "-initrd".into(),
                plain("guest.initrd", initrd)?,
                "-append".into(),
                plain("guest.kernel_parameters", parameters)?,
            ]),
        }
        Ok(())
    }

    fn vsock(&mut self, plan: &VmPlan) -> Result<()> {
        match &plan.vsock {
            VsockPlan::Vhost { fd, cid, devno } => {
                let device = Opt::new("vhost-vsock-ccw")
                    .set("id", "vsock")
                    .set("vhostfd", fd.0.to_string())
                    .set("guest-cid", cid.to_string())
                    .set("devno", devno.host());
                self.option("-device", bounced(device, plan.confidential()));
            }
            VsockPlan::VhostUser { socket } => {
                if socket.as_os_str().len() > limits::qemu::SOCKET_PATH_BYTES {
                    return Err(Error::invalid(format!(
                        "vsock socket {}: longer than {} bytes",
                        socket.display(),
                        limits::qemu::SOCKET_PATH_BYTES
                    )));
                }
                self.option("-chardev", Opt::new("socket").set("id", "vsock").set("path", socket));
                // There is no CCW variant of this device.
                self.option("-device", Opt::new("vhost-user-vsock-pci").set("chardev", "vsock"));
            }
        }
        Ok(())
    }

    fn nic(&mut self, index: usize, nic: &NicPlan, confidential: bool) {
        let id = format!("nic{index}");
        self.option("-netdev", Opt::new("tap").set("id", &id).set("fd", nic.tap.0.to_string()));
        let device = Opt::new("virtio-net-ccw")
            .set("netdev", &id)
            .set("mac", nic.mac.to_string())
            .set("devno", nic.devno.host());
        self.option("-device", bounced(device, confidential));
    }

    fn scsi(&mut self, devno: DevNo, confidential: bool) {
        let device = Opt::new("virtio-scsi-ccw").set("id", SCSI_CONTROLLER).set("devno", devno.host());
        self.option("-device", bounced(device, confidential));
    }

    fn disk(&mut self, index: usize, disk: &DiskPlan, confidential: bool) {
        let set = index + 1; // hot-plugged disks use sets from 1000 on
        let number = disk.file.0.to_string();
        self.option("-add-fd", Opt::new("").set("fd", number).set("set", set.to_string()));
        let id = format!("cold{index}");
        let (read_only, locking) = if disk.read_only { ("on", "off") } else { ("off", "on") };
        let node = Opt::new("")
            .set("driver", "raw")
            .set("node-name", &id)
            .set("read-only", read_only)
            .set("file.driver", "file")
            .set("file.filename", format!("/dev/fdset/{set}"))
            // What is read only may be read by other guests, too.
            .set("file.locking", locking);
        self.option("-blockdev", node);
        let device = Opt::new("virtio-blk-ccw")
            .set("id", format!("disk-{id}"))
            .set("drive", &id)
            .set("serial", &disk.serial)
            .set("devno", disk.devno.host());
        self.option("-device", bounced(device, confidential));
    }
}

/// A protected guest's devices use bounce buffers; older versions of QEMU do not set this by themselves.
fn bounced(device: Opt, confidential: bool) -> Opt {
    if confidential { device.set("iommu_platform", "on") } else { device }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SandboxId;
    use crate::plan::vm::{ChildFd, MacAddr};

    fn emulated() -> VmPlan {
        VmPlan {
            sandbox: SandboxId::parse("s1").expect("id"),
            accelerator: Accelerator::Tcg,
            boot: Boot::Plain {
                kernel: "/g/kernel".into(),
                initrd: "/g/initrd".into(),
                parameters: "quiet a=b,c".into(),
            },
            memory_mib: 512,
            vcpus: 1,
            qmp: ChildFd(3),
            console: ChildFd(4),
            vsock: VsockPlan::VhostUser { socket: "/run/kata-se/k/vs".into() },
            nics: vec![],
            scsi: DevNo::new(0x100),
            disks: vec![],
        }
    }

    fn production() -> VmPlan {
        VmPlan {
            accelerator: Accelerator::Kvm,
            boot: Boot::Sealed { image: "/usr/share/kata-se/kata-se.img".into() },
            memory_mib: 2048,
            vcpus: 2,
            vsock: VsockPlan::Vhost { fd: ChildFd(5), cid: 77, devno: DevNo::new(1) },
            ..emulated()
        }
    }

    /// One argument per line; a changed command line is a changed line in review.
    fn golden(plan: &VmPlan, wanted: &str) {
        let args = args(plan).expect("args");
        let text: Vec<_> = args.iter().map(|a| a.to_str().expect("utf-8")).collect();
        assert_eq!(text.join("\n"), wanted.trim_end());
    }

    #[test]
    fn the_emulated_vm() {
        golden(&emulated(), include_str!("testdata/emulated.args"));
    }

    #[test]
    fn the_secure_execution_vm() {
        golden(&production(), include_str!("testdata/secure-execution.args"));
    }

    #[test]
    fn network_interfaces_have_a_tap_an_address_and_a_device_number_each() {
        let nic = |n: u8| NicPlan {
            tap: ChildFd(5 + i32::from(n)),
            mac: MacAddr([2, 0, 0, 0, 0, n]),
            devno: DevNo::new(1 + u16::from(n)),
        };
        let plan = VmPlan { nics: vec![nic(1), nic(2)], ..production() };
        golden(&plan, include_str!("testdata/nics.args"));
    }

    #[test]
    fn cold_plugged_disks_are_descriptors() {
        let disk = |n: u8, read_only| DiskPlan {
            file: ChildFd(5 + i32::from(n)),
            read_only,
            devno: DevNo::new(4 + u16::from(n)),
            serial: format!("disk,{n}"),
        };
        let plan = VmPlan { disks: vec![disk(1, true), disk(2, false)], ..production() };
        golden(&plan, include_str!("testdata/disks.args"));
    }

    #[test]
    fn a_protected_guest_gets_neither_command_line_nor_initrd() {
        let args = args(&production()).expect("args");
        assert!(!args.iter().any(|a| a == "-append" || a == "-initrd"));
    }

    #[test]
    fn a_socket_path_that_is_too_long_for_the_kernel_is_refused() {
        let socket = format!("/{}", "x".repeat(107)).into();
        let plan = VmPlan { vsock: VsockPlan::VhostUser { socket }, ..emulated() };
        assert!(args(&plan).expect_err("long").to_string().ends_with("longer than 107 bytes"));
    }
}
