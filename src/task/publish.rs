//! A volume in the guest: its first revision before its container is made, later ones, and its removal.
//!
//! The only place that knows by what means: the agent's CopyFile, which can neither delete nor rename. A folder in
//! the kubelet's layout gets new revisions, of which none is ever seen half; a file is replaced without a moment at
//! which it is missing. Any other folder is copied once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;

use crate::agent::calls::FilePiece;
use crate::agent::client::Agent;
use crate::config::VolumesConfig;
use crate::error::{Code, Context, Error, Result};
use crate::host::begun::blocking;
use crate::host::tasks::Stop;
use crate::host::volume::{Budget, Volume, read_piece};
use crate::limits;
use crate::oci::tree::{DATA, Entry, Layout, Listed, Node, Shown, whole};

/// Takes files to a guest, within what is left of its container's bounds, until it is told to stop.
#[derive(Debug)]
pub struct Courier<'a> {
    agent: &'a Agent,
    budget: Budget,
    /// How much content may still be read, whatever the listings said.
    left: u64,
    stop: Option<Stop>,
}

impl<'a> Courier<'a> {
    pub fn new(agent: &'a Agent, bounds: VolumesConfig) -> Self {
        let budget = Budget::new(bounds);
        Self { agent, budget, left: budget.bytes, stop: None }
    }

    /// One that ends between two files when it is told to.
    pub(crate) fn until(agent: &'a Agent, bounds: VolumesConfig, stop: Stop) -> Self {
        Self { stop: Some(stop), ..Self::new(agent, bounds) }
    }

    async fn take(&self, piece: FilePiece) -> Result<()> {
        if self.stop.as_ref().is_some_and(Stop::is_asked) {
            return Err(Error::new(Code::Cancelled, "its container has ended"));
        }
        self.agent.copy_file(piece).await
    }
}

/// A volume as the guest has it.
#[derive(Debug)]
pub struct Published {
    source: PathBuf,
    /// The path in the guest.
    target: String,
    form: Form,
    /// How many revisions there were.
    revisions: usize,
    /// Sockets, fifos and devices, which have no content.
    skipped: usize,
}

#[derive(Debug)]
enum Form {
    /// Not published yet.
    New,
    /// Never published again.
    Once,
    File(Part),
    Kubelets(Revisions),
}

/// Whether the guest may have a part of a file left, of a replacement that failed.
type Part = bool;

#[derive(Debug)]
struct Revisions {
    shown: Shown,
    /// Folders of revisions that the guest has, the current one last.
    folders: Vec<PathBuf>,
}

/// What a publication has done.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Files, folders and links that were sent; 0: nothing has changed.
    pub sent: usize,
    /// Keys of a sealed secret, which the guest shows as they were.
    pub sealed: Vec<String>,
}

/// How far a file came.
enum Sent {
    Whole,
    /// It is no file any more.
    Gone,
    /// It became shorter on the way.
    Shorter,
}

impl Published {
    /// A volume of which the guest has nothing.
    pub fn new(source: PathBuf, target: String) -> Self {
        Self { source, target, form: Form::New, revisions: 0, skipped: 0 }
    }

    pub(crate) fn source(&self) -> &Path {
        &self.source
    }

    pub(crate) fn skipped(&self) -> usize {
        self.skipped
    }

    /// Whether another revision can follow.
    pub(crate) fn can_change(&self) -> bool {
        matches!(self.form, Form::File(_) | Form::Kubelets(_))
    }

    pub(crate) fn is_file(&self) -> bool {
        matches!(self.form, Form::File(_))
    }

