//! Entry points: containerd 1.6 to 2.3 and CRI-O each call the shim in their dialect, and what it
//! prints is exactly what they parse.

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use harness::{Bundle, NO_STREAMS, Shim, TestNode};

#[tokio::test]
async fn a_bare_address_for_old_callers_also_in_the_bundle() {
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("sleep 1000"));
    let output = node.start_output("c1", &dir);
    let address = String::from_utf8(output.stdout).expect("text");
    assert!(address.starts_with("unix:///") && !address.contains('\n'), "{address}");
    assert_eq!(std::fs::read_to_string(dir.join("address")).expect("address"), address);
    let again = node.start_output("c1", &dir);
    assert!(!again.status.success(), "the same sandbox cannot be started twice");
    let shim = Shim::connect(&address, &node.path("stdio")).await;
    shim.shutdown(true).await.expect("shutdown");
    node.assert_clean();
}

#[tokio::test]
async fn a_bootstrap_result_for_containerd_2_3() {
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("sleep 1000"));
    let params = BootstrapParams {
        instance_id: "c1".into(),
        namespace: "tests".into(),
        containerd_ttrpc_address: node.path("events.sock").display().to_string(),
        ..Default::default()
    };
    let output = node.start_with_input("c1", &dir, &params.write_to_bytes().expect("encode"));
    let result = BootstrapResult::parse_from_bytes(&output.stdout).expect("a bootstrap result");
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    let shim = Shim::connect(&result.address, &node.path("stdio")).await;
    shim.shutdown(true).await.expect("shutdown");
    node.assert_clean();
}

/// The service under the name that containerd 1.x and CRI-O use, which the client crate no longer has.
#[tokio::test]
async fn the_task_service_has_both_names() {
    use containerd_shim_protos::api::{ConnectRequest, ConnectResponse};
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    for name in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        let client = ttrpc::r#async::Client::connect(&shim.address).await.expect("connect");
        let payload = ConnectRequest { id: "c1".into(), ..Default::default() };
        let request = ttrpc::Request {
            service: name.into(),
            method: "Connect".into(),
            payload: payload.write_to_bytes().expect("encode"),
            timeout_nano: 5_000_000_000,
            ..Default::default()
        };
        let answer = client.request(request).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let answer = ConnectResponse::parse_from_bytes(&answer.payload).expect("decode");
        assert!(answer.shim_pid > 0 && answer.task_pid > 0, "{name}");
    }
    node.end(&shim, "c1").await;
}

/// CRI-O has no event socket, mounts the root file system itself, and reads the address from the bundle.
#[tokio::test]
async fn crios_pods_need_no_events() {
    let node = TestNode::new().await;
    node.environment.lock().expect("environment").push(("TTRPC_ADDRESS".into(), String::new()));
    let shim = node.running("s1", &Bundle::sh("sleep 1000").crio_sandbox("s1")).await;
    let dir = node.bundle("m1", &Bundle::sh("exit 4").crio_member("s1"));
    assert_eq!(node.shim("m1", &dir).await.address, shim.address);
    assert_eq!(std::fs::read_to_string(dir.join("address")).expect("address"), shim.address);
    shim.create("m1", &dir, NO_STREAMS).await.expect("create");
    shim.start("m1", "").await.expect("start");
    assert_eq!(shim.wait("m1", "").await, Ok(4));
    shim.delete("m1", "").await.expect("delete");
    node.end(&shim, "s1").await;
    assert!(node.events.seen().is_empty());
}

#[tokio::test]
async fn version_info_and_failures_are_one_clean_answer() {
    let run = |args: &[&str]| {
        let mut command = harness::command("containerd-shim-kata-se-v2");
        command.args(args).current_dir("/tmp").stdin(std::process::Stdio::null()).output().expect("shim")
    };
    let version = run(&["-v"]);
    assert!(version.status.success() && version.stdout.starts_with(b"containerd-shim-kata-se-v2 0."));
    let info = run(&["-info"]);
    let info = containerd_shim_protos::types::introspection::RuntimeInfo::parse_from_bytes(&info.stdout);
    assert_eq!(info.expect("info").name, "io.containerd.kata-se.v2");
    for (args, wanted) in [
        (vec!["-namespace", "n", "-id", "c1", "start"], "kata-se: read /tmp/config.json: No such file"),
        (vec!["-namespace", "n", "-id", "c1", "dance"], "kata-se: unknown action \"dance\""),
        (vec!["-wrong"], "kata-se: unknown flag -wrong"),
        (vec![], "kata-se: no action"),
    ] {
        let output = run(&args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}");
        assert!(text.starts_with(wanted) && text.lines().count() == 1, "{text}");
    }
}
