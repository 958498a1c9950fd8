//! What QEMU, KVM and the guest's loader print when the ultravisor refuses an image.
//!
//! The codes are those of the loader's own table (s390-tools, rust/pvimg/boot/stage3a.c), the line on
//! stderr is that of QEMU's target/s390x/kvm/pv.c.

/// A command of KVM for protected guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Enable,
    SetSecParms,
    Unpack,
    Verify,
}

impl Command {
    fn name(self) -> (u32, &'static str) {
        match self {
            Self::Enable => (0, "KVM_PV_ENABLE"),
            Self::SetSecParms => (2, "KVM_PV_SET_SEC_PARMS"),
            Self::Unpack => (3, "KVM_PV_UNPACK"),
            Self::Verify => (4, "KVM_PV_VERIFY"),
        }
    }
}

/// A refused command: the ultravisor's two codes and the ioctl's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub command: Command,
    pub rc: u16,
    pub rrc: u16,
    pub ioctl: i32,
}

const EINVAL: i32 = -22;
const ENOMEM: i32 = -12;

impl Refusal {
    const fn header(rc: u16, rrc: u16) -> Self {
        Self { command: Command::SetSecParms, rc, rrc, ioctl: EINVAL }
    }

    const fn verify(rrc: u16) -> Self {
        Self { command: Command::Verify, rc: 0x102, rrc, ioctl: EINVAL }
    }

    pub const ADDRESSES: Self = Self::verify(0x1a);
    pub const CONTENT: Self = Self::verify(0x1b);
    pub const TWEAKS: Self = Self::verify(0x1c);
    pub const PAGES: Self = Self::verify(0x1d);
    pub const VERSION: Self = Self::header(0x104, 1);
    pub const FLAGS: Self = Self::header(0x106, 0x30);
    pub const NO_SLOT_FOR_HOST: Self = Self::header(0x108, 5);
    pub const CUSTOMER_KEY: Self = Self::header(0x108, 0xb);
    pub const NO_SLOT_FOR_BACKUP: Self = Self::header(0x108, 0x34);
    pub const SECRET_FLAGS: Self = Self::header(0x109, 0);
    pub const HEADER_SIZE: Self = Self::header(0x10a, 0x31);
    pub const ENCRYPTED_SIZE: Self = Self::header(0x10a, 0x39);
    pub const NO_SLOTS: Self = Self::header(0x10a, 0x40);
    /// The code for a wrong tag is not documented: this is one that the tables do not contain.
    pub const TAG: Self = Self::header(0x10a, 0x41);
    /// KVM itself has no memory: the ultravisor was not called.
    pub const NO_RESOURCES: Self = Self { command: Command::Enable, rc: 0, rrc: 0, ioctl: ENOMEM };

    /// QEMU's lines on stderr, without the program's name.
    pub fn stderr(self) -> Vec<String> {
        let (number, name) = self.command.name();
        let Self { rc, rrc, ioctl, .. } = self;
        let failed = format!(
            "KVM PV command {number} ({name}) failed: header rc {rc:x} rrc {rrc:x} IOCTL rc: {ioctl}"
        );
        let mut lines = vec![format!("{QEMU}: {failed}")];
        if self.command == Command::SetSecParms {
            lines.push(format!("{QEMU}: Failed to set secure execution parameters"));
            if rc == 0x108 {
                lines.push("Please check whether the image is correctly encrypted for this host".into());
            }
        }
        lines
    }

    /// What the loader prints on the guest's console before it stops.
    pub fn console(self) -> String {
        let sentence = match (self.rc, self.rrc) {
            (0x102, 0x1a) => "Address digest list (ALD) mismatch.\n",
            (0x102, 0x1b) => "Page digest list (PLD) mismatch.\n",
            (0x102, 0x1c) => "Tweak digest list (TLD) mismatch.\n",
            (0x102, 0x1d) => "Mismatch in number of encrypted pages.\n",
            (0x104, 1) => "Mismatch in IBM Secure Execution image header version.\n",
            (0x106, 0x30) => "An unsupported plaintext control flag is set.\n",
            (0x108, 5) => {
                "The host key hash of the IBM Secure Execution image does not match the host key of the \
                 installed key bundle.\n"
            }
            (0x108, 0xb) => "The public customer ECDH key in the IBM Secure Execution image is not valid.\n",
            (0x108, 0x34) => {
                "The secondary host key hash of the IBM Secure Execution image does not match the host key \
                 of the installed key bundle.\n"
            }
            (0x108, _) => "Ensure that the image is correctly encrypted for this host.\n",
            (0x109, 0) => "An unsupported secret control flag is set.\n",
            (0x10a, 0x31) => "Mismatch in IBM Secure Execution image header size.\n",
            (0x10a, 0x39) => "The size of the encrypted area in the IBM Secure Execution image is invalid.\n",
            // The loader's text has no blank there.
            (0x10a, 0x40) => "There are no host keys inthe IBM Secure Execution image.\n",
            _ => "",
        };
        let (_, name) = self.command.name();
        // The loader knows the commands 2 to 4 only.
        let name = if self.command == Command::Enable { "UNKNOWN" } else { name };
        let (rc, rrc) = (self.rc, self.rrc);
        format!(
            "{sentence}Protected boot failed: {DIAGNOSE_REFUSED:#x}, {name} - RC: {rc:#x}, RRC:{rrc:#x}\n"
        )
    }
}

/// The prefix of QEMU's lines.
pub const QEMU: &str = "qemu-system-s390x";

/// Diagnose 308's answer for "not into protected mode" (QEMU, hw/s390x/ipl.h).
const DIAGNOSE_REFUSED: u16 = 0xa02;

/// Addresses at which the loader stops: no unpack facility, and refused.
pub const PSW_NO_FACILITY: u64 = 0x4607;
pub const PSW_REFUSED: u64 = 0x4608;

/// The loader's message without the facility.
pub const NO_FACILITY: &str = "Secure unpack facility is not available\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_qemus() {
        assert_eq!(
            Refusal::NO_SLOT_FOR_HOST.stderr(),
            [
                "qemu-system-s390x: KVM PV command 2 (KVM_PV_SET_SEC_PARMS) failed: header rc 108 rrc 5 IOCTL rc: -22",
                "qemu-system-s390x: Failed to set secure execution parameters",
                "Please check whether the image is correctly encrypted for this host",
            ]
        );
        assert_eq!(
            Refusal::CONTENT.stderr(),
            [
                "qemu-system-s390x: KVM PV command 4 (KVM_PV_VERIFY) failed: header rc 102 rrc 1b IOCTL rc: -22"
            ]
        );
        assert_eq!(
            Refusal::CONTENT.console(),
            "Page digest list (PLD) mismatch.\nProtected boot failed: 0xa02, KVM_PV_VERIFY - RC: 0x102, RRC:0x1b\n"
        );
    }
}
