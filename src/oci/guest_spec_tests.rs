//! A test for each rule of the rewriting, and one whole document against its golden file.

use super::*;
use crate::error::Result;
use crate::oci::spec;
use crate::oci::volume;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const CTR: &str = include_str!("testdata/ctr-config.json");

fn rewrite(value: &Value) -> Result<Value> {
    let id = ContainerId::parse("c1").expect("id");
    let bundle = spec::parse(value.to_string().as_bytes(), &id)?;
    let mounts = volume::decide(&bundle, &id, &BTreeMap::new(), 0)?.mounts;
    let spec = guest_spec(&bundle, &id, Path::new("/run/bundle"), mounts);
    Ok(serde_json::to_value(&spec.0).expect("json"))
}

fn config() -> Value {
    serde_json::from_str(CTR).expect("json")
}

#[test]
fn a_whole_document_of_ctr() {
    let wanted: Value = serde_json::from_str(include_str!("testdata/ctr-guest.json")).expect("json");
    let sent = rewrite(&config()).expect("rewrite");
    assert_eq!(sent, wanted, "{sent:#}");
}

#[test]
fn nothing_of_the_host_remains() {
    let mut value = config();
    value["hooks"] = json!({"prestart": [{"path": "/bin/evil"}]});
    value["process"]["selinuxLabel"] = json!("system_u:x");
    value["linux"]["mountLabel"] = json!("y");
    value["linux"]["rootfsPropagation"] = json!("rslave");
    value["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    value["linux"]["resources"]["pids"] = json!({"limit": 5});
    value["linux"]["resources"]["cpu"] = json!({"cpus": "0-1", "mems": "0", "shares": 7});
    value["annotations"] = json!({"io.katacontainers.config.hypervisor.cc_init_data": "x", "keep": "me"});
    let sent = rewrite(&value).expect("rewrite");
    for gone in [
        "/hooks",
        "/process/selinuxLabel",
        "/linux/mountLabel",
        "/linux/rootfsPropagation",
        "/linux/seccomp",
        "/linux/resources/pids",
        "/linux/resources/devices",
        "/linux/resources/cpu/cpus",
        "/linux/resources/cpu/mems",
    ] {
        assert_eq!(sent.pointer(gone), None, "{gone}");
    }
    assert_eq!(sent["linux"]["resources"]["cpu"]["shares"], 7);
    assert_eq!(
        sent["annotations"],
        json!({
            "keep": "me",
            "io.katacontainers.pkg.oci.container_type": "single_container",
            "io.katacontainers.pkg.oci.bundle_path": "/run/bundle",
        })
    );
}

#[test]
fn the_network_namespace_is_told_of_the_sandbox_container_alone() {
    let key = "nerdctl/network-namespace";
    let cri = |kind: &str| json!({"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": "s1", key: "/other"});
    let mut value = config();
    value["linux"]["namespaces"] = json!([{"type": "network", "path": "/var/run/netns/cni-1"}]);
    for (annotations, wanted) in [
        (json!({"io.kubernetes.cri.container-type": "sandbox"}), json!("/var/run/netns/cni-1")),
        (cri("container"), Value::Null),
        (json!({key: "/other"}), Value::Null),
    ] {
        value["annotations"] = annotations;
        let sent = rewrite(&value).expect("rewrite");
        assert_eq!(sent["annotations"][key], wanted);
    }
}

#[test]
fn only_ipc_uts_and_mount_namespaces_are_sent_in_their_order_without_paths() {
    let mut value = config();
    value["linux"]["namespaces"] = json!([
        {"type": "uts", "path": "/proc/1/ns/uts"}, {"type": "pid"}, {"type": "network", "path": "/x"},
        {"type": "mount"}, {"type": "cgroup"}, {"type": "time"}, {"type": "ipc"}
    ]);
    let sent = rewrite(&value).expect("rewrite");
    assert_eq!(sent["linux"]["namespaces"], json!([{"type": "uts"}, {"type": "mount"}, {"type": "ipc"}]));
}

#[test]
fn an_exec_has_no_labels_and_no_capabilities() {
    let mut value = config()["process"].clone();
    value["selinuxLabel"] = json!("x");
    value["apparmorProfile"] = json!("y");
    let process = spec::parse_process(value.to_string().as_bytes()).expect("parse");
    let terminal = guest_process(process.clone(), true).0.terminal();
    assert_eq!(terminal, Some(true), "CRI-O says it in the request only");
    let sent = serde_json::to_value(guest_process(process, false).0).expect("json");
    for gone in ["capabilities", "selinuxLabel", "apparmorProfile"] {
        assert_eq!(sent.get(gone), None, "{gone}");
    }
    assert_eq!(sent["args"], value["args"]);
}
