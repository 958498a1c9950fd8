//! Completion scripts and manual pages, made from the definition of the command line and the table of
//! configuration keys.

use std::path::Path;

use clap::Command;
use clap_complete::{Shell, generate};
use clap_mangen::roff::{Roff, bold, line_break, roman};
use serde_json::json;

use crate::cli::output::Report;
use crate::config::keys::{FILES, KEYS, Kind};
use crate::error::{Context, Result};
use crate::host::files::make_dirs;

pub(crate) fn completion(shell: Shell, mut command: Command) -> Report {
    let mut script = Vec::new();
    generate(shell, &mut command, "kata-se", &mut script);
    let text = String::from_utf8_lossy(&script).into_owned();
    Report { json: json!({"shell": shell.to_string(), "script": text}), text, yes: true }
}

/// One page per command, kata-se.1, kata-se-check.1 …, and kata-se.toml.5 for the configuration.
pub(crate) fn manual(dir: &Path, command: Command) -> Result<Report> {
    let context = || format!("write manual pages into {}", dir.display());
    make_dirs(dir, 0o755)?;
    clap_mangen::generate_to(command.disable_help_subcommand(true), dir).with_context(context)?;
    std::fs::write(dir.join("kata-se.toml.5"), configuration_page()).with_context(context)?;
    let text = format!("manual pages are in {}\n", dir.display());
    Ok(Report { json: json!({"folder": dir.display().to_string()}), text, yes: true })
}

/// The manual page of the configuration file.
fn configuration_page() -> String {
    let mut page = Roff::new();
    page.control("TH", ["kata-se.toml", "5", concat!("kata-se ", env!("CARGO_PKG_VERSION"))]);
    page.control("SH", ["NAME"]).text([roman("kata-se.toml - configuration of the shim and of kata-se(1)")]);
    page.control("SH", ["DESCRIPTION"]).text([roman(
        "A TOML file of sections and keys. All of them are optional: a key that is not given has its default.",
    )]);
    page.control("PP", []).text([roman(paragraph(FILES))]);
    page.control("SH", ["KEYS"]);
    let mut last = "";
    for key in KEYS {
        let (section, name) = key.parts();
        if section != last {
            page.control("SS", [format!("[{section}]").as_str()]);
        }
        last = section;
        let text = [roman(paragraph(key.doc)), line_break(), roman(values(&key.kind))];
        page.control("TP", []).text([bold(name)]).text(text);
    }
    page.control("SH", ["SEE ALSO"]).text([bold("kata-se"), roman("(1)")]);
    page.render()
}

fn values(kind: &Kind) -> String {
    let default = if matches!(kind, Kind::RequiredPath(..)) { "No default; example:" } else { "Default:" };
    format!("Takes {}. {default} {}", kind.takes(), kind.written())
}

fn paragraph(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn roff_text(text: &str) -> String {
        let page = Roff::new().text([roman(text)]).render();
        page.lines().last().expect("text").to_owned()
    }

    #[test]
    fn every_command_and_key_is_in_a_page_and_every_shell_has_a_script() {
        let dir = tempfile::tempdir().expect("dir");
        manual(dir.path(), crate::cli::Cli::command()).expect("pages");
        for page in [
            "kata-se.1",
            "kata-se-check.1",
            "kata-se-runtimeclass.1",
            "kata-se-image-inspect.1",
            "kata-se-host-key-verify.1",
            "kata-se-initdata-build.1",
        ] {
            assert!(dir.path().join(page).is_file(), "{page}");
        }
        let page = std::fs::read_to_string(dir.path().join("kata-se.toml.5")).expect("page");
        for key in KEYS {
            let (section, name) = key.parts();
            let (_, rest) = page.split_once(&format!("\n.SS [{section}]\n")).expect(section);
            let rest = rest.split("\n.SS ").next().expect("section");
            let name = format!(".TP\n\\fB{}\\fR\n", name.replace('-', "\\-"));
            assert!(rest.contains(&name), "{} is not in {page}", key.name);
            for text in [paragraph(key.doc), values(&key.kind)] {
                let text = roff_text(&text);
                assert!(rest.contains(&text), "{text} is not in {page}");
            }
        }
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            assert!(completion(shell, crate::cli::Cli::command()).text.contains("host-key"), "{shell}");
        }
    }
}
