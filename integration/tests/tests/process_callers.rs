//! A whole pod, driven exactly as callers do whose daemons are not on the test machines: CRI-O, and
//! containerd from 2.3 on. Each is restarted in between and finds its pod again.

use std::path::Path;

use containerd_shim_protos::api;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, Extension};
use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use harness::{Bundle, Code, TestNode, code, eventually};

/// A connection that speaks one version of the Task service.
struct Caller {
    client: ttrpc::r#async::Client,
    service: &'static str,
}

impl Caller {
    /// Creates and starts a container in the pod of this VM.
    async fn join(&self, id: &str, dir: &Path, vm: u32) {
        assert_eq!(self.create(id, dir).await, vm);
        self.start(id, "").await;
        assert_eq!(self.exec(id, "e1", &["/bin/sh", "-c", "exit 5"]).await, 5);
    }

    async fn connect(address: &str, service: &'static str) -> Self {
        let client = ttrpc::r#async::Client::connect(address).await;
        Self { client: client.unwrap_or_else(|e| panic!("{address}: {e}")), service }
    }

    async fn call<A: Message>(&self, method: &str, request: &impl Message) -> ttrpc::Result<A> {
        let request = ttrpc::Request {
            service: self.service.into(),
            method: method.into(),
            payload: request.write_to_bytes().expect("encode"),
            timeout_nano: 60_000_000_000,
            ..Default::default()
        };
        let answer = self.client.request(request).await?;
        Ok(A::parse_from_bytes(&answer.payload).expect("decode"))
    }

    async fn create(&self, id: &str, bundle: &Path) -> u32 {
        let bundle = bundle.display().to_string();
        let request = api::CreateTaskRequest { id: id.into(), bundle, ..Default::default() };
        self.call::<api::CreateTaskResponse>("Create", &request).await.expect("create").pid
    }

    async fn start(&self, id: &str, exec: &str) -> u32 {
        let request = api::StartRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.call::<api::StartResponse>("Start", &request).await.expect("start").pid
    }

    async fn exec(&self, id: &str, exec: &str, args: &[&str]) -> u32 {
        self.exec_on(id, exec, args, false).await
    }

    /// `terminal` as CRI-O asks for one: in the request, and not in the process.
    async fn exec_on(&self, id: &str, exec: &str, args: &[&str], terminal: bool) -> u32 {
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: Bundle::process(args),
            ..Default::default()
        };
        let request = api::ExecProcessRequest {
            id: id.into(),
            exec_id: exec.into(),
            spec: MessageField::some(spec),
            terminal,
            ..Default::default()
        };
        self.call::<api::Empty>("Exec", &request).await.expect("exec");
        self.start(id, exec).await;
        let status = self.wait(id, exec).await;
        assert_eq!(self.delete(id, exec).await.expect("delete exec"), status);
        status
    }

    async fn wait(&self, id: &str, exec: &str) -> u32 {
        let request = api::WaitRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.call::<api::WaitResponse>("Wait", &request).await.expect("wait").exit_status
    }

    /// 1 created, 2 running, 3 stopped.
    async fn state(&self, id: &str) -> ttrpc::Result<i32> {
        let request = api::StateRequest { id: id.into(), ..Default::default() };
        Ok(self.call::<api::StateResponse>("State", &request).await?.status.value())
    }

    /// SIGTERM, then SIGKILL.
    async fn stop(&self, id: &str) {
        for (signal, all) in [(15, false), (9, true)] {
            let request = api::KillRequest { id: id.into(), signal, all, ..Default::default() };
            let killed = self.call::<api::Empty>("Kill", &request).await;
            assert!(matches!(code(&killed), None | Some(Code::NOT_FOUND)), "{killed:?}");
        }
        assert!([137, 143].contains(&self.wait(id, "").await));
    }

    async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = api::DeleteRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        Ok(self.call::<api::DeleteResponse>("Delete", &request).await?.exit_status)
    }

    async fn shutdown(&self, id: &str) {
        let request = api::ShutdownRequest { id: id.into(), ..Default::default() };
        self.call::<api::Empty>("Shutdown", &request).await.expect("shutdown");
    }

    /// Whether it lives: what CRI-O asks before it opens a log again.
    async fn is_alive(&self, id: &str) -> bool {
        let request = api::KillRequest { id: id.into(), signal: 0, ..Default::default() };
        let asked = self.call::<api::Empty>("Kill", &request).await;
        assert!(matches!(code(&asked), None | Some(Code::NOT_FOUND)), "{asked:?}");
        asked.is_ok()
    }

    /// The statistics, read as CRI-O reads them: it ends itself when one of these messages is missing.
    async fn assert_stats_are_whole(&self, id: &str) {
        let request = api::StatsRequest { id: id.into(), ..Default::default() };
        let stats = self.call::<api::StatsResponse>("Stats", &request).await.expect("stats").stats;
        if stats.type_url == "io.containerd.cgroups.v1.Metrics" {
            let m = v1::Metrics::parse_from_bytes(&stats.value).expect("metrics");
            let memory = m.memory.as_ref().expect("memory");
            assert!(
                [&memory.usage, &memory.swap, &memory.kernel, &memory.kernel_tcp].iter().all(|e| e.is_some())
            );
            let cpu = m.cpu.as_ref().expect("cpu");
            assert!(cpu.usage.is_some() && cpu.throttling.is_some() && m.pids.is_some(), "{m}");
        } else {
            let m = v2::Metrics::parse_from_bytes(&stats.value).expect("metrics");
            assert!(m.cpu.is_some() && m.memory.is_some() && m.pids.is_some(), "{m}");
        }
    }

    /// The VM's process: the first question after a restart.
    async fn vm(&self, id: &str) -> u32 {
        let request = api::ConnectRequest { id: id.into(), ..Default::default() };
        self.call::<api::ConnectResponse>("Connect", &request).await.expect("connect").task_pid
    }
}

