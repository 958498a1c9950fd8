//! The shim's command line: one action, then exit.
//!
//! containerd parses what is printed: on success the response and nothing else, on failure one line on stderr.

use std::io::Write;
use std::process::ExitCode;

use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::error::{Context, Error, Result};
use crate::host::confine::confine_the_shim;
use crate::shim::flags::Flags;
use crate::shim::{delete, serve, start};

/// The program.
pub fn main() -> ExitCode {
    let result = Flags::parse(std::env::args().skip(1)).and_then(|flags| run(&flags));
    match result {
        Ok(response) => {
            let mut out = std::io::stdout();
            match out.write_all(&response).and_then(|()| out.flush()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Err(e) => {
            writeln!(std::io::stderr(), "kata-se: {e}").ok();
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<Vec<u8>> {
    if flags.version {
        return Ok(format!("containerd-shim-kata-se-v2 {}\n", env!("CARGO_PKG_VERSION")).into_bytes());
    }
    if flags.info {
        return info();
    }
    confine_the_shim()?;
    match flags.action.as_str() {
        "start" => start::start(flags),
        "delete" => delete::delete(flags),
        serve::ACTION => serve::serve(flags).map(|()| Vec::new()),
        "" => Err(Error::invalid("no action: containerd calls this program with \"start\" or \"delete\"")),
        other => Err(Error::invalid(format!("unknown action {other:?}: known are \"start\" and \"delete\""))),
    }
}

fn info() -> Result<Vec<u8>> {
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() };
    let info = RuntimeInfo {
        name: "io.containerd.kata-se.v2".to_owned(),
        version: MessageField::some(version),
        ..Default::default()
    };
    info.write_to_bytes().context("encode the response")
}
