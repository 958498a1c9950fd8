//! Asking an installed program what it is: `--version`, and what its help lists.

use std::path::Path;

use nix::fcntl::OFlag;
use nix::libc;
use nix::unistd::pipe2;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::error::{Context, Error, Result};
use crate::host::confine::{Confinement, User};
use crate::host::process::Launch;
use crate::limits;

/// What `program` writes when it is called with `args`, on both streams, whatever its exit code is: mkfs.erofs 1.5
/// tells its version with an error. It runs as a pod's helper does, as `user`; None: with our rights.
///
/// Blocks for at most [`limits::host::ANSWER`]; the program does not outlive the call.
pub(crate) fn ask(program: &Path, args: &[&str], user: Option<User>) -> Result<String> {
    let context = || format!("{} {}", program.display(), args.join(" "));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(async {
        let (answer, theirs) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
        let answer = pipe::Receiver::from_owned_fd(answer).context("watch a pipe")?;
        let launch = Launch {
            program: program.to_path_buf(),
            args: args.iter().map(Into::into).collect(),
            stderr: Some(theirs.try_clone().context("copy a descriptor")?),
            stdout: Some(theirs),
            confine: user.map(Confinement::of),
            ..Launch::default()
        };
        let child = launch.spawn()?;
        let mut bytes = Vec::new();
        let read = async {
            let most = limits::host::ANSWER_BYTES;
            let read = answer.take(most).read_to_end(&mut bytes).await;
            read.with_context(context)?;
            child.wait().await
        };
        let ended = tokio::time::timeout(limits::host::ANSWER, read).await;
        if ended.is_err() {
            child.kill(libc::SIGKILL)?;
            child.wait().await?;
            let limit = limits::host::ANSWER.as_secs();
            return Err(Error::deadline(format!("{}: no answer within {limit} s", context())));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<String> {
        ask(Path::new("/bin/sh"), &["-c", script], None)
    }

    #[test]
    fn both_streams_of_any_end_are_the_answer() {
        assert_eq!(shell("echo a; echo b >&2; exit 1"), Ok("a\nb\n".to_owned()));
        assert_eq!(shell("kill -9 $$"), Ok(String::new()));
        let e = ask(Path::new("/no/such/program"), &["--version"], None).expect_err("missing");
        assert_eq!(e.to_string(), "start /no/such/program: No such file or directory (os error 2)");
    }

    #[test]
    fn an_answer_is_bounded_in_size_and_time_and_the_program_ends() {
        let dir = tempfile::tempdir().expect("dir");
        let pid = dir.path().join("pid");
        let endless = shell("while :; do echo yes; done").expect("the start of it");
        assert_eq!(endless.len() as u64, limits::host::ANSWER_BYTES);
        let e = shell(&format!("echo $$ > {}; exec sleep 100", pid.display())).expect_err("late");
        assert!(e.to_string().ends_with("no answer within 5 s"), "{e}");
        let pid = std::fs::read_to_string(pid).expect("pid");
        assert!(!Path::new("/proc").join(pid.trim()).exists());
    }

    #[test]
    fn nothing_of_our_environment_and_no_input_is_passed_on() {
        assert_eq!(shell("cat; echo ${HOME-none} $PWD"), Ok("none /\n".to_owned()));
    }
}
