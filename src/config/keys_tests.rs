use std::collections::BTreeSet;

use super::*;
use crate::config::file;

const SHIPPED: &str = include_str!("../../configs/kata-se.toml");

fn of(texts: &[&str]) -> Result<Config> {
    file::parse(&texts.iter().map(|text| ("/c.toml".into(), (*text).to_owned())).collect::<Vec<_>>())
}

/// A file that gives one key this value.
fn one(key: &Key, value: &str) -> String {
    let (section, name) = key.parts();
    format!("[{section}]\n{name} = {value}\n")
}

#[test]
fn the_defaults() {
    let seconds = Duration::from_secs;
    let wanted = Config {
        files: Vec::new(),
        qemu: QemuConfig {
            path: "/usr/bin/qemu-system-s390x".into(),
            accelerator: Accelerator::Kvm,
            user: "kata-se".into(),
        },
        boot: Boot::Sealed { image: "/usr/share/kata-se/kata-se.img".into() },
        allowed_images: Vec::new(),
        host_key_documents: Vec::new(),
        verify_digest: false,
        extensions: BTreeMap::new(),
        seccomp: false,
        memory_mib: 2048,
        vcpus: 1,
        max_memory_mib: 0,
        max_vcpus: 0,
        shim_in_pod_cgroup: true,
        vsock: VsockConfig::Vhost,
        agent: AgentConfig {
            connect_timeout: seconds(45),
            create_timeout: seconds(60),
            image_pull_timeout: seconds(600),
            call_timeout: seconds(60),
            health_timeout: seconds(10),
        },
        policy_file: None,
        annotations: AnnotationsConfig {
            enabled: Vec::new(),
            unknown: Unknown::Refuse,
            max_create_timeout: seconds(1200),
        },
        rootfs: RootfsConfig {
            mode: RootfsMode::GuestPull,
            trust_host: false,
            cache_dir: "/var/lib/kata-se/layers".into(),
            cache_mib: 10240,
            mkfs: "/usr/bin/mkfs.erofs".into(),
        },
        volumes: VolumesConfig {
            empty_dir: EmptyDirMode::BlockEncrypted,
            empty_dir_gib: 10,
            max_empty_dir_gib: 100,
            copied_mib: 64,
            copied_files: 4096,
        },
        log: LogLevel::Info,
    };
    assert_eq!(of(&[]), Ok(wanted));
}

/// Values other than the default, as they are written in a file.
fn others(key: &Key) -> Vec<String> {
    match &key.kind {
        Path(..) => vec![format!("\"/other/{}\"", key.name)],
        RequiredPath(..) => vec![key.kind.written()],
        Paths(..) => vec![format!("[\"/other/{}\"]", key.name)],
        NamedPaths(..) => vec![format!("{{ other = \"/other/{}\" }}", key.name)],
        OptionalPath(..) => vec![format!("\"/other/{}\"", key.name)],
        SomeOf(words, _) => words.iter().map(|word| format!("[\"{word}\"]")).collect(),
        Text(..) => vec![format!("\"other {}\"", key.name)],
        Switch(on, _) => vec![(!on).to_string()],
        Number(default, bounds, ..) => {
            vec![if default == bounds.end() { bounds.start() } else { bounds.end() }.to_string()]
        }
        OneOf(default, words) => {
            words.iter().map(|(word, _)| *word).filter(|w| w != default).map(|w| format!("\"{w}\"")).collect()
        }
        OneOfAsAbove(words) => words.iter().skip(1).map(|(word, _)| format!("\"{word}\"")).collect(),
    }
}

/// The field of `Config` that a key sets, in the words of its `Debug`.
fn field(key: &Key) -> String {
    let (section, name) = key.parts();
    match (section, name.trim_end_matches("_s")) {
        ("guest", "confidential") => "boot".to_owned(),
        ("guest", "kernel_parameters") => "boot.parameters".to_owned(),
        ("guest", name @ ("image" | "kernel" | "initrd")) => format!("boot.{name}"),
        ("guest" | "host", name) | ("agent", name @ "policy_file") => name.to_owned(),
        ("vsock", "device") => "vsock".to_owned(),
        ("log", "level") => "log".to_owned(),
        (section, name) => format!("{section}.{name}"),
    }
}

/// The fields of a configuration, `(path, value)`, from its `Debug`.
fn fields(config: &Config) -> BTreeSet<(String, String)> {
    let mut path: Vec<String> = Vec::new();
    let mut found = BTreeSet::new();
    let text = format!("{config:#?}");
    for line in text.lines().skip(1).filter(|line| !line.trim().starts_with(['}', ']', ')'])) {
        let depth = (line.len() - line.trim_start().len()) / 4;
        let (name, value) = line.trim().split_once(": ").unwrap_or(("", line.trim()));
        path.truncate(depth.saturating_sub(1));
        if !name.is_empty() {
            path.push(name.to_owned());
        }
        found.insert((path.join("."), value.to_owned()));
    }
    found
}

/// Other keys that some keys need: the first that make a file valid are taken.
const COMPANIONS: [&str; 6] = [
    "",
    "[rootfs]\ntrust_host = true\n",
    "[guest]\nkernel = \"/k\"\ninitrd = \"/i\"\n",
    "[guest]\nconfidential = false\nkernel = \"/k\"\ninitrd = \"/i\"\n",
    "[vsock]\nprogram = \"/p\"\n",
    "[vsock]\ndevice = \"vhost-user\"\nprogram = \"/p\"\n",
];