    /// Publishes what is on the host now as the next revision.
    pub async fn publish(&mut self, courier: &mut Courier<'_>) -> Result<Outcome> {
        let context = || format!("volume {}", self.source.display());
        if self.revisions > limits::volumes::REVISIONS {
            return Err(Error::new(
                Code::ResourceExhausted,
                format!(
                    "{}: {} revisions are in the guest: restart the container",
                    context(),
                    self.revisions
                ),
            ));
        }
        for _ in 0..limits::volumes::COPY_TRIES {
            let source = self.source.clone();
            let mut budget = courier.budget;
            let listing = blocking("list volume", move || {
                let volume = Volume::list(&source, &mut budget)?;
                Ok((Arc::new(volume), budget))
            });
            let (volume, budget) = listing.await?;
            let published = match &mut self.form {
                Form::New => self.first(courier, &volume).await,
                Form::Once => return Ok(Outcome::default()),
                Form::File(part) => replace(courier, &volume, &self.target, part).await,
                Form::Kubelets(revisions) => revisions.next(courier, &volume, &self.target).await,
            };
            if let Some(outcome) = published.with_context(|| format!("volume {}", self.source.display()))? {
                courier.budget = budget;
                self.skipped = volume.skipped;
                self.revisions += usize::from(outcome.sent > 0);
                return Ok(outcome);
            }
        }
        Err(Error::unavailable(format!(
            "volume {}: it changes all the time while it is copied",
            self.source.display()
        )))
    }

    /// None here and below: the volume has changed meanwhile.
    async fn first(&mut self, courier: &mut Courier<'_>, volume: &Arc<Volume>) -> Result<Option<Outcome>> {
        let (layout, sealed) = match Listed::of(&volume.entries) {
            Listed::Changing => return Ok(None),
            Listed::Other => (None, Vec::new()),
            Listed::Kubelets(layout) => {
                let sealed = sealed(volume, &layout).await?;
                (Some(layout), sealed)
            }
        };
        let steps = whole(&volume.entries, layout.as_ref());
        for entry in &steps {
            let sent = send(courier, volume, entry, &self.target).await?;
            if !sent && layout.is_some() {
                return Ok(None);
            }
        }
        let sent = steps.len();
        self.form = match layout {
            Some(layout) => {
                let folders = vec![layout.data.clone()];
                Form::Kubelets(Revisions { shown: Shown::new(layout, sealed.into_iter().collect()), folders })
            }
            None if volume.is_file() => Form::File(false),
            None => Form::Once,
        };
        Ok(Some(Outcome { sent, sealed: Vec::new() }))
    }
}

impl Revisions {
    async fn next(
        &mut self,
        courier: &mut Courier<'_>,
        volume: &Arc<Volume>,
        target: &str,
    ) -> Result<Option<Outcome>> {
        let Listed::Kubelets(layout) = Listed::of(&volume.entries) else { return Ok(None) };
        let sealed = sealed(volume, &layout).await?.into_iter().collect();
        let revision = self.shown.next(&volume.entries, &layout, &sealed)?;
        if revision.steps.is_empty() {
            return Ok(Some(Outcome::default()));
        }
        let text = |path: &Path| path.display().to_string();
        let shown = self.shown.sealed.iter().filter(|key| layout.keys.contains(*key));
        let mut outcome =
            Outcome { sent: revision.steps.len(), sealed: shown.map(|key| text(key)).collect() };
        outcome.sealed.extend(revision.withheld.iter().map(|key| text(key)));
        if self.shown.data.as_ref() != Some(&layout.data) {
            self.begin(&layout.data)?;
        }
        for entry in &revision.steps {
            let is_swap = entry.path == Path::new(DATA);
            if is_swap {
                self.shown.data = None;
            }
            if !send(courier, volume, entry, target).await? {
                return Ok(None);
            }
            if is_swap {
                self.shown.data = Some(layout.data.clone());
            } else if layout.keys.contains(&entry.path) {
                self.shown.keys.insert(entry.path.clone());
            }
        }
        self.remove_old(courier, volume, target).await;
        Ok(Some(outcome))
    }

