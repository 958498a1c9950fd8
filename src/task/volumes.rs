//! A container's volumes on their way into the guest: what the host has is looked at, and copied once,
//! before the container is created. Later changes of either side are not carried over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use slog::{Logger, debug, warn};
use tokio::time::timeout;

use crate::agent::calls::FilePiece;
use crate::agent::client::Agent;
use crate::error::{Context, Error, Result};
use crate::host::begun::blocking;
use crate::host::files;
use crate::host::volume::{Budget, Entry, Node, Volume, kind, read_piece};
use crate::ids::ContainerId;
use crate::limits;
use crate::oci::spec::Bundle;
use crate::oci::volume::{self, VolumeCopy, Volumes};
use crate::pod::guest::Guest;

/// Looks at what the mounts name on the host and decides how each comes into the guest.
pub(crate) async fn place(bundle: &Bundle, id: &ContainerId) -> Result<Volumes> {
    let sources: Vec<PathBuf> = volume::host_sources(bundle).map(Path::to_path_buf).collect();
    let (kinds, unique) = blocking("look at volumes", move || {
        let kinds = sources.into_iter().map(|source| Ok((source.clone(), kind(&source)?)));
        Ok((kinds.collect::<Result<BTreeMap<_, _>>>()?, files::random()?))
    })
    .await?;
    volume::decide(bundle, id, &kinds, unique)
}

/// Copies files and folders into the guest, in the time a container's creation may take and one call
/// more: a call that hangs is reported as such.
pub(crate) async fn copy(log: &Logger, guest: &Guest, copies: &[VolumeCopy]) -> Result<()> {
    let limit = guest.config.agent.create_timeout + guest.config.agent.call_timeout;
    let all = async {
        let mut budget = Budget::default();
        let mut left = limits::volumes::COPIED_BYTES;
        for copied in copies {
            budget = copy_one(log, &guest.agent, copied, budget, &mut left).await?;
        }
        Ok(())
    };
    timeout(limit, all).await.unwrap_or_else(|_| {
        Err(Error::deadline(format!(
            "volumes: not copied into the guest within {} s (agent.create_timeout_s and agent.call_timeout_s)",
            limit.as_secs()
        )))
    })
}

/// `left`: how much content may still be read, whatever the listing said.
async fn copy_one(
    log: &Logger,
    agent: &Agent,
    copied: &VolumeCopy,
    mut budget: Budget,
    left: &mut u64,
) -> Result<Budget> {
    let source = copied.source.clone();
    let (volume, budget) = blocking("list volume", move || {
        let volume = Volume::list(&source, &mut budget)?;
        Ok((Arc::new(volume), budget))
    })
    .await?;
    for entry in &volume.entries {
        let sent = send(agent, &volume, entry, &copied.target, left).await;
        sent.with_context(|| format!("volume {}", copied.source.join(&entry.path).display()))?;
    }
    if volume.skipped > 0 {
        warn!(log, "volume {}: left out what has no content to copy", copied.source.display();
            "sockets_fifos_devices" => volume.skipped);
    }
    debug!(log, "volume copied"; "source" => %copied.source.display(), "files" => volume.entries.len());
    Ok(budget)
}

async fn send(
    agent: &Agent,
    volume: &Arc<Volume>,
    entry: &Entry,
    target: &str,
    left: &mut u64,
) -> Result<()> {
    let mut path = target.to_owned();
    if !entry.path.as_os_str().is_empty() {
        let below = entry.path.to_str().ok_or_else(|| Error::invalid("its name is not UTF-8"))?;
        path = format!("{target}/{below}");
    }
    let piece = FilePiece { path, mode: entry.mode, uid: entry.uid, gid: entry.gid, ..FilePiece::default() };
    match &entry.node {
        Node::Directory => agent.copy_file(piece).await,
        Node::Link(text) => {
            let (size, data) = (text.len() as u64, text.clone());
            agent.copy_file(FilePiece { size, data, ..piece }).await
        }
        Node::File => {
            for _ in 0..limits::volumes::COPY_TRIES {
                if send_file(agent, volume, entry, &piece, left).await? {
                    return Ok(());
                }
            }
            Err(Error::unavailable("it changes all the time while it is copied"))
        }
    }
}

/// One try from the file's beginning; false when it became shorter on the way. Gone is sent as done.
async fn send_file(
    agent: &Agent,
    volume: &Arc<Volume>,
    entry: &Entry,
    piece: &FilePiece,
    left: &mut u64,
) -> Result<bool> {
    let (listed, path, most) = (Arc::clone(volume), entry.path.clone(), *left);
    let Some((mut file, size)) = blocking("open file", move || listed.open(&path, most)).await? else {
        return Ok(true);
    };
    let mut offset = 0;
    loop {
        let read = move || {
            let data = read_piece(&mut file, size - offset)?;
            Ok((file, data))
        };
        let (same, data) = blocking("read file", read).await?;
        file = same;
        let length = data.len() as u64;
        if length == 0 && offset < size {
            return Ok(false);
        }
        agent.copy_file(FilePiece { size, offset, data, ..piece.clone() }).await?;
        offset += length;
        if offset >= size {
            *left -= size;
            return Ok(true);
        }
    }
}
