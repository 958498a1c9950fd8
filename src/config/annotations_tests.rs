use std::collections::BTreeSet;

use base64::Engine;

use super::*;
use crate::config::file;

fn config(text: &str) -> Config {
    file::parse(&[("/c.toml".into(), text.to_owned())]).expect("configuration")
}

fn with(text: &str, key: &str, value: &str) -> std::result::Result<Applied, String> {
    let annotations = HashMap::from([(key.to_owned(), value.to_owned())]);
    apply(config(text), &annotations).map_err(|e| e.to_string())
}

fn setting(text: &str, name: &str, value: &str) -> std::result::Result<Applied, String> {
    with(text, &format!("{PREFIX}{name}"), value)
}

/// The image that would be booted with an annotation, or the refusal.
fn booted(text: &str, key: &str, value: &str) -> std::result::Result<PathBuf, String> {
    match with(text, key, value)?.config.boot {
        Boot::Sealed { image } => Ok(image),
        Boot::Plain { .. } => Err("plain".to_owned()),
    }
}

const TWO: &str = "[guest]\nimage = \"/i/one\"\nallowed_images = [\"/i/two\"]";
const KEY: &str = "io.katacontainers.config.hypervisor.image";
const HOSTILE: [&str; 9] = ["0", "-1", "9223372036854775808", "NaN", "1e309", "lots", "/i/two", "", "\n"];

#[test]
fn a_pod_boots_the_configured_image_or_one_that_is_listed() {
    for (key, value, wanted) in [
        ("io.katacontainers.pkg.oci.bundle_path", "/x", "/i/one"),
        ("image", "/i/two", "/i/one"),
        (KEY, "/i/one", "/i/one"),
        (KEY, "/i/two", "/i/two"),
    ] {
        assert_eq!(booted(TWO, key, value), Ok(wanted.into()), "{key} {value}");
    }
}

#[test]
fn what_is_not_listed_is_refused_with_the_key_that_would_allow_it() {
    for value in ["/i/three", "/i/../i/two", "/i/two/", "//i/two", "i/two", "", "/i/two\n"] {
        let e = booted(TWO, KEY, value).expect_err(value);
        assert!(e.starts_with("annotation io.katacontainers.config.hypervisor.image = \""), "{e}");
        assert!(e.ends_with("added to guest.allowed_images"), "{e}");
    }
    let plain =
        "[qemu]\naccelerator = \"tcg\"\n[guest]\nconfidential = false\nkernel = \"/k\"\ninitrd = \"/i\"";
    assert!(booted(plain, KEY, "/i/one").expect_err("plain").contains("boot no sealed image"));
}

#[test]
fn initdata_and_a_policy_are_taken_from_any_pod_and_never_quoted() {
    let text = include_str!("testdata/initdata.base64");
    let name = "hypervisor.cc_init_data";
    assert_eq!(setting("", name, text).expect("initdata").initdata, Initdata::of_annotation(text).ok());
    let policy = base64::engine::general_purpose::STANDARD.encode("package agent_policy\n");
    let applied = setting("", "agent.policy", &policy).expect("policy");
    assert_eq!(applied.policy.expect("policy").text(), "package agent_policy\n");
    for (name, wanted) in [(name, "not a whole gzip stream"), ("agent.policy", "has no line `package ")] {
        let e = setting("", name, "c2VjcmV0").expect_err(name);
        let wanted = format!("annotation {PREFIX}{name}: {wanted}");
        assert!(e.starts_with(&wanted) && !e.contains("c2VjcmV0") && !e.contains("secret"), "{e}");
    }
}

#[test]
fn a_size_is_taken_where_the_owner_allows_it_and_within_the_owners_maximum() {
    let allowed = "[annotations]\nenabled = [\"hypervisor.default_memory\", \"hypervisor.default_vcpus\"]\n\
                   [guest]\nmax_memory_mib = 8192\nmax_vcpus = 8";
    let size = |name: &str, value: &str| {
        setting(allowed, name, value).map(|applied| {
            assert!(applied.own_size);
            (applied.config.memory_mib, applied.config.vcpus)
        })
    };
    for (name, value, wanted) in [
        ("hypervisor.default_memory", "4096", (4096, 1)),
        ("hypervisor.default_memory", "8192", (8192, 1)),
        ("hypervisor.default_vcpus", "8", (2048, 8)),
        ("hypervisor.default_vcpus", "2.0", (2048, 2)),
        ("hypervisor.default_vcpus", "0.5", (2048, 1)),
    ] {
        assert_eq!(size(name, value), Ok(wanted), "{name} {value}");
    }
    let takes = "takes a whole number, 256 to 16777216 MiB, as guest.memory_mib does";
    for (name, value, wanted) in [
        ("hypervisor.default_memory", "8193", "is more than guest.max_memory_mib = 8192 allows"),
        ("hypervisor.default_vcpus", "8.001", "is more than guest.max_vcpus = 8 allows"),
        ("hypervisor.default_memory", "255", takes),
        ("hypervisor.default_memory", "+512", takes),
        ("hypervisor.default_memory", "512.0", takes),
        ("hypervisor.default_vcpus", "248", "takes a whole number, 1 to 247 CPUs"),
        ("hypervisor.default_vcpus", "4294967295.5", "takes a whole number"),
        ("hypervisor.default_vcpus", "1.", "takes a whole number"),
        ("hypervisor.default_vcpus", "1.5e3", "takes a whole number"),
    ] {
        let e = size(name, value).expect_err(value);
        assert!(e.starts_with(&format!("annotation {PREFIX}{name} = {value:?}: {wanted}")), "{e}");
    }
    for value in HOSTILE {
        for name in keys::CAN_BE_ENABLED {
            assert!(size(name, value).is_err(), "{name} {value}");
            let e = setting("", name, value).expect_err("not enabled");
            assert!(e.contains("have it listed in annotations.enabled"), "{e}");
        }
    }
}

