//! A scripted agent misbehaves exactly as its script says, and everything else works as usual.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod support;

use std::time::{Duration, Instant};

use guest_agent::messages::agent as pb;
use guest_agent::messages::health::CheckRequest;
use protobuf::Message;
use serde_json::{Value, json};
use support::host::Host;
use support::{code, container, limit, process, says};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A request as a frame, and what comes back within `wait`.
async fn exchange(stream: &mut UnixStream, wait: Duration) -> Vec<u8> {
    let mut request = ttrpc::proto::Request::new();
    request.service = "grpc.Health".into();
    request.method = "Check".into();
    request.payload = CheckRequest::new().write_to_bytes().unwrap();
    let payload = request.write_to_bytes().unwrap();
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
    frame.extend([0, 0, 0, 1, 1, 0]);
    frame.extend(payload);
    stream.write_all(&frame).await.unwrap();
    let mut got = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    while let Ok(Ok(n @ 1..)) = timeout(wait, stream.read(&mut chunk)).await {
        got.extend(&chunk[..n]);
    }
    got
}

/// The bytes that answer Check under one rule.
async fn answer_of(mut rule: Value) -> Vec<u8> {
    rule["call"] = "Check".into();
    let host = Host::scripted(json!([rule]));
    exchange(&mut host.stream().await, Duration::from_millis(150)).await
}

#[tokio::test]
async fn frames_are_cut_split_repeated_and_forged() {
    let good = answer_of(json!({})).await;
    assert_eq!(
        (&good[3..10], good.len()),
        ([good[3], 0, 0, 0, 1, 2, 0].as_slice(), 10 + usize::from(good[3]))
    );
    assert_eq!(answer_of(json!({ "split": true })).await, good);
    assert_eq!(answer_of(json!({ "repeat": 1 })).await, [good.clone(), good.clone()].concat());
    for cut in [0, 1, 9, 10, 11] {
        assert_eq!(answer_of(json!({ "cut": cut })).await, good[..cut]);
        assert_eq!(answer_of(json!({ "cut": cut, "close": true })).await, good[..cut]);
    }
    assert_eq!(
        answer_of(json!({ "raw": "ffffffff 00000001 02 00" })).await,
        [255, 255, 255, 255, 0, 0, 0, 1, 2, 0]
    );
    let forged =
        answer_of(json!({ "header": { "length": 4_194_305, "stream_id": 77, "type": 3, "flags": 4 } })).await;
    assert_eq!(forged[..10], [0, 64, 0, 1, 0, 0, 0, 77, 3, 4]);
    assert_eq!(forged[10..], good[10..]);
    assert!(answer_of(json!({ "hang": true })).await.is_empty());
    assert!(answer_of(json!({ "close": true })).await.is_empty());
    let flood = answer_of(json!({ "flood": { "frames": 1000, "bytes": 7, "type": 2 } })).await;
    assert_eq!(flood.len(), 17_000 + good.len());
    assert_eq!(flood[17_000..], good);
}

#[tokio::test]
async fn a_hung_call_hangs_alone() {
    let host = Host::scripted(json!([
        { "call": "WaitProcess", "nth": 1, "hang": true },
        { "call": "ReadStdout", "request": { "exec_id": "e1" }, "delay_ms": 400 },
    ]));
    let agent = host.sandbox().await;
    agent.run(&container("c1", process(&["sleep", "1000"]))).await.unwrap();
    let hung = timeout(Duration::from_millis(300), agent.wait("c1", "c1"));
    let (hung, alive) = tokio::join!(hung, agent.check());
    assert!(hung.is_err());
    alive.unwrap();
    agent.exec("c1", "e1", process(&["echo", "late"])).await.unwrap();
    let began = Instant::now();
    assert_eq!(agent.read("c1", "e1", false, 100).await.unwrap(), b"late\n");
    assert!(began.elapsed() > Duration::from_millis(400));
    agent.signal("c1", "c1", 9).await.unwrap();
    // The status that was sent and never arrived is lost, as with any lost answer.
    assert_eq!(agent.wait("c1", "e1").await.unwrap(), 0);
}

