/*!
kata-se runs Kubernetes pods as confidential containers under IBM Secure Execution: a containerd
runtime shim that launches QEMU/KVM from a sealed image, manages the virtual machine over QMP and
carries the container life cycle to the agent inside the guest.

The modules stand in layers; each imports only from its own module or from lower layers
(`hack/layers` checks it):

| layer | modules | what they may do |
| --- | --- | --- |
| 0 words | [`ids`] [`ccw`] [`error`] [`hex`] [`limits`] | no I/O, no project imports but each other |
| 1 decisions | [`config`] [`hostkey`] [`image`] [`oci`] [`plan`] [`lifecycle`] | data in, data out |
| 2 the outside world | [`host`] [`qemu`] [`agent`] | one kernel interface or protocol per file |
| 3 the pod | [`pod`] [`container`] [`stdio`] | the sequence of a pod's life |
| 4 the doors | [`shim`] [`cli`] | what containerd calls, and what a person calls |

Five rules: `qemu` and `agent` do not know each other; foreign types stop at one file; decide,
then act; text from outside becomes a checked type at the door; a trait needs two implementations
that ship.
*/

pub mod ccw;
pub mod error;
pub mod hex;
pub mod ids;
pub mod limits;

pub mod config;
pub mod hostkey;
pub mod image;
pub mod lifecycle;
pub mod oci;
pub mod plan;

pub mod agent;
pub mod host;
pub mod qemu;

pub mod container;
pub mod pod;
pub mod stdio;

pub mod cli;
pub mod shim;
