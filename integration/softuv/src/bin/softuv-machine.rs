//! Creates a machine with Secure Execution as a folder. See README.md.

use std::path::PathBuf;
use std::process::ExitCode;

use softuv::arguments::Arguments;
use softuv::machine::{Machine, Options};
use softuv::{Result, report};

const USAGE: &str = "softuv-machine --out DIR [--seed TEXT] [--without-dump]";

fn main() -> ExitCode {
    report("softuv-machine", run())
}

fn run() -> Result<()> {
    let mut words = Arguments::of_process()?;
    let mut options = Options::default();
    let mut out = PathBuf::new();
    while let Some(name) = words.next_name() {
        match name.as_str() {
            "--out" => out = words.path(&name)?,
            "--seed" => options.seed = Some(words.value(&name)?),
            "--without-dump" => options.without_dump = true,
            other => return Err(format!("{other}: unknown option; {USAGE}")),
        }
    }
    if out.as_os_str().is_empty() {
        return Err(format!("--out is missing; {USAGE}"));
    }
    Machine::at(out).make(&options)
}