    fn begin(&mut self, folder: &Path) -> Result<()> {
        if self.folders.len() > limits::volumes::STUCK_REVISIONS {
            return Err(Error::new(
                Code::ResourceExhausted,
                format!(
                    "the guest has kept {} old revisions, and gets no more: restart the container",
                    self.folders.len()
                ),
            ));
        }
        self.folders.retain(|known| known != folder);
        self.folders.push(folder.to_owned());
        Ok(())
    }

    /// The kubelet removes an old folder at once; here readers have until the next revision. Unsealed text is in the
    /// first folder. Of what fails the next revision tries again.
    async fn remove_old(&mut self, courier: &Courier<'_>, volume: &Volume, target: &str) {
        let from = usize::from(!self.shown.sealed.is_empty());
        while self.folders.len() > from + limits::volumes::WHOLE_REVISIONS {
            let Some(folder) = self.folders.get(from) else { return };
            let owner = volume.entries.first();
            let (uid, gid) = owner.map_or((0, 0), |owner| (owner.uid, owner.gid));
            let empty = FilePiece { uid, gid, ..empty_file(format!("{target}/{}", folder.display())) };
            if courier.take(empty).await.is_err() {
                return;
            }
            self.folders.remove(from);
        }
    }
}

/// Removes a volume from the guest: what takes its place is an empty file.
pub(crate) async fn withdraw(agent: &Agent, target: &str) -> Result<()> {
    agent.copy_file(empty_file(target.to_owned())).await
}

/// A file of no bytes, with which the agent replaces whatever is there.
fn empty_file(path: String) -> FilePiece {
    FilePiece { path, mode: libc::S_IFREG | 0o400, ..FilePiece::default() }
}

async fn sealed(volume: &Arc<Volume>, layout: &Layout) -> Result<Vec<PathBuf>> {
    let (listed, data) = (Arc::clone(volume), layout.data.clone());
    let sealed = blocking("read volume", move || listed.sealed(&data)).await?;
    Ok(sealed.into_iter().collect())
}

/// Makes one element in the guest. False: it is gone.
async fn send(courier: &mut Courier<'_>, volume: &Arc<Volume>, entry: &Entry, target: &str) -> Result<bool> {
    let context = || entry.path.display().to_string();
    let mut path = target.to_owned();
    if !entry.path.as_os_str().is_empty() {
        let below = entry.path.to_str().ok_or_else(|| Error::invalid("its name is not UTF-8"));
        path = format!("{target}/{}", below.with_context(context)?);
    }
    let piece = FilePiece { path, mode: entry.mode, uid: entry.uid, gid: entry.gid, ..FilePiece::default() };
    let sent = match &entry.node {
        Node::Directory => courier.take(piece).await.map(|()| true),
        Node::Link(text) => {
            let (size, data) = (text.len() as u64, text.clone());
            courier.take(FilePiece { size, data, ..piece }).await.map(|()| true)
        }
        Node::File => send_file(courier, volume, entry, piece).await,
    };
    sent.with_context(context)
}

async fn send_file(
    courier: &mut Courier<'_>,
    volume: &Arc<Volume>,
    entry: &Entry,
    piece: FilePiece,
) -> Result<bool> {
    for _ in 0..limits::volumes::COPY_TRIES {
        match send_pieces(courier, volume, entry, &piece, None).await? {
            Sent::Whole => return Ok(true),
            Sent::Gone => return Ok(false),
            Sent::Shorter => forget_part(courier, &piece.path).await?,
        }
    }
    Err(Error::unavailable("it changes all the time while it is copied"))
}

