//! Changes of files and folders, as the kernel tells them (inotify).
//!
//! One instance for all watches of a pod, since a node has few (`fs.inotify.max_user_instances`), and none while
//! nothing is watched. Two watches of one file share the kernel's.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::{Code, Context, Error, Result};
use crate::host::{sys, tasks};
use crate::limits;
use crate::mutex::lock;

/// All watches of a pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watches(Arc<Mutex<Option<Instance>>>);

#[derive(Debug)]
struct Instance {
    inotify: Arc<Inotify>,
    reader: JoinHandle<()>,
    watched: HashMap<WatchDescriptor, Watched>,
    /// Watches that are not dropped.
    users: usize,
}

#[derive(Debug)]
struct Watched {
    users: usize,
    changes: watch::Sender<()>,
}

/// One watched file or folder, until this is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    all: Watches,
    descriptor: WatchDescriptor,
    changes: watch::Receiver<()>,
}

impl Watches {
    /// Watches the file, or the names in the folder, that is at this path now.
    pub(crate) fn add(&self, path: &Path) -> Result<Watch> {
        let mut guard = lock(&self.0);
        let instance = match &mut *guard {
            Some(instance) => instance,
            none => none.insert(self.open()?),
        };
        let added = instance.add(path);
        if instance.users == 0 {
            instance.reader.abort();
            *guard = None;
        }
        let (descriptor, changes) = added.with_context(|| format!("watch {}", path.display()))?;
        drop(guard);
        Ok(Watch { all: self.clone(), descriptor, changes })
    }

    fn open(&self) -> Result<Instance> {
        let opened = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(|e| match e {
            Errno::EMFILE => Error::new(
                Code::ResourceExhausted,
                format!("inotify: {e}: this node has too few instances: raise fs.inotify.max_user_instances"),
            ),
            e => Error::internal(format!("inotify: {e}")),
        })?;
        let readable = opened.as_fd().try_clone_to_owned().context("inotify")?;
        let readable = sys::watch(readable, Interest::READABLE).context("inotify")?;
        let inotify = Arc::new(opened);
        let reader = tasks::spawn(read(Arc::clone(&inotify), readable, Arc::downgrade(&self.0)));
        Ok(Instance { inotify, reader, watched: HashMap::new(), users: 0 })
    }
}

impl Instance {
    fn add(&mut self, path: &Path) -> Result<(WatchDescriptor, watch::Receiver<()>)> {
        if self.users >= limits::volumes::WATCHES {
            return Err(Error::new(
                Code::ResourceExhausted,
                format!("a pod may have {} watched files and folders", limits::volumes::WATCHES),
            ));
        }
        // Of a folder its names, of a file what is written to it, of both the end of what is watched.
        let mask = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        let descriptor = self.inotify.add_watch(path, mask).map_err(|e| match e {
            Errno::ENOSPC => Error::new(
                Code::ResourceExhausted,
                "this node has too few watches: raise fs.inotify.max_user_watches",
            ),
            e => Error::internal(e.desc()),
        })?;
        let watched = self
            .watched
            .entry(descriptor)
            .or_insert_with(|| Watched { users: 0, changes: watch::Sender::new(()) });
        watched.users += 1;
        self.users += 1;
        Ok((descriptor, watched.changes.subscribe()))
    }

    fn remove(&mut self, descriptor: WatchDescriptor) {
        self.users -= 1;
        let Some(watched) = self.watched.get_mut(&descriptor) else { return };
        watched.users -= 1;
        if watched.users == 0 {
            self.watched.remove(&descriptor);
            // The kernel may have removed it already, with the file.
            self.inotify.rm_watch(descriptor).ok();
        }
    }

    fn note(&mut self, event: &InotifyEvent) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            self.watched.values().for_each(|watched| watched.changes.send_replace(()));
        } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.watched.remove(&event.wd);
        } else if let Some(watched) = self.watched.get(&event.wd) {
            watched.changes.send_replace(());
        }
    }
}

impl Watch {
    /// Returns at the next change, or at once if there was one since the last return. False: what was watched is
    /// gone, and no other will come.
    pub(crate) async fn changed(&mut self) -> bool {
        self.changes.changed().await.is_ok()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut guard = lock(&self.all.0);
        let Some(instance) = &mut *guard else { return };
        instance.remove(self.descriptor);
        if instance.users == 0 {
            instance.reader.abort();
            *guard = None;
        }
    }
}

/// Reads as long as there are watches.
async fn read(inotify: Arc<Inotify>, readable: AsyncFd<OwnedFd>, all: Weak<Mutex<Option<Instance>>>) {
    loop {
        let events =
            readable.async_io(Interest::READABLE, |_| inotify.read_events().map_err(Into::into)).await;
        let (Ok(events), Some(all)) = (events, all.upgrade()) else { return };
        if let Some(instance) = &mut *lock(&all) {
            events.iter().for_each(|event| instance.note(event));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_millis(100);

    async fn changes(watch: &mut Watch) -> bool {
        timeout(Duration::from_secs(10), watch.changed()).await.expect("a change")
    }

    #[tokio::test]
    async fn changes_are_told_to_all_who_watch_and_nothing_is_left_after_them() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("f");
        fs::write(&file, "1").expect("write");
        let watches = Watches::default();
        let e = watches.add(&dir.path().join("none")).expect_err("none");
        assert!(e.to_string().ends_with("none: No such file or directory"), "{e}");
        assert!(lock(&watches.0).is_none());
        let (mut one, mut other) = (watches.add(&file).expect("watch"), watches.add(&file).expect("watch"));
        let mut folder = watches.add(dir.path()).expect("watch");
        assert!(timeout(SOON, one.changed()).await.is_err(), "nothing has changed");
        fs::write(&file, "2").expect("write");
        assert!(changes(&mut one).await && changes(&mut other).await);
        drop(one);
        assert!(changes(&mut folder).await);
        fs::write(&file, "3").expect("write");
        assert!(changes(&mut other).await, "the other's watch stays");
        fs::write(dir.path().join("g"), "").expect("write");
        assert!(changes(&mut folder).await);
        // A file that is replaced is told once more, then never again.
        fs::rename(dir.path().join("g"), &file).expect("rename");
        while changes(&mut other).await {}
        let descriptor = Arc::downgrade(&lock(&watches.0).as_ref().expect("instance").inotify);
        drop((other, folder));
        assert!(lock(&watches.0).is_none());
        while descriptor.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
        // And then anew.
        let mut again = watches.add(&file).expect("watch");
        fs::write(&file, "4").expect("write");
        assert!(changes(&mut again).await);
    }

    #[tokio::test]
    async fn a_pod_has_so_many_watches_and_no_more() {
        let dir = tempfile::tempdir().expect("dir");
        let watches = Watches::default();
        let all: Vec<_> =
            (0..limits::volumes::WATCHES).map(|_| watches.add(dir.path()).expect("watch")).collect();
        let e = watches.add(dir.path()).expect_err("one more");
        assert!(e.to_string().ends_with("a pod may have 1024 watched files and folders"), "{e}");
        drop(all);
        watches.add(dir.path()).expect("again");
    }
}
