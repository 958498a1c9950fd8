//! The links that carry a pod's traffic: taps and mirroring in its network namespace.
//!
//! Every function enters the namespace on a separate thread and blocks: call it on a thread of
//! `begun::blocking`. Mirroring is an ingress qdisc on the pod's interface and on our tap, each
//! with one filter that redirects everything to the other.

use std::os::fd::OwnedFd;
use std::path::Path;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::tc::TcAttribute;
use rtnetlink::{Handle, LinkUnspec};

use crate::error::{Context, Error, Result};
use crate::host::{netns, tap};
use crate::limits;

/// The priority of our filters, which tells them from others: an arbitrary number.
const PRIORITY: u16 = 0x4b53;

const ETH_P_ALL: u16 = 0x0003;

/// Runs netlink work in a namespace; None: the namespace is gone.
pub(super) fn within<T: Send>(
    path: &Path,
    work: impl AsyncFnOnce(Handle) -> Result<T> + Send,
) -> Result<Option<T>> {
    netns::within(path, || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().context("open netlink")?;
            tokio::pin!(connection);
            let work = work(handle);
            tokio::pin!(work);
            tokio::select! {
                result = tokio::time::timeout(limits::host::NETLINK, work) => {
                    result.unwrap_or_else(|_| Err(Error::deadline("netlink: no answer from the kernel")))
                }
                () = &mut connection => Err(Error::internal("netlink: the connection ended")),
            }
        })
    })
}

async fn index_of(handle: &Handle, name: &str) -> Result<Option<u32>> {
    let mut found = handle.link().get().match_name(name.to_owned()).execute();
    match found.try_next().await {
        Ok(link) => Ok(link.map(|l| l.header.index)),
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -nix::libc::ENODEV => Ok(None),
        Err(e) => Err(e).with_context(|| format!("find link {name}")),
    }
}

async fn existing(handle: &Handle, name: &str) -> Result<u32> {
    index_of(handle, name).await?.ok_or_else(|| Error::not_found(format!("link {name}: does not exist")))
}

/// Creates a tap in the namespace and sets it up, with the MTU of the link that it will mirror.
pub(crate) fn make_tap(netns: &Path, name: &str, mtu: u32) -> Result<OwnedFd> {
    within(netns, async |handle| {
        let fd = tap::make(name)?;
        let index = existing(&handle, name).await?;
        let up = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
        handle.link().set(up).execute().await.with_context(|| format!("set tap {name} up"))?;
        Ok(fd)
    })?
    .ok_or_else(|| Error::not_found(format!("network namespace {}: gone", netns.display())))
}

/// Bytes that the kernel has sent on these links together; one that does not exist has none.
pub(crate) fn sent_to(netns: &Path, names: &[String]) -> Result<u64> {
    let counted = within(netns, async |handle| {
        let mut sent = 0_u64;
        for name in names {
            let mut found = handle.link().get().match_name(name.clone()).execute();
            let Ok(Some(link)) = found.try_next().await else { continue };
            let bytes = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Stats64(stats) => Some(stats.tx_bytes),
                _ => None,
            });
            sent = sent.saturating_add(bytes.unwrap_or(0));
        }
        Ok(sent)
    });
    Ok(counted?.unwrap_or(0))
}

/// Refuses a link that has an ingress qdisc: our mirroring would break its filters.
pub(crate) fn check_free(netns: &Path, link: &str) -> Result<()> {
    within(netns, async |handle| {
        let index = existing(&handle, link).await?;
        if has_ingress(&handle, index).await? {
            return Err(Error::precondition(format!(
                "link {link}: has an ingress qdisc already; its traffic cannot be mirrored to the guest"
            )));
        }
        Ok(())
    })
    .map(|_| ())
}

async fn has_ingress(handle: &Handle, index: u32) -> Result<bool> {
    let signed = i32::try_from(index).context("link index")?;
    let found: Vec<_> =
        handle.qdisc().get().index(signed).execute().try_collect().await.context("list qdiscs")?;
    let is_ingress =
        |a: &TcAttribute| matches!(a, TcAttribute::Kind(kind) if kind == "ingress" || kind == "clsact");
    Ok(found.iter().any(|q| q.header.index == signed && q.attributes.iter().any(is_ingress)))
}

/// Redirects everything that comes in on one of the two links to the other.
pub(crate) fn mirror(netns: &Path, link: &str, tap: &str) -> Result<()> {
    within(netns, async |handle| {
        let (link, tap) = (existing(&handle, link).await?, existing(&handle, tap).await?);
        redirect(&handle, link, tap).await?;
        redirect(&handle, tap, link).await
    })
    .with_context(|| format!("mirror {link} and {tap}"))
    .map(|_| ())
}

