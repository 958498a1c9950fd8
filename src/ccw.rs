//! Channel-subsystem addresses: one number, written `fe.0.0007` for QEMU and `0.0.0007` in the guest.
//!
//! Every device gets its number from the pod's only allocator; no number is used twice in a VM's life,
//! so the agent cannot mistake an old "add" event for that of a new device.

use std::fmt;

use crate::error::{Error, Result};

/// A device number in subchannel set 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevNo(u16);

impl DevNo {
    /// For tests: the product gets its numbers from [`DevNos`].
    #[cfg(any(test, feature = "test-api"))]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// For QEMU's `devno=`.
    pub fn host(self) -> String {
        format!("fe.0.{:04x}", self.0)
    }

    /// The name on the guest's bus, which the agent uses.
    pub fn guest(self) -> String {
        format!("0.0.{:04x}", self.0)
    }
}

impl fmt::Display for DevNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host())
    }
}

/// Allocates device numbers from 1 on, each once.
#[derive(Debug)]
pub(crate) struct DevNos {
    next: u16,
}

impl Default for DevNos {
    fn default() -> Self {
        Self { next: 1 }
    }
}

impl DevNos {
    /// The next unused number; an error after 65,534 of them.
    pub(crate) fn take(&mut self) -> Result<DevNo> {
        let number = self.next;
        self.next = number.checked_add(1).ok_or_else(|| {
            Error::new(
                crate::error::Code::ResourceExhausted,
                "all 65534 CCW device numbers of this VM have been used: restart the pod",
            )
        })?;
        Ok(DevNo(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations_name_the_same_device() {
        let d = DevNo::new(0x1a7);
        assert_eq!((d.host().as_str(), d.guest().as_str()), ("fe.0.01a7", "0.0.01a7"));
    }

    #[test]
    fn numbers_are_never_reused_and_end_with_an_error() {
        let mut all = DevNos::default();
        assert_eq!(all.take().map(|d| d.host()), Ok("fe.0.0001".to_owned()));
        all.next = u16::MAX;
        assert!(all.take().is_err());
    }
}