#[tokio::test]
async fn errors_and_lies_replace_the_answer() {
    let host = Host::scripted(json!([
        { "call": "CreateContainer", "nth": 2, "error": { "code": 13, "text": "made, but the answer is an error" } },
        { "call": "StartContainer", "skip": true, "error": { "code": 9, "text": { "$text": 100_000 } } },
        { "call": "WaitProcess", "answer": { "status": -77 } },
        { "call": "ReadStdout", "answer": { "data": { "$bytes": 70_000 } } },
        { "call": "WriteStdin", "skip": true, "answer": { "len": 4_294_967_295_u32 } },
        { "call": "GetOOMEvent", "nth": 1, "skip": true, "answer": { "container_id": { "$text": 1_048_576 } } },
        { "call": "GetGuestDetails", "answer": { "agent_details": { "storage_handlers": { "$list": { "of": "x", "times": 100_000 } } } } },
    ]));
    let agent = host.sandbox().await;
    agent.calls.create_container(limit(), &container("c1", process(&["sleep", "1000"]))).await.unwrap();
    let e = agent
        .calls
        .create_container(limit(), &container("c2", process(&["sleep", "1000"])))
        .await
        .unwrap_err();
    assert_eq!((code(&e), says(&e).as_str()), (13, "made, but the answer is an error"));
    agent.remove("c2").await.unwrap();
    let start = pb::StartContainerRequest { container_id: "c1".into(), ..Default::default() };
    let e = agent.calls.start_container(limit(), &start).await.unwrap_err();
    assert_eq!((code(&e), says(&e).len()), (9, 100_000));
    agent.signal("c1", "", 9).await.unwrap();
    assert_eq!(agent.read("c1", "c1", false, 10).await.unwrap().len(), 70_000);
    assert_eq!(agent.write("c1", "c1", b"x").await.unwrap(), u32::MAX);
    assert_eq!(agent.wait("c1", "c1").await.unwrap(), -77);
    let oom = agent.calls.get_oom_event(limit(), &pb::GetOOMEventRequest::new()).await.unwrap();
    assert_eq!(oom.container_id.len(), 1 << 20);
    let details = agent.calls.get_guest_details(limit(), &pb::GuestDetailsRequest::new()).await.unwrap();
    assert_eq!(details.agent_details.storage_handlers.len(), 100_000);
}

#[tokio::test]
async fn connections_fail_before_they_serve() {
    let host = Host::scripted(json!([
        { "call": "@connect", "nth": 2, "hang": true },
        { "call": "@connect", "nth": 2, "close": true },
        { "call": "@connect", "nth": 2, "raw": "6e6f0a" },
    ]));
    let ask = async || {
        let mut stream = UnixStream::connect(host.socket()).await.unwrap();
        stream.write_all(b"CONNECT 1024\n").await.unwrap();
        let mut answer = [0; 8];
        match timeout(Duration::from_millis(150), stream.read(&mut answer)).await {
            Ok(Ok(n)) => Some(answer[..n].to_vec()),
            _ => None,
        }
    };
    // The first connection only checked for a listener.
    assert_eq!(ask().await, None);
    assert_eq!(ask().await, Some(Vec::new()));
    assert_eq!(ask().await, Some(b"no\n".to_vec()));
    assert_eq!(ask().await, Some(b"OK 1024\n".to_vec()));
}

#[tokio::test]
async fn a_crash_ends_the_agent() {
    let mut host = Host::scripted(json!([{ "call": "CreateSandbox", "skip": true, "crash": true }]));
    let agent = host.agent().await;
    assert!(agent.sandbox().await.is_err());
    assert_eq!(host.child.wait().unwrap().code(), Some(70));
}

#[tokio::test]
async fn a_changed_script_restarts_its_counts() {
    let host = Host::scripted(json!([{ "call": "Check", "nth": 1, "error": { "code": 13, "text": "one" } }]));
    let agent = host.agent().await;
    assert_eq!(says(&agent.check().await.unwrap_err()), "one");
    agent.check().await.unwrap();
    let script = json!({ "rules": [{ "call": "Check", "nth": 1, "error": { "code": 13, "text": "two" } }] });
    std::fs::write(host.dir.path().join("script"), script.to_string()).unwrap();
    assert_eq!(says(&agent.check().await.unwrap_err()), "two");
    agent.check().await.unwrap();
}

#[tokio::test]
async fn a_frame_too_long_is_judged_by_the_server() {
    let host = Host::start();
    let agent = host.sandbox().await;
    agent.run(&container("c1", process(&["cat"]))).await.unwrap();
    let e = agent.write("c1", "c1", &vec![0; 5 << 20]).await.unwrap_err();
    assert!(!matches!(e, ttrpc::Error::RpcStatus(ref s) if s.code.value() == 0), "{e}");
    agent.check().await.unwrap();
}