async fn redirect(handle: &Handle, from: u32, to: u32) -> Result<()> {
    let from = i32::try_from(from).context("link index")?;
    handle.qdisc().add(from).ingress().execute().await.context("add ingress qdisc")?;
    let filter =
        handle.traffic_filter(from).add().parent(0xffff_0000).priority(PRIORITY).protocol(ETH_P_ALL.to_be());
    let added = async {
        filter.redirect(to).context("redirect filter")?.execute().await.context("add redirect filter")
    };
    let added = added.await;
    if added.is_err() {
        // Later nothing tells it from one of others.
        remove_ingress(handle, from).await?;
    }
    added
}

async fn remove_ingress(handle: &Handle, link: i32) -> Result<()> {
    let mut del = handle.qdisc().del(link);
    let message = del.message_mut();
    message.header.parent = rtnetlink::packet_route::tc::TcHandle::INGRESS;
    message.attributes.push(TcAttribute::Kind("ingress".into()));
    del.execute().await.context("remove ingress qdisc")
}

/// Removes our mirroring from a link: the qdisc with our filter, unless it has filters of others. A qdisc
/// without our filter is not ours, and a link that does not exist is success.
pub(crate) fn remove_mirror(netns: &Path, link: &str) -> Result<()> {
    within(netns, async |handle| {
        let Some(index) = index_of(&handle, link).await? else { return Ok(()) };
        if !has_ingress(&handle, index).await? {
            return Ok(());
        }
        let index = i32::try_from(index).context("link index")?;
        let filters: Vec<_> = handle
            .traffic_filter(index)
            .get()
            .ingress()
            .execute()
            .try_collect()
            .await
            .context("list filters")?;
        let (ours, others): (Vec<_>, Vec<_>) =
            filters.iter().partition(|f| f.header.info >> 16 == u32::from(PRIORITY));
        match (ours.is_empty(), others.is_empty()) {
            (true, _) => Ok(()),
            (false, true) => remove_ingress(&handle, index).await,
            (false, false) => Err(Error::precondition(format!(
                "link {link}: has filters of others; our mirroring is not removed"
            ))),
        }
    })
    .map(|_| ())
}

/// Removes a tap of ours; one that does not exist is success. QEMU's end has normally removed it already.
pub(crate) fn remove_tap(netns: &Path, name: &str) -> Result<()> {
    if !tap::is_ours(name) {
        return Err(Error::internal(format!("journal: {name:?} is not the name of a tap of ours")));
    }
    within(netns, async |handle| {
        let Some(index) = index_of(&handle, name).await? else { return Ok(()) };
        handle.link().del(index).execute().await.with_context(|| format!("remove tap {name}"))
    })
    .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_qdisc_with_our_filter_is_taken_for_ours() {
        use nix::sched::{CloneFlags, unshare};
        use rtnetlink::LinkVeth;
        // The thread is this test's own, and so is the namespace.
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            return; // this user may not
        }
        let thread = nix::unistd::gettid();
        let netns = std::path::PathBuf::from(format!("/proc/self/task/{thread}/ns/net"));
        let link = async |handle: Handle| {
            handle.link().add(LinkVeth::new("a", "b").build()).execute().await.context("add")?;
            let index = i32::try_from(existing(&handle, "a").await?).context("index")?;
            handle.qdisc().add(index).ingress().execute().await.context("qdisc")
        };
        match within(&netns, link) {
            // Emulators of foreign programs know no pairs of links.
            Err(e) if e.to_string().contains("Operation not supported") => return,
            made => made.expect("a link of others").expect("namespace"),
        }
        let has_qdisc = |name: &'static str| {
            let asking = async |handle: Handle| has_ingress(&handle, existing(&handle, name).await?).await;
            within(&netns, asking).expect("ask").expect("namespace")
        };
        assert!(mirror(&netns, "a", "b").is_err() && check_free(&netns, "a").is_err());
        remove_mirror(&netns, "a").expect("nothing to do");
        assert!(has_qdisc("a"), "it is not ours");
        let remove = async |handle: Handle| {
            remove_ingress(&handle, i32::try_from(existing(&handle, "a").await?).context("index")?).await
        };
        within(&netns, remove).expect("remove").expect("namespace");
        let to_nowhere = async |handle: Handle| redirect(&handle, existing(&handle, "a").await?, 9999).await;
        let e = within(&netns, to_nowhere).expect_err("no such link").to_string();
        assert!(e.contains("add redirect filter") && !has_qdisc("a"), "{e}");
        mirror(&netns, "a", "b").expect("mirror");
        assert!(has_qdisc("a") && has_qdisc("b"));
        for name in ["a", "b", "none"] {
            remove_mirror(&netns, name).expect("ours");
        }
        assert!(!has_qdisc("a") && !has_qdisc("b"));
    }
}