/// Options that name the configuration, as both callers pass them.
fn options(path: &Path) -> Any {
    let path = path.display().to_string();
    let value = [&[0x12, u8::try_from(path.len()).expect("short")], path.as_bytes()].concat();
    Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Default::default() }
}

fn memory(node: &TestNode) -> String {
    let orders = std::fs::read_to_string(node.path("config.toml")).expect("configuration");
    orders.lines().find(|line| line.starts_with("memory_mib")).expect("memory").to_owned()
}

/// `start` prints a bare address, and its stdout and stderr are read together; there are no events; each
/// container has a connection; the root file system is mounted already, outside of the bundle.
#[tokio::test]
async fn a_whole_pod_as_crio_drives_it() {
    const SERVICE: &str = "containerd.task.v2.Task";
    let node = TestNode::new().await;
    node.environment.lock().expect("environment").push(("TTRPC_ADDRESS".into(), String::new()));
    let start = |id: &str, bundle: &Bundle| {
        let mut bundle = bundle.clone();
        let root = node.path("guest").join(format!("merged-{id}"));
        std::fs::create_dir_all(root.join("bin")).expect("root");
        bundle.config["root"]["path"] = root.display().to_string().into();
        let dir = node.bundle(id, &bundle);
        let options = options(&node.path("config.toml")).write_to_bytes().expect("encode");
        let output = node.start_with_input(id, &dir, &options);
        let combined = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
        assert!(output.status.success(), "{combined}");
        (dir, combined.trim().to_owned())
    };
    let (dir, address) = start("s1", &Bundle::sh("sleep 1000").crio_sandbox("s1"));
    let sandbox = Caller::connect(&address, SERVICE).await;
    let vm = sandbox.create("s1", &dir).await;
    assert_eq!(sandbox.start("s1", "").await, vm);
    let (member_dir, same) = start("m1", &Bundle::sh("sleep 1000").crio_member("s1"));
    assert_eq!(same, address);
    let member = Caller::connect(&same, SERVICE).await;
    assert!(member.create("m1", &member_dir).await == vm);
    member.assert_stats_are_whole("m1").await; // created, not started
    member.start("m1", "").await;
    assert_eq!(member.exec("m1", "e1", &["/bin/sh", "-c", "exit 5"]).await, 5);
    for id in ["s1", "m1"] {
        member.assert_stats_are_whole(id).await;
        assert!(member.is_alive(id).await, "{id}");
    }
    assert_eq!(member.exec_on("m1", "t1", &["/bin/sh", "-c", "test -t 0 && test -t 1"], true).await, 0);

    // CRI-O is killed and restarted: each container's bundle contains the address.
    drop((sandbox, member));
    let again = |dir: &Path| std::fs::read_to_string(dir.join("address")).expect("address");
    let sandbox = Caller::connect(&again(&dir), SERVICE).await;
    let member = Caller::connect(&again(&member_dir), SERVICE).await;
    assert_eq!((sandbox.state("s1").await, member.state("m1").await), (Ok(2), Ok(2)));
    assert_eq!(member.exec("m1", "e2", &["/bin/true"]).await, 0);

    member.stop("m1").await;
    assert_eq!(member.state("m1").await, Ok(3));
    assert!(!member.is_alive("m1").await);
    assert!(!member_dir.join("oom").exists());
    member.delete("m1", "").await.expect("delete");
    member.shutdown("m1").await; // after each container; the pod's shim keeps running
    assert_eq!(sandbox.state("s1").await, Ok(2));
    sandbox.stop("s1").await;
    sandbox.delete("s1", "").await.expect("delete");
    sandbox.shutdown("s1").await;
    node.assert_clean();
    assert!(node.events.seen().is_empty());
}

