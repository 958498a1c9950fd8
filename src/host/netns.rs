//! Running work inside another network namespace.
//!
//! It runs on a separate thread that ends with it: setns changes the calling thread permanently.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};

use crate::error::{Context, Error, Result};

/// `NSFS_MAGIC` of the kernel's include/uapi/linux/magic.h.
const NSFS: FsType = FsType(0x6e73_6673);

/// Runs `work` in the namespace at `path` and waits for it. None: the namespace is gone (a pod's may be
/// unmounted before the pod's cleanup is complete).
pub(crate) fn within<T: Send>(path: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<Option<T>> {
    let context = || format!("network namespace {}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(context),
    };
    if fstatfs(&file).with_context(context)?.filesystem_type() != NSFS {
        return Ok(None);
    }
    refuse_the_hosts(&file).with_context(context)?;
    let enter = move || setns(&file, CloneFlags::CLONE_NEWNET).context("enter");
    on_a_thread(enter, work).with_context(context).map(Some)
}

/// Runs `work` in a new network namespace, which ends with it unless something keeps it.
pub(crate) fn within_new<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_a_thread(|| unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace"), work)
}

fn on_a_thread<T: Send>(
    enter: impl FnOnce() -> Result<()> + Send,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let inside = move || {
            enter()?;
            work()
        };
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, inside);
        let result = thread.context("start a thread")?.join();
        result.unwrap_or_else(|_| Err(Error::internal("a thread panicked")))
    })
}

/// In the host's network, mirroring would take the host's own traffic.
fn refuse_the_hosts(file: &File) -> Result<()> {
    if is_hosts("net", &file.metadata().context("stat")?) {
        return Err(Error::invalid(
            "this is the host's own network namespace; a confidential pod needs a separate one (hostNetwork is not possible)",
        ));
    }
    Ok(())
}

/// Whether the file at `path`, if it exists, is a namespace of the host: `kind` as in /proc/self/ns.
pub(crate) fn is_the_hosts(kind: &str, path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| is_hosts(kind, &file))
}

fn is_hosts(kind: &str, file: &Metadata) -> bool {
    ["self", "1"].iter().any(|process| {
        let host = std::fs::metadata(format!("/proc/{process}/ns/{kind}"));
        host.is_ok_and(|host| (host.ino(), host.dev()) == (file.ino(), file.dev()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_namespace_is_refused_and_a_missing_one_is_none() {
        let e = within(Path::new("/proc/self/ns/net"), || Ok(())).expect_err("host");
        assert!(
            e.to_string().starts_with("network namespace /proc/self/ns/net: this is the host's own"),
            "{e}"
        );
        assert_eq!(within(Path::new("/nonexistent"), || Ok(())), Ok(None));
        let plain = tempfile::NamedTempFile::new().expect("file");
        assert_eq!(within(plain.path(), || Ok(())), Ok(None));
    }
}
