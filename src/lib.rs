/*!
kata-se runs Kubernetes pods as confidential containers under IBM Secure Execution: a containerd
runtime shim that launches QEMU/KVM from a sealed image, manages the virtual machine over QMP and
carries the container life cycle to the agent inside the guest.

The modules are ordered in layers; each imports only from lower layers, and within its own layer only
where `hack/layers`, which checks it, has the reason on a list:

| layer | modules | what they may do |
| --- | --- | --- |
| 0 words | `ids` `ccw` `diagnosis` `error` `failpoint` `hex` `limits` `mutex` `scsi` | no I/O, no project imports but each other |
| 1 decisions | `config` `hostkey` `image` `oci` `plan` `lifecycle` | data in, data out |
| 2 the outside world | `host` `qemu` `agent` | one kernel interface or protocol per file |
| 3 the pod | `pod` `stdio` | the state of a pod, how it starts and ends, its processes' streams |
| 4 the task | `task` | one file for each thing that containerd asks of a pod |
| 5 entry points | `shim` `cli` | what containerd calls, and what a person calls |

Five rules: `qemu` and `agent` do not know each other; foreign types end at one file; decide, then act;
text from outside becomes a checked type where it enters; a trait needs two implementations that ship.

`docs/architecture.md` follows each of containerd's calls through the files.
*/

#![cfg_attr(not(feature = "test-api"), allow(unreachable_pub))]

mod ccw;
mod diagnosis;
mod error;
mod failpoint;
#[cfg(any(test, feature = "test-api"))]
mod fuzz;
mod hex;
mod ids;
mod limits;
mod mutex;
mod scsi;

mod config;
mod hostkey;
mod image;
mod lifecycle;
mod oci;
mod plan;

mod agent;
mod host;
mod qemu;

mod pod;
mod stdio;

mod task;

mod cli;
mod shim;

pub use cli::main as node_command;
pub use shim::command::main as shim;

/// What the programs under `integration/` use of the library; no interface of the product.
#[cfg(feature = "test-api")]
pub mod test_api {
    pub use crate::agent::calls::OutputStream;
    pub use crate::agent::client::Agent;
    pub use crate::agent::transport::Transport;
    pub use crate::ccw::DevNo;
    pub use crate::config::{Accelerator, AgentConfig, Boot, EmptyDirMode, VolumesConfig};
    pub use crate::failpoint::Step;
    pub use crate::host::facts::{Count, Root};
    pub use crate::host::image_file::ImageFile;
    pub use crate::host::memory_file::sealed;
    pub use crate::host::probe::collect;
    pub use crate::host::process::{FdTable, Launch};
    pub use crate::ids::{ContainerId, ExecId, Namespace, ProcessId, SandboxId};
    pub use crate::oci::guest_spec::guest_process;
    pub use crate::oci::spec::parse_process;
    pub use crate::plan::overhead::{HOST_MIB, overhead};
    pub use crate::plan::vm::{DiskPlan, VmPlan, VsockPlan};
    pub use crate::qemu::args::args;
    pub use crate::task::publish::{Courier, Outcome, Published};

    /// The configuration of a node.
    pub mod config {
        pub use crate::host::config::load;
    }

    /// The reader of sealed images.
    pub mod image {
        pub use crate::image::{Component, ComponentKind, ImageError, SealedImage, Verdict, read, verify};
    }

    /// What the fuzz targets call.
    pub mod fuzz {
        pub use crate::fuzz::*;
    }
}
