//! A volume as folders, files and links, and what is sent of it, in which order: all of it before its container is
//! made, and later what a new revision adds.
//!
//! The kubelet's volumes have one layout: a folder `..TIME` with the content, a link `..data` to it, and for each key
//! a link through `..data`. A revision is another folder, to which `..data` then leads. The order is made for an
//! agent that can neither delete nor rename: it writes a file `a.x` by way of `a.tmp`, and its parent folder gets
//! each new element's owner.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// One thing to make in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Below the volume; empty for the volume itself.
    pub path: PathBuf,
    pub node: Node,
    /// Permission bits (07777) with the file's type.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Directory,
    File,
    /// A link with its text, which means something in the container only.
    Link(Vec<u8>),
}

/// The link to the current revision in the kubelet's layout.
pub(crate) const DATA: &str = "..data";

/// A volume in the kubelet's layout, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The folder that `..data` leads to.
    pub data: PathBuf,
    /// The links of the keys.
    pub keys: BTreeSet<PathBuf>,
}

/// How a listed volume is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    Kubelets(Layout),
    Other,
    /// Nothing to go by: it was changed while it was listed.
    Changing,
}

impl Listed {
    pub(crate) fn of(entries: &[Entry]) -> Self {
        let link = entries.iter().find(|entry| entry.path == Path::new(DATA));
        let Some(Entry { node: Node::Link(text), .. }) = link else { return Self::Other };
        let Some(data) = std::str::from_utf8(text).ok().map(Path::new).filter(|to| is_revision(to)) else {
            return Self::Other;
        };
        if !entries.iter().any(|entry| entry.path == data && entry.node == Node::Directory) {
            return Self::Changing;
        }
        let top =
            |entry: &&Entry| matches!(entry.node, Node::Link(_)) && entry.path.components().count() == 1;
        let keys = entries.iter().filter(top).map(|entry| entry.path.clone()).filter(|path| !is_hidden(path));
        Self::Kubelets(Layout { data: data.to_owned(), keys: keys.collect() })
    }
}

/// A name in the volume's own folder that is for revisions.
fn is_hidden(path: &Path) -> bool {
    path.to_str().is_some_and(|name| name.starts_with(".."))
}

fn is_revision(to: &Path) -> bool {
    matches!(to.components().collect::<Vec<_>>()[..], [Component::Normal(_)])
        && is_hidden(to)
        && to != Path::new(DATA)
}

/// Everything, for a guest that has nothing of it. Of the kubelet's layout only the current revision.
pub(crate) fn whole<'a>(entries: &'a [Entry], layout: Option<&Layout>) -> Vec<&'a Entry> {
    let old = |entry: &Entry| {
        let top = entry.path.components().next().map(|first| Path::new(first.as_os_str()));
        let (Some(layout), Some(top)) = (layout, top) else { return false };
        is_hidden(top) && top != Path::new(DATA) && top != layout.data
    };
    in_order(entries.iter().filter(|entry| !old(entry)).collect())
}

/// What the guest shows of a volume in the kubelet's layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    /// None: an update has failed, and it is not known where `..data` leads.
    pub data: Option<PathBuf>,
    pub keys: BTreeSet<PathBuf>,
    /// Those whose text was sealed when the container was made: the agent has put the clear text in its place once,
    /// and their links are never sent again.
    pub sealed: BTreeSet<PathBuf>,
}

/// What a later revision adds to what the guest shows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Revision<'a> {
    /// In this order. Empty: nothing has changed.
    pub steps: Vec<&'a Entry>,
    /// New keys that are left out, since their text is sealed and nobody would unseal it.
    pub withheld: Vec<&'a Path>,
}

impl Shown {
    pub(crate) fn new(layout: Layout, sealed: BTreeSet<PathBuf>) -> Self {
        Self { data: Some(layout.data), keys: layout.keys, sealed }
    }

    /// `sealed`: the keys whose text is sealed now.
    pub(crate) fn next<'a>(
        &self,
        entries: &'a [Entry],
        layout: &Layout,
        sealed: &BTreeSet<PathBuf>,
    ) -> Result<Revision<'a>> {
        if let Some(key) = self.keys.iter().find(|key| sealed.contains(*key) && !self.sealed.contains(*key)) {
            return Err(Error::precondition(format!(
                "{}: its new text is sealed, and only a new container gets it unsealed: restart the container",
                key.display()
            )));
        }
        let added = |entry: &&Entry| layout.keys.contains(&entry.path) && !self.keys.contains(&entry.path);
        let (withheld, links): (Vec<_>, Vec<_>) =
            entries.iter().filter(added).partition(|entry| sealed.contains(&entry.path));
        let withheld = withheld.into_iter().map(|entry| entry.path.as_path()).collect();
        let mut steps = Vec::new();
        if self.data.as_ref() != Some(&layout.data) {
            steps = in_order(entries.iter().filter(|entry| entry.path.starts_with(&layout.data)).collect());
            steps.extend(entries.iter().filter(|entry| entry.path == Path::new(DATA)));
        }
        steps.extend(links);
        if !steps.is_empty() {
            steps.extend(entries.iter().filter(|entry| entry.path.as_os_str().is_empty()));
        }
        Ok(Revision { steps, withheld })
    }
}

/// Each folder before what is in it. In a folder files come first, those called `a.tmp` last, since other files pass
/// through that name. Then the folders again, the deepest first: their owners are those of what was made in them.
fn in_order(entries: Vec<&Entry>) -> Vec<&Entry> {
    let mut below: BTreeMap<Option<&Path>, Vec<&Entry>> = BTreeMap::new();
    for entry in &entries {
        if entry.node != Node::Directory {
            below.entry(entry.path.parent()).or_default().push(entry);
        }
    }
    let is_temporary = |entry: &Entry| entry.path.extension().is_some_and(|extension| extension == "tmp");
    for elements in below.values_mut() {
        elements.sort_by_key(|entry| (entry.node != Node::File, is_temporary(entry)));
    }
    // A volume that is a file.
    let mut order = below.remove(&None).unwrap_or_default();
    let folders: Vec<&Entry> = entries.into_iter().filter(|entry| entry.node == Node::Directory).collect();
    for folder in &folders {
        order.push(folder);
        order.extend(below.remove(&Some(folder.path.as_path())).unwrap_or_default());
    }
    order.extend(again(&folders));
    order
}

/// Folders in which something was made, the deepest first.
fn again<'a>(folders: &[&'a Entry]) -> Vec<&'a Entry> {
    let mut again = folders.to_vec();
    again.sort_by_key(|entry| std::cmp::Reverse(entry.path.components().count()));
    again
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
