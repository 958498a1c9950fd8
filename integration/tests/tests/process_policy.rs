//! Policies: a pod's and the node's reach the guest before anything else, and what a guest's policy denies is told once
//! while pods start, run and stop.

use std::fs;

use harness::{Bundle, Code, NO_STREAMS, Shim, TestNode, code, eventually, reader, within};
use serde_json::json;

const ANNOTATION: &str = "io.katacontainers.config.agent.policy";
const INITDATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";

/// What policies that are generated for pods allow; the rest has no rule, or is false.
const ALLOWED: [&str; 18] = [
    "AddARPNeighborsRequest",
    "CopyFileRequest",
    "CreateContainerRequest",
    "CreateSandboxRequest",
    "DestroySandboxRequest",
    "GetOOMEventRequest",
    "GuestDetailsRequest",
    "RemoveContainerRequest",
    "SignalProcessRequest",
    "StartContainerRequest",
    "StatsContainerRequest",
    "TtyWinResizeRequest",
    "UpdateInterfaceRequest",
    "UpdateRoutesRequest",
    "WaitProcessRequest",
    "ExecProcessRequest",
    "ReadStreamRequest",
    "WriteStreamRequest",
];

/// A policy that allows these requests, and these not; it has no rule for others.
fn policy(allowed: &[&str], denied: &[&str]) -> String {
    let line = |name: &&str, value: bool| format!("default {name} := {value}\n");
    let rules = allowed.iter().filter(|name| !denied.contains(name)).map(|name| line(name, true));
    let rules: String = rules.chain(denied.iter().map(|name| line(name, false))).collect();
    format!("package agent_policy\n{rules}")
}

/// The names of the calls that the guest got, in their order.
fn calls(node: &TestNode) -> Vec<String> {
    node.requests()
        .iter()
        .filter_map(|r| r["call"].as_str().map(str::to_owned))
        .filter(|call| call != "Check")
        .collect()
}

fn base64(node: &TestNode, text: &str) -> String {
    fs::write(node.path("rego"), text).expect("write");
    let output = std::process::Command::new("base64").arg(node.path("rego")).output().expect("base64");
    String::from_utf8(output.stdout).expect("text")
}

