//! The table of CRI features in docs/cri.md names tests that exist, and every CRI test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The tests that `on_each_version!` lists in the files cri_*.rs.
fn tests(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root.join("integration/tests/tests")).expect("tests").flatten() {
        if !entry.file_name().to_string_lossy().starts_with("cri_") {
            continue;
        }
        let text = fs::read_to_string(entry.path()).expect("test file");
        let (_, list) = text.split_once("on_each_version! {").expect("a list of tests");
        let (list, _) = list.split_once('}').expect("its end");
        let words = list.split_whitespace().map(|word| word.trim_end_matches([',', ';']));
        found.extend(words.filter(|word| !word.ends_with(':')).map(str::to_owned));
    }
    found
}

/// The last column of the table's rows: names between backticks.
fn named(table: &str) -> BTreeSet<String> {
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    let cells = rows.filter_map(|row| row.trim_end_matches([' ', '|']).rsplit('|').next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

#[test]
fn every_named_test_exists_and_every_test_is_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let table = fs::read_to_string(root.join("docs/cri.md")).expect("docs/cri.md");
    assert_eq!(named(&table), tests(&root), "rows of docs/cri.md on the left, tests on the right");
}
