//! The storage driver `image_guest_pull` as the real agents take it, by their versions; no image is pulled here.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod support;

use std::time::Duration;

use guest_agent::messages::agent as pb;
use guest_agent::messages::health::CheckRequest;
use support::host::Host;
use support::{code, limit, of_sandbox, process, pulled, says};
use tokio::time::timeout;

const IMAGE: &str = "r.test/a:1";
const SANDBOX: Option<&str> = Some(r#"{"io.kubernetes.cri.container-type":"sandbox"}"#);
const CONTAINER: Option<&str> = Some(r#"{"io.kubernetes.cri.container-type":"container"}"#);

#[tokio::test]
async fn the_version_is_what_was_asked_for() {
    for (options, wanted) in [(&[][..], "4.1.0"), (&["--version", "4.2.0"], "4.2.0")] {
        let host = Host::with(options);
        let agent = host.agent().await;
        let version = agent.health.version(limit(), &CheckRequest::new()).await.unwrap();
        let details = agent.calls.get_guest_details(limit(), &pb::GuestDetailsRequest::new()).await.unwrap();
        let details = details.agent_details.unwrap_or_default();
        assert_eq!((version.agent_version.as_str(), details.version.as_str()), (wanted, wanted));
        assert!(details.storage_handlers.contains(&"image_guest_pull".to_owned()));
    }
}

#[tokio::test]
async fn agents_up_to_4_1_want_metadata() {
    let host = Host::start();
    let agent = host.sandbox().await;
    let sleep = || process(&["sleep", "1000"]);
    let mut twice = pulled("c1", IMAGE, sleep(), CONTAINER);
    twice.storages[0].driver_options.push("more".into());
    for (req, text) in [
        (pulled("c1", IMAGE, sleep(), None), "missing Image information for ImagePull volume"),
        (twice, "missing Image information for ImagePull volume"),
        (pulled("c1", IMAGE, sleep(), Some(r#"{"a":1}"#)), "expected a string"),
        (pulled("c1", IMAGE, sleep(), Some(r#"{},"more":1"#)), "unknown field `more`"),
    ] {
        let e = agent.calls.create_container(limit(), &req).await.unwrap_err();
        assert_eq!(code(&e), 13);
        assert!(says(&e).contains(text), "{text}: {}", says(&e));
    }
    agent.run(&pulled("c1", IMAGE, process(&["sh", "-c", "exit 7"]), CONTAINER)).await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await.unwrap(), 7);
    assert!(host.path("/run/kata-containers/c1/rootfs").is_dir());
    agent.remove("c1").await.unwrap();
    assert!(!host.path("/run/kata-containers/c1").exists());
}

#[tokio::test]
async fn the_pause_bundle_replaces_the_process_if_both_say_sandbox() {
    let host = Host::start();
    let agent = host.sandbox().await;
    let exits = || process(&["sh", "-c", "exit 7"]);
    agent.run(&of_sandbox(pulled("sb1", "pause", exits(), SANDBOX))).await.unwrap();
    assert!(host.runs("/pause"));
    agent.run(&pulled("c1", "pause", exits(), SANDBOX)).await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await.unwrap(), 7, "the metadata alone: the host's process");
}

#[tokio::test]
async fn newer_agents_want_no_options_and_look_at_the_annotations() {
    let host = Host::with(&["--version", "4.2.0"]);
    let agent = host.sandbox().await;
    let exits = || process(&["sh", "-c", "exit 7"]);
    let e = agent.run(&pulled("c1", IMAGE, exits(), CONTAINER)).await.unwrap_err();
    assert!(says(&e).contains("driver_options are set"), "{}", says(&e));
    agent.run(&of_sandbox(pulled("sb1", "pause", exits(), None))).await.unwrap();
    assert!(host.runs("/pause"));
    agent.run(&pulled("c1", IMAGE, exits(), None)).await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await.unwrap(), 7);
}

#[tokio::test]
async fn without_a_data_hub_the_call_has_no_answer_and_others_have() {
    let host = Host::with(&["--no-cdh"]);
    let agent = host.sandbox().await;
    agent.run(&of_sandbox(pulled("sb1", "pause", process(&["true"]), SANDBOX))).await.unwrap();
    let req = pulled("c1", IMAGE, process(&["true"]), CONTAINER);
    for _ in 0..2 {
        let asked = timeout(Duration::from_secs(1), agent.calls.create_container(limit(), &req)).await;
        assert!(asked.is_err(), "{asked:?}");
        agent.check().await.unwrap();
    }
    assert!(host.runs("/pause"));
}
