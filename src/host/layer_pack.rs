//! Packing image layers into one erofs image: mkfs reads an overlay of them.
//!
//! The overlay is mounted in a mount namespace of mkfs alone and disappears with it. The image is a
//! file without a name, which the caller links once it is complete, so that a crash leaves nothing. mkfs
//! runs in the pod's cgroup, and ends when the container that it packs for is given up.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::error::{Code, Context, Error, Result};
use crate::host::begun::Begun;
use crate::host::confine::{Confinement, User};
use crate::host::files::private_dir;
use crate::host::process::{Child, Ended, Launch, LayerMount};
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
    pub(crate) leaf: PathBuf,
    /// None: mkfs has our rights.
    pub(crate) user: Option<User>,
}

impl Packer {
    /// Packs `layers`, topmost first, into an unnamed file of `directory`, which gets no more than `bytes`.
    pub(super) async fn pack(&self, layers: &[PathBuf], directory: &Path, bytes: u64) -> Result<File> {
        let context = |e: Error| e.context(format!("pack image layers into {}", directory.display()));
        let image = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(directory)
            .with_context(|| format!("make a file in {}", directory.display()))?;
        let give_to = |user: User| {
            fchown(&image, Some(user.uid), Some(user.gid))
                .with_context(|| format!("give the image to uid {}", user.uid))
        };
        self.user.map_or(Ok(()), give_to)?;
        let (target, bottom) = (self.mount_point.join("tree"), self.mount_point.join("empty"));
        for dir in [&self.mount_point, &bottom, &target] {
            private_dir(dir)?;
        }
        let (stderr, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make a pipe")?;
        let stderr = pipe::Receiver::from_owned_fd(stderr).context("watch mkfs")?;
        let mut launch = Launch {
            program: self.mkfs.clone(),
            stderr: Some(theirs),
            cgroup: Some(cgroup::enter(&self.leaf)?),
            mount: Some(LayerMount {
                // With the empty `bottom`, one layer is an overlay as well.
                layers: layers.iter().chain([&bottom]).cloned().collect(),
                target: target.clone(),
            }),
            file_bytes: Some(bytes),
            confine: self.user.map(|user| Confinement { reads_all: true, ..Confinement::of(user) }),
            ..Launch::default()
        };
        let number = launch.fds.give(image.try_clone().context("layer image")?.into());
        launch.args = vec!["--quiet".into(), "-Enosbcrc".into(), number.path().into(), target.into()];
        let packing = Packing::of(launch.spawn().map_err(context)?);
        let output = Tail::default();
        let ended = async { tokio::join!(output.read_from(stderr), packing.0.wait()).1 };
        let limit = limits::host::PACKING;
        let ended = timeout(limit, ended).await.unwrap_or_else(|_| {
            Err(context(Error::deadline(format!("not done within {} min", limit.as_secs() / 60))))
        });
        match ended? {
            Ended::Code(0) => {
                give_to(User { uid: 0, gid: 0 })?;
                Ok(image)
            }
            Ended::Signal(libc::SIGXFSZ) => Err(context(Error::unavailable(format!(
                "the image became larger than the {} MiB that were measured before (did the layers change \
                 meanwhile?)",
                bytes >> 20
            )))),
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

/// mkfs at work; dropped earlier, it is killed.
struct Packing(Arc<Child>);

impl Packing {
    fn of(mkfs: Child) -> Self {
        let mkfs = Arc::new(mkfs);
        let (begun, ending) = (Begun::new("mkfs"), Arc::clone(&mkfs));
        tasks::detach(async move {
            ending.wait().await.ok();
            drop(begun);
        });
        Self(mkfs)
    }
}

impl Drop for Packing {
    fn drop(&mut self) {
        self.0.kill(libc::SIGKILL).ok(); // a signal to our own child is not refused
    }
}
