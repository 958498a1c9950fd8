//! The node command `kata-se`: reports on a node, an image, a host key document, initdata or a failed pod.
//!
//! One file per subcommand. Each returns a report as text and JSON; `output` prints it.

mod check;
mod check_node;
pub(crate) mod explain;
mod export;
mod generate;
mod host_key;
mod initdata;
mod inspect;
pub(crate) mod output;
mod runtime_class;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::cli::output::{Report, Style};
use crate::error::{Code, Result};

const EXIT_CODES: &str = "Exit codes:
  0  the answer is yes: it can run, it is trusted, it was explained
  1  the answer is no; the output says why and what to do
  2  the command line is wrong
  3  a file could not be read or written";

/// Checks a node, sealed images and host key documents for IBM Secure Execution, and explains failed pods.
#[derive(Debug, Parser)]
#[command(name = "kata-se", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Report in JSON; its fields stay the same from version to version.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Check),
    /// Inspects a sealed image, or exports what an attestation service needs for it.
    #[command(subcommand)]
    Image(Image),
    /// Checks host key documents.
    #[command(subcommand)]
    HostKey(HostKey),
    Explain(explain::Explain),
    /// Makes and shows the initdata of pods: documents for their guests' programs.
    #[command(subcommand)]
    Initdata(initdata::InitdataCommand),
    #[command(name = "runtimeclass")]
    RuntimeClass(runtime_class::RuntimeClass),
    /// Prints the completion script of a shell: `kata-se completion bash > /etc/bash_completion.d/kata-se`.
    Completion {
        shell: clap_complete::Shell,
    },
    /// Writes the manual pages into a folder.
    Man {
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Image {
    Inspect(inspect::Inspect),
    Export(export::Export),
}

#[derive(Debug, Subcommand)]
enum HostKey {
    Verify(host_key::Verify),
}

/// The program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // A help text, with code 0, or a wrong command line, with code 2.
        Err(e) => {
            let code = u8::try_from(e.exit_code()).unwrap_or(2);
            return ExitCode::from(output::exit_code(e.print(), code));
        }
    };
    let style = Style::of_stdout();
    match run(&cli.command, style) {
        Ok(report) => report.print(cli.json),
        Err(e) => {
            writeln!(std::io::stderr(), "kata-se: {e}").ok();
            // Failed preconditions are an answer, not a failure of this command.
            ExitCode::from(if e.code() == Code::FailedPrecondition { 1 } else { 3 })
        }
    }
}

fn run(command: &Command, style: Style) -> Result<Report> {
    match command {
        Command::Check(check) => check.run(style),
        Command::Image(Image::Inspect(inspect)) => inspect.run(style),
        Command::Image(Image::Export(export)) => export.run(style),
        Command::HostKey(HostKey::Verify(verify)) => verify.run(style),
        Command::Explain(explain) => explain.run(style),
        Command::Initdata(command) => command.run(),
        Command::RuntimeClass(class) => class.run(),
        Command::Completion { shell } => Ok(generate::completion(*shell, Cli::command())),
        Command::Man { dir } => generate::manual(dir, Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_option_has_a_help_text() {
        Cli::command().debug_assert();
        fn walk(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments() {
                let shown = argument.get_help().is_some()
                    || argument.get_id() == "shell"
                    || argument.get_id() == "dir";
                assert!(shown, "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
        assert!(Cli::command().render_help().to_string().contains("Exit codes:\n  0  the answer is yes"));
    }

    #[test]
    fn a_wrong_command_line_ends_with_code_2() {
        for line in [&["kata-se"][..], &["kata-se", "image", "inspect"], &["kata-se", "chekc"]] {
            assert_eq!(Cli::try_parse_from(line).expect_err("wrong").exit_code(), 2, "{line:?}");
        }
    }
}