/// `start` reads its parameters from stdin and prints a message; events go to the address named there;
/// `start` is also called for each further container, and prints the sandbox's address.
#[tokio::test]
async fn a_whole_pod_as_containerd_2_3_drives_it() {
    const SERVICE: &str = "containerd.task.v3.Task";
    let node = TestNode::new().await;
    node.environment.lock().expect("environment").push(("TTRPC_ADDRESS".into(), String::new()));
    let named = node.path("named.toml");
    let text = std::fs::read_to_string(node.path("config.toml")).expect("configuration");
    std::fs::write(&named, text.replace(&memory(&node), "memory_mib = 320")).expect("configuration");
    let start = |id: &str, bundle: &Bundle| {
        let dir = node.bundle(id, bundle);
        let value = MessageField::some(options(&named));
        let params = BootstrapParams {
            instance_id: id.into(),
            namespace: "tests".into(),
            containerd_version: "2.3.0".into(),
            containerd_ttrpc_address: format!("unix://{}", node.path("events.sock").display()),
            containerd_grpc_address: node.path("c.sock").display().to_string(),
            containerd_binary: "/usr/bin/containerd".into(),
            extensions: vec![Extension { value, ..Default::default() }],
            ..Default::default()
        };
        let output = node.start_with_input(id, &dir, &params.write_to_bytes().expect("encode"));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let result = BootstrapResult::parse_from_bytes(&output.stdout).expect("a bootstrap result");
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        (dir, result.address)
    };
    let (dir, address) = start("s1", &Bundle::sh("sleep 1000").sandbox());
    let sandbox = Caller::connect(&address, SERVICE).await;
    let vm = sandbox.create("s1", &dir).await;
    sandbox.start("s1", "").await;
    assert!(node.log().contains("\"memory_mib\":320"), "the configuration that the options name");
    let (member_dir, same) = start("m1", &Bundle::sh("sleep 1000").member("s1"));
    assert_eq!(same, address);
    let member = Caller::connect(&same, SERVICE).await;
    member.join("m1", &member_dir, vm).await;

    // containerd is killed and restarted: it has stored the address itself, and asks for the VM.
    drop((sandbox, member));
    let sandbox = Caller::connect(&address, SERVICE).await;
    let member = Caller::connect(&address, SERVICE).await;
    assert_eq!((sandbox.vm("s1").await, member.vm("m1").await), (vm, vm));
    assert_eq!((sandbox.state("s1").await, member.state("m1").await), (Ok(2), Ok(2)));
    assert_eq!(member.exec("m1", "e2", &["/bin/true"]).await, 0);

    member.stop("m1").await;
    member.delete("m1", "").await.expect("delete");
    member.shutdown("m1").await;
    assert_eq!(code(&member.state("m1").await), Some(Code::NOT_FOUND));
    sandbox.stop("s1").await;
    sandbox.delete("s1", "").await.expect("delete");
    sandbox.shutdown("s1").await;
    node.assert_clean();
    eventually("events", 5, || node.events.lines().iter().any(|line| line.starts_with("delete s1"))).await;
    let lines = node.events.lines();
    assert_eq!(lines[..4], ["create s1", "start s1", "create m1", "start m1"], "{lines:?}");
}
