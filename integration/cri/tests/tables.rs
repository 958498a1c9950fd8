//! The tables of docs/cri.md and docs/promises.md name tests that exist, every CRI test, and every test file.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Rust files below a folder: name without its ending, and text.
fn sources(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let name = path.file_stem().expect("name").to_string_lossy().into_owned();
            found.push((name, fs::read_to_string(&path).expect("source")));
        }
    }
    found
}

/// The files of integration/tests/tests.
fn test_files() -> BTreeMap<String, String> {
    sources(&root().join("integration/tests/tests")).into_iter().collect()
}

/// Names of functions that are tests by attribute.
fn tests(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        let name = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        match name.and_then(|rest| rest.split('(').next()) {
            Some(name) if is_test => {
                found.insert(name.to_owned());
                is_test = false;
            }
            Some(_) => {}
            None => is_test |= line == "#[test]" || line.starts_with("#[tokio::test"),
        }
    }
    found
}

/// The tests that `on_each_version!` lists; none if the file has no such list.
fn cri_tests(source: &str) -> BTreeSet<String> {
    let Some((_, list)) = source.split_once("on_each_version! {") else { return BTreeSet::new() };
    let (list, _) = list.split_once('}').expect("the end of the list");
    let words = list.split_whitespace().map(|word| word.trim_end_matches([',', ';']));
    words.filter(|word| !word.ends_with(':')).map(str::to_owned).collect()
}

/// The cells of each row of a document's tables, without their heads.
fn rows(document: &str) -> Vec<Vec<&str>> {
    let lines: Vec<&str> = document.lines().collect();
    let is_row = |line: &str| line.starts_with("| ");
    let rows = lines.iter().enumerate().filter(|(n, line)| {
        let head = lines.get(n + 1).is_some_and(|next| next.starts_with("| ---"));
        is_row(line) && !line.starts_with("| ---") && !head
    });
    rows.map(|(_, line)| line.trim_matches([' ', '|']).split(" | ").map(str::trim).collect()).collect()
}

/// Names between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn every_cri_test_is_in_the_table_and_exists() {
    let table = read("docs/cri.md");
    let named: BTreeSet<&str> =
        rows(&table).iter().flat_map(|row| quoted(row.last().expect("a cell"))).collect();
    let files = test_files();
    let listed: BTreeSet<String> = files.values().flat_map(|source| cri_tests(source)).collect();
    let listed: BTreeSet<&str> = listed.iter().map(String::as_str).collect();
    assert_eq!(named, listed, "rows of docs/cri.md on the left, tests on the right");
}

#[test]
fn every_promise_names_tests_that_exist() {
    let table = read("docs/promises.md");
    let files = test_files();
    let library: BTreeSet<String> =
        sources(&root().join("src")).iter().flat_map(|(_, source)| tests(source)).collect();
    let mut promises = BTreeSet::new();
    for row in rows(&table) {
        let [promise, held, shown, run_by] = row[..] else { panic!("not four cells: {row:?}") };
        let name = promise.split("**").nth(1).unwrap_or_else(|| panic!("no name in bold: {promise}"));
        assert!(promises.insert(name), "two promises are called {name:?}");
        assert!(!held.is_empty(), "{name}: what is held today?");
        let unheld = shown == "not held yet";
        assert_eq!(unheld, run_by == "–", "{name}: run by {run_by:?}");
        assert_eq!(unheld, quoted(shown).next().is_none(), "{name}: shown by {shown:?}");
        for test in quoted(shown) {
            if let Some(script) = test.strip_prefix("hack/") {
                let script = script.split(' ').next().unwrap_or_default();
                assert!(root().join("hack").join(script).is_file(), "{name}: there is no {test}");
                continue;
            }
            let (file, function) = test.split_once("::").unwrap_or_else(|| panic!("not file::test: {test}"));
            let exists = match file {
                "unit" => library.contains(function),
                file => files.get(file).is_some_and(|source| tests(source).contains(function)),
            };
            assert!(exists, "{name}: there is no test {test}");
        }
    }
    assert!(promises.len() > 40, "only {} promises", promises.len());
}

#[test]
fn every_test_file_is_named_by_a_table() {
    let (promises, cri) = (read("docs/promises.md"), read("docs/cri.md"));
    let named: BTreeSet<&str> = rows(&promises)
        .iter()
        .flat_map(|row| quoted(row[2]))
        .filter_map(|test| test.split_once("::"))
        .map(|(file, _)| file)
        .collect();
    for (file, source) in test_files() {
        let by_cri = cri_tests(&source).iter().any(|test| cri.contains(&format!("`{test}`")));
        assert!(named.contains(file.as_str()) || by_cri, "{file} is in no table: what does it guard?");
    }
}