/// Sends a file's content from its beginning, piece by piece. With `beside` the pieces go to that path and are
/// followed by one that puts them in the file's place.
///
/// The agent collects pieces in a file named after the target, with another extension, until it has all that were
/// announced. Of one more byte than there is, all stay there; then the target's own last piece, of no bytes, is
/// what makes them complete, and they replace the target in one step.
async fn send_pieces(
    courier: &mut Courier<'_>,
    volume: &Arc<Volume>,
    entry: &Entry,
    piece: &FilePiece,
    beside: Option<&str>,
) -> Result<Sent> {
    let (listed, path, most) = (Arc::clone(volume), entry.path.clone(), courier.left);
    let open = move || {
        let Some((mut file, size)) = listed.open(&path, most)? else { return Ok(None) };
        let data = read_piece(&mut file, size)?;
        Ok(Some((file, size, data)))
    };
    let Some((mut file, size, mut data)) = blocking("read file", open).await? else { return Ok(Sent::Gone) };
    // An empty file has no piece that could be kept back.
    let beside = beside.filter(|_| size > 0);
    let mut offset = 0;
    loop {
        let length = data.len() as u64;
        if length == 0 && offset < size {
            return Ok(Sent::Shorter);
        }
        let to = piece.clone();
        let to = match beside {
            Some(path) => FilePiece { path: path.to_owned(), size: size + 1, ..to },
            None => FilePiece { size, ..to },
        };
        courier.take(FilePiece { offset, data, ..to }).await?;
        offset += length;
        if offset >= size {
            break;
        }
        let read = move || {
            let data = read_piece(&mut file, size - offset)?;
            Ok((file, data))
        };
        (file, data) = blocking("read file", read).await?;
    }
    if beside.is_some() {
        courier.take(FilePiece { size, offset: size, ..piece.clone() }).await?;
    }
    courier.left -= size;
    Ok(Sent::Whole)
}

/// Replaces a file in the guest so that it is never missing and never a part.
async fn replace(
    courier: &mut Courier<'_>,
    volume: &Arc<Volume>,
    target: &str,
    part: &mut Part,
) -> Result<Option<Outcome>> {
    let Some(entry) = volume.entries.first().filter(|entry| entry.node == Node::File) else {
        return Ok(None);
    };
    let (mode, uid, gid) = (entry.mode, entry.uid, entry.gid);
    let piece = FilePiece { path: target.to_owned(), mode, uid, gid, ..FilePiece::default() };
    let beside = beside(target);
    if *part {
        forget_part(courier, target).await?;
    }
    *part = true;
    let sent = send_pieces(courier, volume, entry, &piece, beside.as_deref()).await?;
    let Sent::Whole = sent else { return Ok(None) };
    *part = false;
    Ok(Some(Outcome { sent: 1, sealed: Vec::new() }))
}

/// Where the guest collects the pieces of a file.
fn part_of(path: &str) -> PathBuf {
    Path::new(path).with_extension("tmp")
}

/// A path beside a file whose pieces are collected in the same place; None: that place is the file itself.
fn beside(path: &str) -> Option<String> {
    if part_of(path) == Path::new(path) {
        return None;
    }
    let beside = ["kse", "kse2"].map(|extension| Path::new(path).with_extension(extension));
    let other = beside.iter().find(|beside| *beside != Path::new(path))?;
    other.to_str().map(str::to_owned)
}

/// Empties what is left of a file whose sending ended in the middle: the rest of a longer one would never be
/// complete.
async fn forget_part(courier: &Courier<'_>, path: &str) -> Result<()> {
    let part = part_of(path);
    let part = part.to_str().ok_or_else(|| Error::internal("a path in the guest is not UTF-8"))?;
    courier.take(empty_file(part.to_owned())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_collected_beside_itself() {
        for (path, part, other) in [
            ("/s/c1-0-hosts", "/s/c1-0-hosts.tmp", Some("/s/c1-0-hosts.kse")),
            ("/s/c1-0-resolv.conf", "/s/c1-0-resolv.tmp", Some("/s/c1-0-resolv.kse")),
            ("/s/c1-0-x.kse", "/s/c1-0-x.tmp", Some("/s/c1-0-x.kse2")),
            ("/s/c1-0-x.tmp", "/s/c1-0-x.tmp", None),
        ] {
            assert_eq!((part_of(path).to_str(), beside(path).as_deref()), (Some(part), other));
        }
    }
}
