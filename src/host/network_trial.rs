//! Whether this kernel can do what a pod's network needs: tried where nobody else is.

use std::path::Path;

use crate::error::Result;
use crate::host::{netlink, netns, tap};

/// Makes taps and mirrors one to the other, in a new network namespace, which ends with the trial. Loads the
/// kernel's modules for it (tun, `sch_ingress`, `act_mirred`), as a pod's start would. Needs root.
pub(crate) fn run() -> Result<()> {
    netns::within_new(|| {
        let _taps = [tap::make("a")?, tap::make("b")?];
        netlink::mirror(Path::new("/proc/thread-self/ns/net"), "a", "b")
    })
}

#[cfg(test)]
mod tests {
    // The user-mode emulation that s390x unit tests run in has no traffic filters.
    #[cfg(not(target_arch = "s390x"))]
    #[test]
    fn the_trial_leaves_the_hosts_network_alone() {
        let links = || std::fs::read_to_string("/proc/net/dev").expect("links").lines().count();
        let before = links();
        super::run().expect("what every pod needs");
        assert_eq!(links(), before);
    }
}
