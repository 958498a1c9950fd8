//! A CRI client for the tests: what the kubelet does with containerd, in as few words as possible.
//! Blocking; messages are those of the API itself (`api`).

// Test code: a failed assumption ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod client;
mod container;
mod log;
mod node;
mod pod;
mod stream;

pub use client::{Client, Status};
pub use container::{Container, Executed};
pub use k8s_cri::v1 as api;
pub use log::Line;
pub use node::{BUSYBOX, Node, OWN};
pub use pod::{Pod, pod_security, security};
pub use stream::{Channel, Stream};
pub use tonic::Code;

/// The containerd versions, each as a module of tests; every test gets a node that has to be as clean at
/// its end as it was before.
#[macro_export]
macro_rules! on_each_version {
    ($($test:ident,)*) => {
        $crate::on_each_version!(@ containerd_1_6 "1.6" $($test)*);
        $crate::on_each_version!(@ containerd_1_7 "1.7" $($test)*);
        $crate::on_each_version!(@ containerd_2 "2" $($test)*);
    };
    (@ $module:ident $version:literal $($test:ident)*) => {
        mod $module {
            $(#[test]
            fn $test() {
                let node = $crate::Node::new($version);
                super::$test(&node);
                node.containerd.assert_clean();
            })*
        }
    };
}
