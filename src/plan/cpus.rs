//! A list of CPUs as the kernel and OCI specs write it (`0-3,8`).
//!
//! A VM is one process for all containers of its pod, so it runs on the CPUs that any of them may use. The
//! kubelet's static CPU manager sets CPUs for every container of a node; a container without any, such as
//! the sandbox container, is ignored.

use std::fmt;

use crate::error::{Error, Result};
use crate::limits;

/// A set of CPUs. Empty: no restriction, all may be used.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuList([u64; limits::spec::CPUS / 64]);

impl CpuList {
    /// Parses `0-3,8`; an empty text is the empty list.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let mut list = Self::default();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number =
                |digits: &str| digits.trim().parse::<usize>().ok().filter(|cpu| *cpu < limits::spec::CPUS);
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => (first..=last).for_each(|cpu| list.add(cpu)),
                _ => {
                    let (part, most): (String, _) =
                        (part.chars().take(limits::text::QUOTED_CHARS).collect(), limits::spec::CPUS - 1);
                    return Err(Error::invalid(format!(
                        "list of CPUs: {part:?}: expected numbers and ranges up to {most}, such as 0-3,8"
                    )));
                }
            }
        }
        Ok(list)
    }

    /// Every CPU that can be named.
    pub fn all() -> Self {
        Self([u64::MAX; limits::spec::CPUS / 64])
    }

    /// Numbers from [`limits::spec::CPUS`] on are ignored.
    pub fn add(&mut self, cpu: usize) {
        if let Some(word) = self.0.get_mut(cpu / 64) {
            *word |= 1 << (cpu % 64);
        }
    }

    pub fn has(&self, cpu: usize) -> bool {
        self.0.get(cpu / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }

    pub fn cpus(&self) -> impl Iterator<Item = usize> + '_ {
        (0..limits::spec::CPUS).filter(|cpu| self.has(*cpu))
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The union of both.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        other.cpus().for_each(|cpu| self.add(cpu));
        self
    }

    /// The CPUs that are not in `other`.
    #[must_use]
    pub fn without(mut self, other: &Self) -> Self {
        for (word, others) in self.0.iter_mut().zip(other.0) {
            *word &= !others;
        }
        self
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for first in self.cpus().filter(|cpu| *cpu == 0 || !self.has(cpu - 1)) {
            let last = (first..limits::spec::CPUS).take_while(|cpu| self.has(*cpu)).last().unwrap_or(first);
            write!(f, "{comma}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuList({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(text: &str) -> CpuList {
        CpuList::parse(text).expect(text)
    }

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for (text, wanted, count) in [
            ("", "", 0),
            ("\n", "", 0),
            ("0-3\n", "0-3", 4),
            ("7", "7", 1),
            ("8,0-3,10-11,2", "0-3,8,10-11", 7),
            ("0,1,2", "0-2", 3),
            ("63-64,1023", "63-64,1023", 3),
            ("0-1023", "0-1023", 1024),
        ] {
            let read = list(text);
            assert_eq!((read.to_string().as_str(), read.cpus().count()), (wanted, count), "{text:?}");
        }
    }

    #[test]
    fn invalid_lists_are_refused() {
        for text in ["x", "1-", "-1", "3-1", "1,,2", "1024", "0-99999999999999999999", "0-1:2/3", "+"] {
            let e = CpuList::parse(text).expect_err(text).to_string();
            assert!(e.contains("expected numbers and ranges up to 1023, such as 0-3,8"), "{e}");
        }
        let long = CpuList::parse(&"9".repeat(1 << 20)).expect_err("long").to_string();
        assert!(long.len() < 200, "{} bytes", long.len());
    }

    #[test]
    fn lists_are_joined_and_compared() {
        assert_eq!(list("0-1").with(&list("3,70")), list("0-1,3,70"));
        assert_eq!(list("0-3").without(&list("1,9")), list("0,2-3"));
        assert!(list("1").without(&CpuList::all()).is_empty());
        assert!(!list("1").has(limits::spec::CPUS));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(cpus in prop::collection::vec(0..limits::spec::CPUS, 0..20)) {
            let mut written = CpuList::default();
            cpus.iter().for_each(|cpu| written.add(*cpu));
            prop_assert_eq!(CpuList::parse(&written.to_string()), Ok(written));
        }

        #[test]
        fn no_text_panics(text in ".{0,200}") {
            drop(CpuList::parse(&text));
        }
    }
}
