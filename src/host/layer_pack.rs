//! Packing image layers into one erofs image: mkfs reads an overlay of them.
//!
//! The overlay is mounted in a mount namespace of mkfs alone and disappears with it. The image is a
//! file without a name, which the caller links once it is complete, so that a crash leaves nothing.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;
use tokio::net::unix::pipe;

use crate::error::{Code, Context, Error, Result};
use crate::host::files::make_dirs;
use crate::host::process::{Ended, Launch, LayerMount};
use crate::host::tail::Tail;
use crate::host::{cgroup, tasks};
use crate::limits;

/// Runs mkfs.
#[derive(Clone, Debug)]
pub(crate) struct Packer {
    pub(crate) mkfs: PathBuf,
    /// A directory of the pod, below which the layers are mounted for mkfs.
    pub(crate) mount_point: PathBuf,
    /// The pod's cgroup, for mkfs.
    pub(crate) leaf: Option<PathBuf>,
}

impl Packer {
    /// Packs `layers`, topmost first, into an unnamed file of `directory`.
    pub(super) async fn pack(&self, layers: &[PathBuf], directory: &Path) -> Result<File> {
        let context = |e: Error| e.context(format!("pack image layers into {}", directory.display()));
        let image = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(directory)
            .with_context(|| format!("make a file in {}", directory.display()))?;
        let (target, bottom) = (self.mount_point.join("tree"), self.mount_point.join("empty"));
        for dir in [&self.mount_point, &bottom, &target] {
            make_dirs(dir, 0o700)?;
        }
        let (stderr, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make a pipe")?;
        let stderr = pipe::Receiver::from_owned_fd(stderr).context("watch mkfs")?;
        let mut launch = Launch {
            program: self.mkfs.clone(),
            stderr: Some(theirs),
            cgroup: self.leaf.as_deref().map(cgroup::enter).transpose()?,
            mount: Some(LayerMount {
                // With the empty `bottom`, one layer is an overlay as well.
                layers: layers.iter().chain([&bottom]).cloned().collect(),
                target: target.clone(),
            }),
            ..Launch::default()
        };
        let number = launch.fds.give(image.try_clone().context("layer image")?.into());
        launch.args = vec![
            "--quiet".into(),
            "-Enosbcrc".into(),
            format!("/proc/self/fd/{}", number.0).into(),
            target.into(),
        ];
        let child = tasks::reaped(launch.spawn().map_err(context)?);
        let output = Tail::default();
        let ((), ended) = tokio::join!(output.read_from(stderr), child.wait());
        match ended? {
            Ended::Code(0) => Ok(image),
            ended => {
                let output = output.last_lines(limits::text::QUOTED_LINES).join(" | ");
                let no_space = output.contains("No space left") || output.contains("ENOSPC");
                let code = if no_space { Code::ResourceExhausted } else { Code::Internal };
                let program = self.mkfs.display();
                Err(context(Error::new(code, format!("{program} ended with {ended}: {output}"))))
            }
        }
    }
}
