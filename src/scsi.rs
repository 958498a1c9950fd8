//! Addresses of disks on the VM's only SCSI controller: target and unit, written `0:3` for the agent, which scans
//! exactly that address of host 0 and channel 0.
//!
//! As with device numbers (`ccw`), none is used twice in a VM's life: QEMU forgets an unplugged disk at once, the
//! guest some time later, and without a word to its host.

use std::fmt;

use crate::error::{Code, Error, Result};

/// A target of the controller and a unit of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ScsiAddress {
    pub(crate) id: u8,
    pub(crate) lun: u8,
}

impl fmt::Display for ScsiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.id, self.lun)
    }
}

/// Allocates addresses, each once: a target after the other, 256 units on each.
#[derive(Debug, Default)]
pub(crate) struct ScsiAddresses {
    taken: u32,
}

impl ScsiAddresses {
    /// The next unused address; an error after 65,536 of them.
    pub(crate) fn take(&mut self) -> Result<ScsiAddress> {
        let [0, 0, id, lun] = self.taken.to_be_bytes() else {
            let text = "all 65536 SCSI addresses of this VM have been used: restart the pod";
            return Err(Error::new(Code::ResourceExhausted, text));
        };
        self.taken += 1;
        Ok(ScsiAddress { id, lun })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_never_reused_and_end_with_an_error() {
        let mut all = ScsiAddresses::default();
        let mut last = None;
        for _ in 0..=u16::MAX {
            let next = Some(all.take().expect("free"));
            assert!(next > last, "{next:?} after {last:?}");
            last = next;
        }
        assert_eq!(last.map(|address| address.to_string()).as_deref(), Some("255:255"));
        assert!(all.take().is_err() && all.take().is_err());
    }
}
