//! The ultravisor's refusals, as QEMU and the guest's loader print them, and their meaning: pure.
//!
//! Commands: Linux, include/uapi/linux/kvm.h, `pv_cmd_id`. Codes: s390-tools,
//! rust/pvimg/boot/stage3a.c, which calls its own list not exhaustive: an unknown code is printed
//! as it is, and both codes are always printed beside the explanation.

use crate::diagnosis::Diagnosis;

/// One refused command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The name, `KVM_PV_…`; for an unknown command what the text has (letters, digits, `_`).
    pub command: String,
    pub rc: u32,
    pub rrc: u32,
    /// The kernel's answer as a positive errno; 0: unknown.
    pub errno: i32,
}

const COMMANDS: [&str; 11] = [
    "KVM_PV_ENABLE",
    "KVM_PV_DISABLE",
    "KVM_PV_SET_SEC_PARMS",
    "KVM_PV_UNPACK",
    "KVM_PV_VERIFY",
    "KVM_PV_PREP_RESET",
    "KVM_PV_UNSHARE_ALL",
    "KVM_PV_INFO",
    "KVM_PV_DUMP",
    "KVM_PV_ASYNC_CLEANUP_PREPARE",
    "KVM_PV_ASYNC_CLEANUP_PERFORM",
];

/// The name of a KVM_S390_PV_COMMAND.
pub(crate) fn command_name(number: u32) -> Option<&'static str> {
    usize::try_from(number).ok().and_then(|number| COMMANDS.get(number)).copied()
}

/// Reads a line of either form, or of our own log:
/// `KVM PV command 2 (KVM_PV_SET_SEC_PARMS) failed: header rc 108 rrc 5 IOCTL rc: -22`,
/// `Protected boot failed: 0xa02, KVM_PV_VERIFY - RC: 0x102, RRC:0x1b`.
pub(crate) fn refusal(line: &str) -> Option<Refusal> {
    let line = line.to_ascii_lowercase();
    let words: Vec<&str> =
        line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect();
    let loader = words.windows(3).position(|three| three == ["protected", "boot", "failed"]);
    let at = match words.iter().position(|word| word.starts_with("kvm_pv_")) {
        Some(at) => at,
        None => loader? + 4, // the loader's text for a command that it does not know
    };
    let rest = words.get(at + 1..)?;
    let after = |names: &[&str]| {
        let found = rest.windows(names.len()).position(|these| these == names)?;
        rest.get(found + names.len()).copied()
    };
    let hex = |word: &str| u32::from_str_radix(word.strip_prefix("0x").unwrap_or(word), 16).ok();
    let number = words.iter().position(|word| *word == "command").and_then(|at| words.get(at + 1));
    let known = number.and_then(|word| word.parse().ok()).and_then(command_name);
    Some(Refusal {
        command: known.map_or_else(|| name(words.get(at).copied().unwrap_or_default()), str::to_owned),
        rc: hex(after(&["rc"])?)?,
        rrc: hex(after(&["rrc"])?)?,
        errno: after(&["ioctl", "rc"]).and_then(|word| word.parse().ok()).unwrap_or(0),
    })
}

fn name(word: &str) -> String {
    let word: String = word.chars().take(40).collect();
    if word.starts_with("kvm_pv_") { word.to_ascii_uppercase() } else { "unknown command".to_owned() }
}

impl Refusal {
    /// Whether it ends a boot: tearing down a guest that never started causes refusals, too.
    pub(crate) fn is_of_boot(&self) -> bool {
        let down = ["KVM_PV_DISABLE", "KVM_PV_ASYNC_CLEANUP_PREPARE", "KVM_PV_ASYNC_CLEANUP_PERFORM"];
        !down.contains(&self.command.as_str())
    }

