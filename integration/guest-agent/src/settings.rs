//! Which of the real agents this one plays.

use std::time::Duration;

/// The version of the agent that defines this protocol; hosts may check it.
const VERSION: &str = "4.1.0";

/// How long the real agent waits for an image.
const PULL_LIMIT: Duration = Duration::from_secs(1200);

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// What calls for the version answer.
    pub(crate) version: String,
    /// Seccomp profiles are applied; without it they are refused, as policies of most guests do.
    pub(crate) seccomp: bool,
    /// The guest has a confidential data hub, which pulls images.
    pub(crate) cdh: bool,
    pub(crate) pull_limit: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { version: VERSION.to_owned(), seccomp: false, cdh: true, pull_limit: PULL_LIMIT }
    }
}

impl Settings {
    /// Agents up to 4.1 find the container's type in the storage of a guest pull; for newer ones it has no options.
    pub(crate) fn reads_pull_metadata(&self) -> bool {
        let mut numbers = self.version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) <= (4, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_numbers() {
        let reads = |version: &str| {
            Settings { version: version.to_owned(), ..Settings::default() }.reads_pull_metadata()
        };
        assert!(["3.25.0", "4.0.0", "4.1.0", "4.1.12", "4.1"].into_iter().all(reads));
        assert!(!["4.2.0", "4.2.0-alpha0", "4.10.0", "5.0.0"].into_iter().any(reads));
    }
}