#[test]
fn a_pod_may_wait_longer_for_its_containers_up_to_the_owners_limit() {
    let name = "runtime.create_container_timeout";
    let applied = setting("", name, "1200").expect("the default limit");
    assert_eq!(applied.config.agent.create_timeout, Duration::from_secs(1200));
    let short = "[annotations]\nmax_create_timeout_s = 90";
    let e = setting(short, name, "91").expect_err("long");
    assert!(
        e.ends_with("takes a whole number of seconds, 1 to 90 (annotations.max_create_timeout_s)"),
        "{e}"
    );
    for value in HOSTILE {
        assert!(setting(short, name, value).is_err(), "{value}");
    }
}

#[test]
fn a_setting_that_is_so_anyway_is_taken_and_no_other_value_of_it() {
    let mut seen = 0;
    for (name, rule) in TABLE {
        let Only(values, why) = rule else { continue };
        seen += 1;
        for value in *values {
            let applied = setting("", name, value).expect(name);
            assert_eq!(applied.config, config(""), "{name}");
        }
        for value in HOSTILE.iter().filter(|value| !values.contains(value)) {
            let e = setting("", name, value).expect_err(name);
            assert!(e.contains(&format!(" is possible: {why}: remove the annotation")), "{e}");
        }
    }
    assert!(seen > 20, "{seen}");
    let seccomp = "[guest]\nseccomp = true";
    for (text, value, taken) in
        [("", "true", true), ("", "false", false), (seccomp, "false", true), (seccomp, "true", false)]
    {
        assert_eq!(setting(text, "runtime.disable_guest_seccomp", value).is_ok(), taken, "{text} {value}");
    }
}

#[test]
fn every_other_setting_of_a_pod_is_refused_by_its_name_whatever_its_value() {
    for (name, rule) in TABLE {
        let Refused(why) = rule else { continue };
        for value in HOSTILE.iter().chain(&["true", "false", "none"]) {
            let e = setting(TWO, name, value).expect_err(name);
            assert_eq!(
                e,
                format!("annotation {PREFIX}{name} = {value:?}: {why}: remove the annotation").trim()
            );
        }
    }
    for (name, _) in OTHERS {
        let e = with(TWO, &format!("{KATA}{name}"), "/etc/shadow").expect_err(name);
        assert!(e.starts_with(&format!("annotation {KATA}{name} = \"/etc/shadow\": ")), "{e}");
    }
    let long = "x".repeat(10_000);
    for (key, value) in [(KEY.to_owned(), &long), (format!("{PREFIX}{long}"), &long)] {
        let e = with(TWO, &key, value).expect_err("long");
        assert!(e.len() < 700, "{}", e.len());
    }
    let both =
        ["hypervisor.path", "hypervisor.kernel"].map(|name| (format!("{PREFIX}{name}"), String::new()));
    let e = apply(config(TWO), &both.into()).expect_err("refused").to_string();
    assert!(e.contains("config.hypervisor.kernel"), "always the same one: {e}");
}

#[test]
fn an_unknown_setting_is_refused_or_told_and_passed_over_as_the_owner_wants_it() {
    let warn = "[annotations]\nunknown = \"warn\"";
    for name in
        ["config.hypervisor.Image", "config.hypervisor.image ", "config.", "config.nonsense", "nonsense"]
    {
        let key = format!("{KATA}{name}");
        let e = with("", &key, "v").expect_err(name);
        assert!(
            e.contains("has no such setting for a pod") && e.contains("annotations.unknown = \"warn\""),
            "{e}"
        );
        let applied = with(warn, &key, "v").expect(name);
        assert_eq!(applied.config, config(warn));
        let [line] = &applied.ignored[..] else { panic!("{:?}", applied.ignored) };
        assert!(line.starts_with(&format!("annotation {key}: ")), "{line}");
    }
    assert!(setting(warn, "hypervisor.kernel", "/k").is_err(), "what is known is refused all the same");
    let many = (0..1000).map(|n| (format!("{PREFIX}n{n}"), String::new())).collect();
    assert_eq!(apply(config(warn), &many).expect("passed over").ignored.len(), 16);
    for name in ["pkg.oci.container_type", "volume", "volumes.emptydir_sizelimit.a", "fs-opt.layer"] {
        assert!(with("", &format!("{KATA}{name}"), "v").expect(name).ignored.is_empty());
    }
}

#[test]
fn the_table_has_each_name_once_in_order_and_all_that_need_permission() {
    let names: Vec<_> = TABLE.iter().map(|(name, _)| *name).collect();
    let sorted: BTreeSet<_> = names.iter().copied().collect();
    assert!(sorted.iter().eq(names.iter()), "not in order, or twice");
    let enabled: Vec<_> =
        TABLE.iter().filter(|(_, rule)| matches!(rule, IfEnabled(_))).map(|(name, _)| *name).collect();
    assert_eq!(enabled, keys::CAN_BE_ENABLED);
}
