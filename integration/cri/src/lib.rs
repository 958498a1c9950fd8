//! A CRI client for the tests: calls containerd as the kubelet does.
//! Blocking; messages are those of the API itself (`api`).

// Test code: a failed assumption ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod client;
mod container;
mod log;
mod node;
mod pod;
mod stream;

pub use client::{Client, Events, Status};
pub use container::{Container, Executed};
pub use k8s_cri::v1 as api;
pub use log::Line;
pub use node::{BUSYBOX, Node, OWN};
pub use pod::{Pod, pod_security, security};
pub use stream::{Channel, Stream};
pub use tonic::Code;

/// containerd 2, with pods created by the Sandbox API.
const SANDBOX_API: &str = "sandbox-api";

/// The containerd versions, each as a module of tests; every test gets a node that has to be as clean at
/// its end as it was before. The selection `in_short` is also run for each change.
// The tests are in the caller's crate.
#[allow(clippy::crate_in_macro_def)]
#[macro_export]
macro_rules! on_each_version {
    (in_short: $($short:ident),*; in_full: $($full:ident),*;) => {
        $crate::on_each_version!(@ containerd_1_6 "1.6" ($($short)*) ($($full)*));
        $crate::on_each_version!(@ containerd_1_7 "1.7" ($($short)*) ($($full)*));
        $crate::on_each_version!(@ containerd_2 "2" ($($short)*) ($($full)*));
        $crate::on_each_version!(@ sandbox_api "sandbox-api" ($($short)*) ($($full)*));
    };
    (@ $module:ident $version:literal ($($short:ident)*) ($($full:ident)*)) => {
        mod $module {
            mod in_short {
                $(#[test]
                fn $short() {
                    $crate::on_node($version, crate::$short);
                })*
            }
            mod in_full {
                $(#[test]
                fn $full() {
                    $crate::on_node($version, crate::$full);
                })*
            }
        }
    };
}

/// Runs a test on a node of containerd `version`, or with its Sandbox API.
pub fn on_node(version: &str, test: impl FnOnce(&Node)) {
    let node = if version == SANDBOX_API { Node::with_sandbox_api() } else { Node::new(version) };
    test(&node);
    node.containerd.assert_clean();
}
