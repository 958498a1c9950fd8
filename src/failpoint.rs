//! The named steps of a pod's life: the places where tests kill the shim or let it fail.
//!
//! `hit` is empty unless built with the feature `failpoints`. A new step is added to the
//! list below, and the crash tests include it.

use crate::error::Result;

macro_rules! steps {
    ($($name:ident),* $(,)?) => {
        /// A step that was just completed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Step { $($name),* }

        impl Step {
            /// Every step there is.
            #[cfg(feature = "test-api")]
            pub const ALL: &'static [Step] = &[$(Step::$name),*];

            /// As the failpoint's file names it.
            #[cfg(any(feature = "failpoints", feature = "test-api"))]
            pub fn name(self) -> &'static str {
                match self { $(Step::$name => stringify!($name)),* }
            }
        }
    };
}

steps! {
    ConfigRead, CgroupRecorded, CgroupMade, ShimMoved, NetworkScanned, TapRecorded, TapMade, MirrorMade, HelperSpawned,
    QemuSpawned, QmpReady, GuestRunning, AgentReady, NetworkSent, SandboxMade, LayersPacked,
    VolumesCopied, EmptyDirMade, DiskPlugged, ContainerMade, ContainerStarted, ExecMade, ExecStarted, ContainerRemoved,
    SandboxDestroyed, VmStopped, CleanupStepDone, CleanupDone,
}

/// Names the file, written by tests, that says which step fails, in a build with the feature.
#[cfg(feature = "failpoints")]
pub(crate) const ENVIRONMENT: &str = "KATA_SE_FAILPOINT";

/// Called right after a step; with the feature `failpoints` it does what the file named by the
/// environment says: `<step>=kill|panic|EIO|ENOSPC|EMFILE|ETIMEDOUT`, with `#<n>` behind it only at the
/// nth time that this process comes there.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn hit(_: Step) -> Result<()> {
    Ok(())
}

#[cfg(feature = "failpoints")]
#[allow(clippy::panic)] // that of a bug, for tests
pub(crate) fn hit(step: Step) -> Result<()> {
    use crate::error::Context;
    use nix::libc;
    use std::sync::atomic::{AtomicU32, Ordering};
    static TIMES: AtomicU32 = AtomicU32::new(0);
    let wanted = std::env::var_os(ENVIRONMENT).and_then(|path| std::fs::read_to_string(path).ok());
    let wanted = wanted.unwrap_or_default();
    let (point, nth) = wanted.split_once('#').unwrap_or((&wanted, ""));
    let Some((name, what)) = point.split_once('=') else { return Ok(()) };
    if name != step.name() {
        return Ok(());
    }
    let times = TIMES.fetch_add(1, Ordering::Relaxed) + 1;
    if nth.parse().is_ok_and(|nth: u32| nth != times) {
        return Ok(());
    }
    let errno = match what {
        "kill" => {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).context("failpoint")?;
            return Ok(());
        }
        "panic" => panic!("failpoint {name}"),
        "EIO" => libc::EIO,
        "ENOSPC" => libc::ENOSPC,
        "EMFILE" => libc::EMFILE,
        _ => libc::ETIMEDOUT,
    };
    Err(std::io::Error::from_raw_os_error(errno)).context(format!("failpoint {name}"))
}
