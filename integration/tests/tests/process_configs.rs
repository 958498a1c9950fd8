//! The shipped snippets for containerd, CRI-O and Kubernetes use keys that those know, and consistent names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use harness::cached;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../configs").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(file(name)).expect(name)
}

/// `section.key` to value in the sections about our runtime; both kinds of quotes are equal.
fn keys(toml: &str) -> BTreeMap<String, String> {
    let (mut section, mut found) = (String::new(), BTreeMap::new());
    for line in toml.lines().map(|line| line.trim().replace('\'', "\"")) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((key, value)) = line.split_once(" = ") {
            if section.contains("runtimes.kata-se") && !line.starts_with('#') {
                found.insert(format!("{section}.{key}"), value.to_owned());
            }
        }
    }
    found
}

#[test]
fn each_containerd_takes_every_key_of_its_snippet() {
    for (version, snippet) in
        [("1.6", "containerd-1.toml"), ("1.7", "containerd-1.toml"), ("2", "containerd-2.toml")]
    {
        let mut command = Command::new(cached(&format!("containerd/{version}/usr/bin/containerd")));
        let output =
            command.arg("--config").arg(file(snippet)).args(["config", "dump"]).output().expect("dump");
        assert!(output.status.success(), "{version}: {}", String::from_utf8_lossy(&output.stderr));
        let known = keys(&String::from_utf8_lossy(&output.stdout));
        let given = keys(&text(snippet));
        assert!(given.len() >= 5, "{given:?}");
        for (key, value) in given {
            // 1.6 has one snapshotter for all runtimes, and ignores the key.
            if version != "1.6" || !key.ends_with(".snapshotter") {
                assert_eq!(known.get(&key), Some(&value), "{version}: {key}");
            }
        }
    }
}

/// Pods of the handler `kata-se` rely on protection: the sample of one without it has another name.
#[test]
fn unprotected_guests_have_a_handler_of_their_own_in_every_snippet() {
    for (snippet, key) in [
        ("containerd-1.toml", "ConfigPath"),
        ("containerd-2.toml", "ConfigPath"),
        ("crio.conf", "runtime_config_path"),
    ] {
        let sample = text(snippet).replace("\n#", "\n");
        let configured = keys(&sample).into_iter().filter(|(name, _)| name.ends_with(key));
        let files: BTreeMap<_, _> =
            configured.map(|(name, file)| (name.contains("unprotected"), file)).collect();
        let own = |name: &str| format!("\"/etc/kata-se/{name}.toml\"");
        assert_eq!(files, BTreeMap::from([(false, own("config")), (true, own("unprotected"))]), "{snippet}");
    }
}

#[test]
fn crios_snippet_has_only_keys_that_crio_knows() {
    // The toml names of RuntimeHandler in cri-o's pkg/config/config.go.
    const KNOWN: [&str; 6] = [
        "runtime_type",
        "runtime_path",
        "runtime_root",
        "runtime_config_path",
        "privileged_without_host_devices",
        "allowed_annotations",
    ];
    let given = keys(&text("crio.conf"));
    assert_eq!(given.len(), KNOWN.len(), "{given:?}");
    for name in KNOWN {
        assert!(given.contains_key(&format!("crio.runtime.runtimes.kata-se.{name}")), "{name}: {given:?}");
    }
    assert_eq!(given["crio.runtime.runtimes.kata-se.runtime_type"], "\"vm\"");
}

#[test]
fn the_runtime_class_names_the_runtime_of_the_snippets() {
    let class = text("runtimeclass.yaml");
    assert!(class.lines().any(|line| line == "handler: kata-se"), "{class}");
    for (key, unit) in [("memory", "Mi"), ("cpu", "m")] {
        let line = class.lines().find_map(|line| line.trim().strip_prefix(&format!("{key}: ")));
        let number = line.and_then(|value| value.strip_suffix(unit)?.parse::<u32>().ok());
        assert!(number.is_some_and(|number| number > 0), "{key}: {line:?}");
    }
}
