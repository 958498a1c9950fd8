//! What containerd asks of a pod, one verb per file; the state it works on is in `pod`.

mod create;
mod delete;
mod disks;
mod exec;
mod io;
mod kill;
mod monitor;
mod orphan;
mod pause;
pub(crate) mod publish;
mod pull;
mod query;
mod rootfs;
mod sandbox;
mod start;
mod stats;
mod termination;
mod unanswered;
mod update;
mod updates;
mod volumes;
