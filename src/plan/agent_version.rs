//! What the guest's agent takes, by its version: where its protocol has changed, the shim asks and does not guess.

use crate::error::{Error, Result};

/// The version that an agent reports, `MAJOR.MINOR.PATCH` and perhaps more behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentVersion {
    text: String,
    /// Major and minor number; None: not a version.
    number: Option<(u16, u16)>,
}

impl AgentVersion {
    /// `text` is the guest's, one bounded line.
    pub(crate) fn new(text: &str) -> Self {
        let mut parts = text.split('.').map(|part| part.parse().ok());
        let number = parts.next().flatten().zip(parts.next().flatten());
        Self { text: text.to_owned(), number }
    }

    /// Whether the image's metadata go with the storage of an image that the guest pulls. Agents up to 4.1 refuse a
    /// storage without them; for later ones generated policies refuse one that has them (Kata #13692).
    pub(crate) fn wants_pull_metadata(&self) -> Result<bool> {
        Ok(self.number()? <= (4, 1))
    }

    /// Whether it formats a disk that it is given, and encrypts it: before 3.28 an agent may overlook the options that
    /// say so, and mount something else.
    pub(crate) fn check_disks(&self) -> Result<()> {
        if self.number()? >= (3, 28) {
            return Ok(());
        }
        Err(Error::precondition(format!(
            "emptyDirs on disks need a guest with an agent of Kata Containers 3.28 or newer, this one has {}: use a \
             newer image, or set volumes.empty_dir = \"guest-local\"",
            self.text
        )))
    }

    fn number(&self) -> Result<(u16, u16)> {
        self.number.ok_or_else(|| {
            Error::precondition(format!(
                "the guest's agent reports the version {:?}, which is not MAJOR.MINOR.PATCH, so that it is not known \
                 what it takes: use an image with an agent of Kata Containers",
                self.text
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_go_to_agents_from_3_28_on() {
        for (text, wanted) in
            [("3.27.9", false), ("2.99.0", false), ("3.28.0", true), ("3.100.0", true), ("4.1.0", true)]
        {
            let checked = AgentVersion::new(text).check_disks();
            assert_eq!(checked.is_ok(), wanted, "{text}: {checked:?}");
        }
        let e = AgentVersion::new("x").check_disks().expect_err("unknown").to_string();
        assert!(e.contains("which is not"), "{e}");
    }

    #[test]
    fn metadata_go_to_agents_up_to_4_1_and_an_unknown_version_is_named() {
        for (text, wanted) in [
            ("3.25.0", true),
            ("4.0.0", true),
            ("4.1.0", true),
            ("4.1.12-rc1", true),
            ("4.2.0-alpha0", false),
            ("4.10.0", false),
            ("10.0.0", false),
        ] {
            assert_eq!(AgentVersion::new(text).wants_pull_metadata(), Ok(wanted), "{text}");
        }
        for text in ["", "4", "x.y", "-1.2", "4.x", "99999.1.0", "v4.1.0"] {
            let e = AgentVersion::new(text).wants_pull_metadata().expect_err(text).to_string();
            assert!(e.contains(&format!("version {text:?}, which is not")), "{e}");
        }
    }
}
