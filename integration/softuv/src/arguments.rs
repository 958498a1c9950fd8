//! The command line of a program here: `--name value` and `--name`, nothing else.

use std::path::PathBuf;

use crate::Result;

/// The rest of a command line.
#[derive(Debug)]
pub struct Arguments(std::vec::IntoIter<String>);

impl Arguments {
    /// This process' own.
    pub fn of_process() -> Result<Self> {
        let all: std::result::Result<Vec<_>, _> =
            std::env::args_os().skip(1).map(std::ffi::OsString::into_string).collect();
        Ok(Self(all.map_err(|word| format!("{word:?}: not UTF-8"))?.into_iter()))
    }

    pub fn next_name(&mut self) -> Option<String> {
        self.0.next()
    }

    /// The value behind `name`.
    pub fn value(&mut self, name: &str) -> Result<String> {
        self.0.next().ok_or_else(|| format!("{name}: its value is missing"))
    }

    pub fn path(&mut self, name: &str) -> Result<PathBuf> {
        self.value(name).map(PathBuf::from)
    }

    /// A bit's number, 0 to 63.
    pub fn bit(&mut self, name: &str) -> Result<u32> {
        let text = self.value(name)?;
        let bit = text.parse().ok().filter(|bit| *bit < 64);
        bit.ok_or_else(|| format!("{name} {text}: must be a bit's number, 0 to 63"))
    }
}