#[test]
fn every_key_sets_its_own_field_to_the_value_that_is_given() {
    for (key, value) in KEYS.iter().flat_map(|key| others(key).into_iter().map(move |value| (key, value))) {
        let text = one(key, &value);
        let try_with = |companion| Some((companion, of(&[companion, &text]).ok()?));
        let (companion, config) = COMPANIONS.into_iter().find_map(try_with).expect(key.name);
        let before = of(&[companion]).or_else(|_| of(&[])).expect("configuration");
        let (before, after) = (fields(&before), fields(&config));
        let field = field(key);
        for (changed, _) in after.symmetric_difference(&before) {
            let default_of_guest = key.name == "guest.confidential" && changed == "rootfs.mode";
            assert!(changed.starts_with(&field) || default_of_guest, "{text} changes {changed}, not {field}");
        }
        // A word is the name of its variant; what `confidential` chooses has another name.
        let plain = |text: &str| text.to_lowercase().replace(['-', '[', ']', '"'], "");
        let wanted = match (key.name, value.split_once(" = ")) {
            ("guest.confidential", _) => "plain".to_owned(),
            (_, Some((_, path))) => plain(path.trim_end_matches(" }")),
            _ => plain(&value),
        };
        let mut new = after.difference(&before).map(|(_, value)| plain(value));
        assert!(new.any(|value| value.starts_with(&wanted)), "{text} does not arrive in {field}");
    }
}

#[test]
fn the_rows_are_consistent() {
    let names: BTreeSet<_> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(names.len(), KEYS.len(), "a name is used twice");
    let mut sections: Vec<_> = KEYS.iter().map(|key| key.parts().0).collect();
    sections.dedup();
    assert_eq!(sections.len(), sections.iter().collect::<BTreeSet<_>>().len(), "a section is in two places");
    for key in KEYS {
        match &key.kind {
            Number(default, bounds, ..) => assert!(bounds.contains(default), "{}", key.name),
            OneOf(default, words) => assert!(words.iter().any(|(word, _)| word == default), "{}", key.name),
            RequiredPath(..) => {
                let required = |rule: &Rule| matches!(rule, Only(scope) if !scope.required.is_empty());
                assert!(key.rules.iter().any(required), "{}: nothing says where it is required", key.name);
            }
            OneOfAsAbove(words) => assert!(!words.is_empty(), "{}", key.name),
            Path(..) | OptionalPath(..) | Paths(..) | NamedPaths(..) | Text(..) | Switch(..) | SomeOf(..) => {
            }
        }
    }
}

#[test]
fn what_the_host_gives_is_run_by_a_confidential_guest_only_if_its_owner_says_so() {
    let plain =
        "[qemu]\naccelerator = \"tcg\"\n[guest]\nconfidential = false\nkernel = \"/k\"\ninitrd = \"/i\"\n";
    let trusted = "[rootfs]\ntrust_host = true\n";
    for (mode, wanted) in [("packed", RootfsMode::Packed), ("block", RootfsMode::Block)] {
        let given = format!("[rootfs]\nmode = \"{mode}\"\n");
        let e = of(&[&given]).expect_err("not trusted").to_string();
        assert!(e.starts_with("/c.toml:2: rootfs.mode: the host could change what"), "{e}");
        for other in [plain, trusted] {
            assert_eq!(of(&[other, &given]).expect(mode).rootfs.mode, wanted);
        }
    }
    assert_eq!(of(&[plain]).expect("plain").rootfs.mode, RootfsMode::Packed);
    assert_eq!(of(&[trusted]).expect("trusted").rootfs.mode, RootfsMode::GuestPull);
    let given = "[rootfs]\nmode = \"guest-pull\"\n";
    assert_eq!(of(&[plain, given]).expect("plain").rootfs.mode, RootfsMode::GuestPull);
    assert!(of(&[plain, trusted]).is_err(), "it is about confidential guests");
}

/// configs/kata-se.toml: every key with its default; those that have no meaning by default are comments.
fn shipped() -> String {
    let default = of(&[]).expect("defaults");
    let mut text = "# kata-se: configuration of a node with Secure Execution.\n\
         #\n\
         # Every value below is the default: a node's own file needs only what it changes.\n\
         #\n"
    .to_owned();
    let comment = |lines: &[&str]| lines.iter().map(|line| format!("#{line}\n")).collect::<String>();
    text += &comment(FILES);
    let mut last = "";
    for key in KEYS {
        let (section, name) = key.parts();
        if section != last {
            text += &format!("\n[{section}]\n");
        }
        last = section;
        let off = key.rules.iter().any(|rule| matches!(rule, Only(scope) if !(scope.holds)(&default)));
        let mark = if off { "#" } else { "" };
        text += &format!("{}{mark}{name} = {}\n", comment(key.doc), key.kind.written());
    }
    text
}

#[test]
fn the_shipped_file_is_made_from_the_table() {
    let wanted = shipped();
    if std::env::var_os("KATA_SE_BLESS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/kata-se.toml");
        std::fs::write(path, &wanted).expect("write the shipped file");
        return;
    }
    assert_eq!(
        SHIPPED, wanted,
        "update configs/kata-se.toml with KATA_SE_BLESS=1 cargo test --lib shipped_file"
    );
    assert_eq!(of(&[SHIPPED]), of(&[]));
}
