//! Orders of sending, by tables.

use super::*;

fn folder(path: &str) -> Entry {
    Entry { path: path.into(), node: Node::Directory, mode: 0o40_755, uid: 0, gid: 0 }
}

fn file(path: &str) -> Entry {
    Entry { node: Node::File, mode: 0o100_644, ..folder(path) }
}

fn link(path: &str, to: &str) -> Entry {
    Entry { node: Node::Link(to.into()), mode: 0o120_777, ..folder(path) }
}

/// As it is listed: breadth first, names in order.
fn volume(revision: &str, keys: &[&str]) -> Vec<Entry> {
    let mut entries = vec![folder(""), folder("..0"), folder(revision), link("..data", revision)];
    entries.extend(keys.iter().map(|key| link(key, &format!("..data/{key}"))));
    entries.push(file("..0/old"));
    entries.extend(keys.iter().map(|key| file(&format!("{revision}/{key}"))));
    entries
}

fn paths<'a>(steps: &[&'a Entry]) -> Vec<&'a str> {
    steps.iter().map(|entry| entry.path.to_str().expect("text")).collect()
}

fn set(keys: &[&str]) -> BTreeSet<PathBuf> {
    keys.iter().map(PathBuf::from).collect()
}

fn layout(entries: &[Entry]) -> Layout {
    let Listed::Kubelets(layout) = Listed::of(entries) else { panic!("{entries:?}") };
    layout
}

#[test]
fn a_layout_is_known_by_its_link_and_a_half_one_is_none_to_go_by() {
    let entries = volume("..1", &["a", "b"]);
    assert_eq!(layout(&entries), Layout { data: "..1".into(), keys: set(&["a", "b"]) });
    assert_eq!(Listed::of(&[folder(""), link("..data", "..2")]), Listed::Changing);
    for to in ["a", "../x", "..", "..data", "/..1", "..1/x", ""] {
        assert_eq!(Listed::of(&[folder(""), folder("a"), link("..data", to)]), Listed::Other, "{to}");
    }
    assert_eq!(Listed::of(&[folder(""), folder("..data")]), Listed::Other);
    assert_eq!(Listed::of(&[file("")]), Listed::Other);
}

#[test]
fn all_of_a_volume_is_sent_folders_first_and_again_at_the_end() {
    let entries = [
        folder(""),
        folder("a"),
        file("b.tmp"),
        file("b.x"),
        link("c.tmp", "b.x"),
        file("c.x"),
        folder("a/d"),
        file("a/d/e"),
    ];
    let wanted = ["", "b.x", "c.x", "b.tmp", "c.tmp", "a", "a/d", "a/d/e", "a/d", "a", ""];
    assert_eq!(paths(&whole(&entries, None)), wanted);
    assert_eq!(paths(&whole(&[file("")], None)), [""]);
    let entries = volume("..1", &["k"]);
    let wanted = ["", "..data", "k", "..1", "..1/k", "..1", ""];
    assert_eq!(paths(&whole(&entries, Some(&layout(&entries)))), wanted, "without the old revision");
}

#[test]
fn a_revision_is_complete_before_it_is_shown_and_no_known_key_is_sent_again() {
    let first = volume("..1", &["a", "b"]);
    let shown = Shown::new(layout(&first), set(&[]));
    let none = set(&[]);
    assert_eq!(shown.next(&first, &layout(&first), &none), Ok(Revision::default()));
    // A key is new and one has vanished.
    let second = volume("..2", &["b", "c"]);
    let revision = shown.next(&second, &layout(&second), &none).expect("revision");
    assert_eq!(paths(&revision.steps), ["..2", "..2/b", "..2/c", "..2", "..data", "c", ""]);
    // The kubelet makes new keys' links after its swap.
    let swapped = Shown { data: Some("..2".into()), ..shown.clone() };
    assert_eq!(paths(&swapped.next(&second, &layout(&second), &none).expect("revision").steps), ["c", ""]);
    let unknown = Shown { data: None, ..shown };
    let revision = unknown.next(&first, &layout(&first), &none).expect("revision");
    assert_eq!(paths(&revision.steps), ["..1", "..1/a", "..1/b", "..1", "..data", ""]);
}

#[test]
fn no_order_shows_the_text_of_a_sealed_key() {
    let first = volume("..1", &["plain", "secret"]);
    let shown = Shown::new(layout(&first), set(&["secret"]));
    let second = volume("..2", &["another", "plain", "secret"]);
    let revision = shown.next(&second, &layout(&second), &set(&["another", "secret"])).expect("revision");
    let wanted = ["..2", "..2/another", "..2/plain", "..2/secret", "..2", "..data", ""];
    assert_eq!(paths(&revision.steps), wanted);
    assert_eq!(revision.withheld, [Path::new("another")]);
    let e = shown.next(&second, &layout(&second), &set(&["plain", "secret"])).expect_err("now sealed");
    assert!(e.to_string().starts_with("plain: its new text is sealed"), "{e}");
}
