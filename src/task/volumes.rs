//! A container's volumes on their way into the guest: what the host has is looked at, and copied before the container
//! is created. What is copied follows the host from then on (`task::updates`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use slog::{debug, warn};
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::host::begun::blocking;
use crate::host::files;
use crate::host::volume::kind;
use crate::host::watch::Watch;
use crate::ids::ContainerId;
use crate::oci::spec::Bundle;
use crate::oci::volume::{self, VolumeCopy, Volumes};
use crate::pod::Pod;
use crate::pod::guest::Guest;
use crate::task::publish::{self, Courier, Published};

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

/// A volume that the guest has, and the watch of the host's if it is to follow that.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) published: Published,
    pub(super) watch: Option<Watch>,
}

impl Pod {
    /// Copies files and folders into the guest, in the time a container's creation may take and one call
    /// more: a call that hangs is reported as such.
    pub(super) async fn copy_volumes(
        &self,
        guest: &Guest,
        id: &ContainerId,
        copies: &[VolumeCopy],
    ) -> Result<Vec<Copied>> {
        if let Some(container) = self.lock().containers.get_mut(id) {
            container.copied = copies.iter().map(|copy| copy.target.clone()).collect();
        }
        let limit = guest.config.agent.create_timeout + guest.config.agent.call_timeout;
        let all = async {
            let mut courier = Courier::new(&guest.agent, guest.config.volumes);
            let mut copied = Vec::new();
            for copy in copies {
                copied.push(self.copy_volume(&mut courier, id, copy).await?);
            }
            Ok(copied)
        };
        timeout(limit, all).await.unwrap_or_else(|_| {
            Err(Error::deadline(format!(
                "volumes: not copied into the guest within {} s (agent.create_timeout_s and agent.call_timeout_s)",
                limit.as_secs()
            )))
        })
    }

    /// Frees the guest's memory of a container's volumes, once the container is gone there.
    pub(super) async fn remove_volumes(&self, guest: &Guest, id: &ContainerId) {
        let copied =
            self.lock().containers.get_mut(id).map(|container| std::mem::take(&mut container.copied));
        for target in copied.unwrap_or_default() {
            if let Err(e) = publish::withdraw(&guest.agent, &target).await {
                return debug!(self.log(), "volumes of {} stay in the guest: {}", id, e);
            }
        }
    }

    async fn copy_volume(
        &self,
        courier: &mut Courier<'_>,
        id: &ContainerId,
        copy: &VolumeCopy,
    ) -> Result<Copied> {
        // Before it is read: a change meanwhile is published when the container is made.
        let watch = copy.follows.then(|| self.watches.add(&copy.source)).transpose();
        let watch = watch.unwrap_or_else(|e| {
            warn!(self.log(), "volume {} of {} stays as it is now: {}", copy.source.display(), id, e);
            None
        });
        let mut published = Published::new(copy.source.clone(), copy.target.clone());
        let outcome = published.publish(courier).await?;
        if published.skipped() > 0 {
            warn!(self.log(), "volume {}: left out what has no content to copy", copy.source.display();
                "sockets_fifos_devices" => published.skipped());
        }
        debug!(self.log(), "volume copied"; "source" => %copy.source.display(), "files" => outcome.sent);
        let watch = watch.filter(|_| published.can_change());
        Ok(Copied { published, watch })
    }
}