    /// What it means.
    pub(crate) fn explain(&self) -> Diagnosis {
        let meaning = self.meaning();
        // The errno adds nothing to a code of the ultravisor.
        let errno = match (self.rc, self.errno) {
            (0, 1..) => format!(", {}", std::io::Error::from_raw_os_error(self.errno)),
            _ => String::new(),
        };
        Diagnosis {
            cause: meaning.cause.to_owned(),
            evidence: format!(
                "{}: rc {:#x} rrc {:#x} ({}{errno})",
                self.command, self.rc, self.rrc, meaning.detail
            ),
            advice: meaning.advice.to_owned(),
        }
    }

    fn meaning(&self) -> Meaning {
        const ENOMEM: i32 = 12;
        let specific =
            SPECIFIC.iter().find(|(rc, rrc, _)| *rc == self.rc && rrc.is_none_or(|r| r == self.rrc));
        if let Some((_, _, meaning)) = specific {
            return *meaning;
        }
        if self.errno == ENOMEM {
            return NO_ROOM;
        }
        let general = GENERAL.iter().find(|(rc, _)| *rc == self.rc);
        let unknown = Meaning {
            cause: "the ultravisor refused the guest",
            detail: "not a known code",
            advice: "look the codes up in the machine's Secure Execution documentation; `kata-se check \
                     --image` may show more",
        };
        general.map_or(unknown, |(_, detail)| Meaning { detail, ..unknown })
    }
}

#[derive(Clone, Copy, Debug)]
struct Meaning {
    cause: &'static str,
    detail: &'static str,
    advice: &'static str,
}

const NO_ROOM: Meaning = Meaning {
    cause: "this machine has no room for another secure guest",
    detail: "no further detail",
    advice: "compare the running secure guests with /sys/firmware/uv/query/max_guests, and the free memory \
             with guest.memory_mib",
};

/// Codes below 0x100 mean the same for every command.
const GENERAL: [(u32, &str); 6] = [
    (0, "the ultravisor was not asked"),
    (1, "executed"),
    (2, "invalid command"),
    (3, "invalid state"),
    (5, "invalid length"),
    (7, "cannot resume"),
];

const REBUILD_HERE: &str = "rebuild it with this machine's host key document (`kata-se check` shows the machine's \
     keys, `kata-se image inspect` the image's)";
const REBUILD: &str = "copy the image again, or rebuild it with pvimg; `kata-se image inspect --verify` shows \
     what differs";

const fn other_machine(detail: &'static str) -> Meaning {
    Meaning { cause: "the image was built for another machine", detail, advice: REBUILD_HERE }
}

const fn modified(detail: &'static str) -> Meaning {
    Meaning { cause: "the image was modified or truncated since it was sealed", detail, advice: REBUILD }
}

const fn damaged(detail: &'static str) -> Meaning {
    Meaning { cause: "the image's header is damaged or was made by a broken tool", detail, advice: REBUILD }
}