/// How many lines of the log have all of these words.
fn lines(log: &str, words: &[&str]) -> usize {
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

async fn exec_output(shim: &Shim, name: &str, script: &str) -> (u32, Vec<u8>) {
    let out = shim.fifo(name, "out");
    let reading = reader(out.clone());
    shim.script("c1", name, script, ["", out.to_str().expect("utf-8"), ""]).await;
    let status = within("its end", 10, shim.wait("c1", name)).await.expect("status");
    (status, reading.join().expect("join"))
}

#[tokio::test]
async fn a_pods_policy_and_the_nodes_are_set_before_any_other_call() {
    let node = TestNode::new().await;
    let rego = policy(&ALLOWED, &["CloseStdinRequest"]);
    let bundle = Bundle::sh("sleep 1000").sandbox().annotation(ANNOTATION, &base64(&node, &rego));
    let shim = node.running("c1", &bundle).await;
    assert_eq!(calls(&node).iter().position(|call| call == "SetPolicy"), Some(0), "{:?}", calls(&node));
    let sent = |node: &TestNode| {
        let requests = node.requests();
        requests
            .iter()
            .filter(|r| r["call"] == "SetPolicy")
            .map(|r| r["request"]["policy"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(sent(&node), [json!(rego)]);
    node.end(&shim, "c1").await;

    // The node's own, for pods that bring none.
    let of_node = format!("{rego}# of the node\n");
    fs::write(node.path("node.rego"), &of_node).expect("write");
    node.config(&format!("policy_file = \"{}\"\n", node.path("node.rego").display()));
    let shim = node.running("c1", &Bundle::sh("sleep 1000").sandbox()).await;
    assert_eq!(sent(&node), [json!(of_node)]);
    assert!(node.log().contains("the guest has taken the policy of agent.policy_file = "));
    node.end(&shim, "c1").await;
    let shim = node.running("c1", &bundle).await;
    assert_eq!(sent(&node), [json!(rego)], "the pod's own is nearer");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_policy_in_the_initdata_is_in_force_already_and_no_other_is_sent() {
    let node = TestNode::new().await;
    let initdata = include_str!("../../../src/config/testdata/initdata.base64");
    let rego = base64(&node, &policy(&ALLOWED, &[]));
    let bundle =
        Bundle::sh("sleep 1000").sandbox().annotation(ANNOTATION, &rego).annotation(INITDATA, initdata);
    let shim = node.running("c1", &bundle).await;
    assert!(!calls(&node).contains(&"SetPolicy".to_owned()));
    let log = node.log();
    assert_eq!(lines(&log, &["the policy of the pod's annotation is not sent", "initdata"]), 1, "{log}");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_pod_whose_policy_is_not_taken_does_not_run() {
    let node = TestNode::new().await;
    let rego = base64(&node, &policy(&ALLOWED, &[]));
    let bundle = Bundle::sh("true").sandbox().annotation(ANNOTATION, &rego);
    node.policy(&policy(&ALLOWED, &["SetPolicyRequest"]));
    let text = node.refused(&bundle).await;
    let wanted = "the guest does not take the policy of the pod's annotation, and the pod would run without it: agent \
                  SetPolicy: the guest's policy denies it";
    assert!(text.contains(wanted), "{text}");
    assert!(!calls(&node).contains(&"CreateSandbox".to_owned()), "{:?}", calls(&node));

    // What no agent takes is not sent.
    let sent = calls(&node).len();
    for (rego, wanted) in [
        (
            format!("package agent_policy\n# {}", "x".repeat(65536)),
            "line 2 has 65538 bytes, more than the 65536",
        ),
        ("default A := true".to_owned(), "has no line `package agent_policy`"),
    ] {
        let bundle = Bundle::sh("true").sandbox().annotation(ANNOTATION, &base64(&node, &rego));
        let text = node.refused(&bundle).await;
        assert!(text.contains(&format!("annotation {ANNOTATION}: {wanted}")), "{text}");
    }
    node.config(&format!("policy_file = \"{}\"\n", node.path("none.rego").display()));
    let text = node.refused(&Bundle::sh("true").sandbox()).await;
    assert!(text.contains("agent.policy_file = ") && text.contains("none.rego: No such file"), "{text}");
    assert_eq!(calls(&node).len(), sent, "no guest was started");
}

#[tokio::test]
async fn pods_run_although_a_policy_denies_what_they_can_do_without_and_each_denial_is_told_once() {
    let node = TestNode::new().await;
    node.policy(&policy(
        &ALLOWED,
        &["CloseStdinRequest", "WriteStreamRequest", "GetOOMEventRequest", "GuestDetailsRequest"],
    ));
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    for n in 0..3 {
        let (status, output) = exec_output(&shim, &format!("e{n}"), "echo out; exit 3").await;
        assert_eq!((status, output.as_slice()), (3, &b"out\n"[..]));
    }
    // Input is lost, and its process lives on.
    let input = shim.fifo("i", "in");
    shim.script("c1", "i", "read line; echo never", [input.to_str().expect("utf-8"), "", ""]).await;
    fs::write(&input, "line\n").expect("write");
    eventually("the guest is asked", 5, || calls(&node).contains(&"WriteStdin".to_owned())).await;
    shim.kill("c1", "i", 9).await.expect("kill");
    assert_eq!(within("its end", 5, shim.wait("c1", "i")).await, Ok(137));
    node.end(&shim, "c1").await;
    let log = node.log();
    assert_eq!(
        lines(&log, &["sandbox is up", "\"agent\":\"4.1.0\""]),
        1,
        "the health service has the version: {log}"
    );
    for call in ["CloseStdin", "WriteStdin", "GetOOMEvent", "GetGuestDetails"] {
        let words = [
            &format!("agent {call}: the guest's policy denies it (last rule tried: allow_it)"),
            "not logged",
        ];
        assert_eq!(lines(&log, &words.map(|word| word as &str)), 1, "{call}: {log}");
        assert_eq!(lines(&log, &[&format!("agent {call}")]), 1, "{call}: {log}");
    }
    assert!(!log.contains("of the request") && !log.contains("because"), "{log}");
}

#[tokio::test]
async fn output_that_a_policy_hides_is_lost_and_every_exit_is_told() {
    let node = TestNode::new().await;
    node.policy(&policy(&ALLOWED, &["ReadStreamRequest", "CloseStdinRequest"]));
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let (status, output) = exec_output(&shim, "e1", "echo hidden; exit 7").await;
    assert_eq!((status, output.len()), (7, 0));
    // More than a pipe holds: it is read on, so that the process does not block for ever.
    let (status, output) = exec_output(&shim, "e2", "head -c 200000 /dev/zero; exit 8").await;
    assert_eq!((status, output.len()), (8, 0));
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_denied_call_of_a_client_is_an_error_that_names_it_and_quotes_no_request() {
    let node = TestNode::new().await;
    let denied = ["ExecProcessRequest", "PauseContainerRequest", "StatsContainerRequest"];
    node.policy(&policy(&ALLOWED, &denied));
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let named = |answer: Result<(), ttrpc::Error>, call: &str, why: &str| {
        assert_eq!(code(&answer), Some(Code::PERMISSION_DENIED), "{call}");
        let text = answer.expect_err(call).to_string();
        let wanted = format!("agent {call}: the guest's policy denies it{why}");
        assert!(text.contains(&wanted) && text.lines().count() == 1, "{text}");
        assert!(!text.contains("of the request"), "{text}");
    };
    let rule = " (last rule tried: allow_it)";
    let process = Bundle::process(&["/bin/true"]);
    shim.exec("c1", "e1", process, NO_STREAMS).await.expect("exec");
    named(shim.start("c1", "e1").await.map(|_| ()), "ExecProcess", rule);
    named(shim.pause("c1").await, "PauseContainer", rule);
    named(shim.stats("c1").await.map(|_| ()), "StatsContainer", rule);
    let limit = json!({"cpu": {"shares": 512}});
    named(shim.update("c1", &limit).await, "UpdateContainer", ", as it has no rule of this name");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_container_that_a_policy_denies_is_refused_with_the_call() {
    let node = TestNode::new().await;
    node.policy(&policy(&ALLOWED, &["CreateContainerRequest"]));
    let text = node.refused(&Bundle::sh("true").sandbox()).await;
    assert!(
        text.contains("agent CreateContainer: the guest's policy denies it (last rule tried: allow_it)"),
        "{text}"
    );
    assert!(!text.contains("of the request"), "{text}");
}
