//! Makes the pod's cgroup. Its ancestors that no pod found there are recorded by each pod below them, so that
//! they go with the last one, whichever that is; those that others made are never touched.
//!
//! What another pod has to remove is in its journal until it has tried to. Making and removing exclude each other
//! on the node: a lock on the folder of all pods, held for milliseconds.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::failpoint::{Step, hit};
use crate::host::begun::blocking;
use crate::host::cgroup;
use crate::host::lock::lock_folder;
use crate::limits;
use crate::pod::Pod;
use crate::pod::journal::{self, Cleanup};

/// Records and makes the leaf and what is missing above it.
pub(crate) async fn make(pod: &Pod, leaf: &Path) -> Result<()> {
    let (own, path) = (pod.parts.dir.clone(), leaf.to_path_buf());
    let (_lock, to_record) = blocking("look for cgroups", move || {
        let lock = lock_folder(own.parent().unwrap_or(&own), limits::host::CLEANUP_STEP);
        Ok((lock, to_record(&path, &own)))
    })
    .await?;
    for path in to_record {
        pod.journal.record(&Cleanup::Cgroup { path })?;
    }
    hit(Step::CgroupRecorded)?;
    let path = leaf.to_path_buf();
    blocking("make cgroup", move || cgroup::make(&path)).await?;
    Ok(())
}

/// Outermost first, the leaf last.
fn to_record(leaf: &Path, own: &Path) -> Vec<PathBuf> {
    // Read before looking what is there: a pod forgets its entries after it has tried to remove them.
    let others = recorded_by_others(own);
    let mut list = cgroup::above(leaf);
    list.retain(|folder| others.contains(folder) || !folder.is_dir());
    list.reverse();
    list.push(leaf.to_path_buf());
    list
}

fn recorded_by_others(own: &Path) -> Vec<PathBuf> {
    let pods = own.parent().and_then(|all| std::fs::read_dir(all).ok()).into_iter().flatten().flatten();
    let others = pods.map(|entry| entry.path()).filter(|dir| dir != own);
    let entries = others.filter_map(|dir| journal::read(&dir).ok()).flatten().flatten();
    entries
        .filter_map(|entry| match entry {
            Cleanup::Cgroup { path } => Some(path),
            Cleanup::EmptyDir { .. }
            | Cleanup::Tap { .. }
            | Cleanup::Mirror { .. }
            | Cleanup::Path { .. } => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::journal::Journal;

    #[test]
    fn what_another_pod_made_above_is_recorded_too_and_what_others_made_is_not() {
        let all = tempfile::tempdir().expect("folder");
        let (own, other) = (all.path().join("own"), all.path().join("other"));
        for dir in [&own, &other] {
            std::fs::create_dir(dir).expect("folder");
        }
        let leaf = Path::new("kst-a/b/leaf");
        let mut everything = vec![leaf.to_path_buf()];
        everything.extend(cgroup::above(leaf));
        everything.reverse();
        assert_eq!(to_record(leaf, &own), everything, "nothing is there");
        // Every folder above it is there: the tops of the hierarchies.
        let leaf = Path::new("./leaf");
        assert_eq!(to_record(leaf, &own), [leaf]);
        let above = cgroup::above(leaf);
        let made = above.first().expect("a hierarchy");
        let journal = Journal::open(&other).expect("journal");
        journal.record(&Cleanup::Cgroup { path: made.clone() }).expect("record");
        assert_eq!(to_record(leaf, &own), [made.as_path(), leaf]);
    }
}
