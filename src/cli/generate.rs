//! Completion scripts and manual pages, made from the command line's own definition.

use std::path::Path;

use clap::Command;
use clap_complete::{Shell, generate};
use serde_json::json;

use crate::cli::output::Report;
use crate::error::{Context, Result};

pub(crate) fn completion(shell: Shell, mut command: Command) -> Report {
    let mut script = Vec::new();
    generate(shell, &mut command, "kata-se", &mut script);
    let text = String::from_utf8_lossy(&script).into_owned();
    Report { json: json!({"shell": shell.to_string(), "script": text}), text, yes: true }
}

/// One page per command: kata-se.1, kata-se-check.1 …
pub(crate) fn manual(dir: &Path, command: Command) -> Result<Report> {
    let context = || format!("write manual pages into {}", dir.display());
    std::fs::create_dir_all(dir).with_context(context)?;
    clap_mangen::generate_to(command.disable_help_subcommand(true), dir).with_context(context)?;
    let text = format!("manual pages are in {}\n", dir.display());
    Ok(Report { json: json!({"folder": dir.display().to_string()}), text, yes: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_has_a_page_and_every_shell_a_script() {
        let dir = tempfile::tempdir().expect("dir");
        manual(dir.path(), crate::cli::Cli::command()).expect("pages");
        for page in [
            "kata-se.1",
            "kata-se-check.1",
            "kata-se-runtimeclass.1",
            "kata-se-image-inspect.1",
            "kata-se-host-key-verify.1",
        ] {
            assert!(dir.path().join(page).is_file(), "{page}");
        }
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            assert!(completion(shell, crate::cli::Cli::command()).text.contains("host-key"), "{shell}");
        }
    }
}