/// rc, rrc (None: any other), meaning; the first that fits.
const SPECIFIC: [(u32, Option<u32>, Meaning); 16] = [
    (0x102, Some(0x1a), modified("list of page addresses differs")),
    (0x102, Some(0x1b), modified("content of pages differs")),
    (0x102, Some(0x1c), modified("list of tweaks differs")),
    (0x102, Some(0x1d), modified("number of pages differs")),
    (0x102, None, modified("verification failed")),
    (
        0x104,
        None,
        Meaning {
            cause: "this machine does not know the version of the image's header",
            detail: "header version",
            advice: "rebuild the image with an older header version, or update the machine's firmware",
        },
    ),
    (
        0x106,
        None,
        Meaning {
            cause: "the image asks for something this machine does not support",
            detail: "unsupported plaintext control flag, such as dumping",
            advice: "`kata-se check --image` names the flag: rebuild the image without it",
        },
    ),
    (0x108, Some(0x5), other_machine("no key slot for this machine")),
    (0x108, Some(0xb), damaged("customer key is not a valid point")),
    (0x108, Some(0x34), other_machine("backup host key does not match")),
    (0x108, None, other_machine("host key hash")),
    (
        0x109,
        None,
        Meaning {
            cause: "the sealed flags of the image ask for something this machine lacks",
            detail: "unsupported secret control flag",
            advice: "rebuild the image without these flags, or update the machine's firmware",
        },
    ),
    (0x10a, Some(0x31), damaged("length of the header")),
    (0x10a, Some(0x39), damaged("size of the encrypted area")),
    (0x10a, Some(0x40), damaged("no key slot")),
    (0x10a, None, damaged("header corrupt")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_name() {
        assert_eq!(command_name(0), Some("KVM_PV_ENABLE"));
        assert_eq!(command_name(2), Some("KVM_PV_SET_SEC_PARMS"));
        assert_eq!(command_name(4), Some("KVM_PV_VERIFY"));
        assert_eq!(command_name(8), Some("KVM_PV_DUMP"));
        assert_eq!(command_name(11), None);
    }

    #[test]
    fn the_lines_of_qemu_and_of_the_loader_are_read() {
        let refused =
            |command: &str, rc, rrc, errno| Some(Refusal { command: command.into(), rc, rrc, errno });
        for (line, wanted) in [
            (
                "qemu-system-s390x: KVM PV command 2 (KVM_PV_SET_SEC_PARMS) failed: header rc 108 rrc 5 \
                 IOCTL rc: -22",
                refused("KVM_PV_SET_SEC_PARMS", 0x108, 5, 22),
            ),
            (
                "Protected boot failed: 0xa02, KVM_PV_VERIFY - RC: 0x102, RRC:0x1b",
                refused("KVM_PV_VERIFY", 0x102, 0x1b, 0),
            ),
            ("Protected boot failed: 0xa02, UNKNOWN - RC: 0x3, RRC:0x0", refused("unknown command", 3, 0, 0)),
            ("KVM_PV_VERIFY: rc 0x102 rrc 0x1b (x)", refused("KVM_PV_VERIFY", 0x102, 0x1b, 0)),
            (
                "KVM PV command 12 (KVM_PV_NEW) failed: header rc 900 rrc 1f IOCTL rc: -5",
                refused("KVM_PV_NEW", 0x900, 0x1f, 5),
            ),
            ("KVM PV command 2 (KVM_PV_SET_SEC_PARMS) failed: header rc", None),
            ("KVM PV command 2 (KVM_PV_SET_SEC_PARMS) failed: header rc zz rrc 1", None),
            ("Protected boot failed", None),
            ("an ordinary rc 1 rrc 2", None),
        ] {
            assert_eq!(refusal(line), wanted, "{line}");
        }
    }

    /// One row per code.
    #[test]
    fn every_known_code_is_explained_with_its_numbers() {
        let mut text = String::new();
        for (command, rc, rrc, errno) in [
            (2, 0x108, 0x5, 22),
            (2, 0x108, 0xb, 22),
            (2, 0x108, 0x34, 22),
            (2, 0x108, 0x7, 22),
            (4, 0x102, 0x1a, 22),
            (4, 0x102, 0x1b, 22),
            (4, 0x102, 0x1c, 22),
            (4, 0x102, 0x1d, 22),
            (4, 0x102, 0x99, 22),
            (2, 0x104, 0x1, 22),
            (2, 0x106, 0x30, 22),
            (2, 0x109, 0x0, 22),
            (2, 0x10a, 0x31, 22),
            (2, 0x10a, 0x39, 22),
            (2, 0x10a, 0x40, 22),
            (0, 0x0, 0x0, 12),
            (0, 0x0, 0x0, 22),
            (3, 0x2, 0x0, 22),
            (3, 0x3, 0x0, 22),
            (3, 0x5, 0x0, 22),
            (3, 0x7, 0x0, 22),
            (3, 0x777, 0x42, 22),
        ] {
            let command = command_name(command).expect("known").to_owned();
            let line = Refusal { command, rc, rrc, errno }.explain().to_string();
            assert!(!line.contains('\n') && line.contains(&format!("rc {rc:#x} rrc {rrc:#x}")), "{line}");
            text.push_str(&line);
            text.push('\n');
        }
        assert_eq!(text, include_str!("testdata/refusals.txt"), "{text}");
    }
}
