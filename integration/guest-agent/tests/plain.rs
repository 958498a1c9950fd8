//! The agent on the host behaves as the real agent: order, streams, statuses, errors.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod support;

use std::time::{Duration, Instant};

use guest_agent::messages::{agent as pb, types};
use support::host::{Host, processes_with};
use support::{code, container, limit, process, says, storage, terminal};
use tokio::time::{sleep, timeout};

fn sh(script: &str) -> guest_agent::messages::oci::Process {
    process(&["sh", "-c", script])
}

#[tokio::test]
async fn a_pod_from_the_first_check_to_its_end() {
    let mut host = Host::start();
    let agent = host.agent().await;
    agent.check().await.unwrap();
    let ip = |address: &str, mask: &str| types::IPAddress {
        address: address.into(),
        mask: mask.into(),
        ..Default::default()
    };
    let eth0 = types::Interface {
        device: "eth0".into(),
        name: "eth0".into(),
        IPAddresses: vec![ip("10.66.0.2", "24")],
        mtu: 1450,
        hwAddr: "02:00:00:00:66:02".into(),
        devicePath: "0.0.0005".into(),
        ..Default::default()
    };
    let req = pb::UpdateInterfaceRequest { interface: Some(eth0).into(), ..Default::default() };
    assert_eq!(agent.calls.update_interface(limit(), &req).await.unwrap().mtu, 1450);
    let route = types::Route { gateway: "10.66.0.1".into(), device: "eth0".into(), ..Default::default() };
    let routes = pb::Routes { Routes: vec![route], ..Default::default() };
    let req = pb::UpdateRoutesRequest { routes: Some(routes).into(), ..Default::default() };
    assert_eq!(agent.calls.update_routes(limit(), &req).await.unwrap().Routes.len(), 1);
    agent.sandbox().await.unwrap();
    assert_eq!(says(&agent.sandbox().await.unwrap_err()), "a second CreateSandbox");
    let details = pb::GuestDetailsRequest { mem_block_size: true, ..Default::default() };
    let details = agent.calls.get_guest_details(limit(), &details).await.unwrap();
    assert!(details.agent_details.storage_handlers.contains(&"blk-ccw".to_owned()));

    agent.run(&container("c1", sh("echo out; echo err >&2; exit 7"))).await.unwrap();
    let left = agent.finish("c1", "c1").await;
    assert_eq!((left.out(), left.stderr.as_slice(), left.status), ("out\n", b"err\n".as_slice(), 7));
    for late in [agent.wait("c1", "c1").await.map(drop), agent.read("c1", "c1", false, 10).await.map(drop)] {
        let e = late.unwrap_err();
        assert_eq!((code(&e), says(&e).as_str()), (5, "InvalidExecId"));
    }
    assert!(host.path("/run/kata-containers/c1/rootfs").is_dir());
    agent.remove("c1").await.unwrap();
    assert!(!host.path("/run/kata-containers/c1").exists());
    let again = agent.remove("c1").await.unwrap_err();
    assert_eq!((code(&again), says(&again).as_str()), (13, "Invalid container id"));

    agent.run(&container("c2", process(&["sleep", "1000"]))).await.unwrap();
    agent.calls.destroy_sandbox(limit(), &pb::DestroySandboxRequest::new()).await.unwrap();
    let mark = format!("GUEST_ROOT={}", host.path("").display());
    assert!(host.child.wait().unwrap().success());
    assert_eq!(processes_with(mark.trim_end_matches('/')), 0);
    let calls: Vec<_> = host.record().iter().map(|line| line["call"].as_str().unwrap().to_owned()).collect();
    assert_eq!(calls[..4], ["Check", "UpdateInterface", "UpdateRoutes", "CreateSandbox"]);
    assert_eq!(host.record()[3]["request"]["sandbox_id"], "sb1");
}

#[tokio::test]
async fn statuses_are_codes_or_128_and_the_signal() {
    let host = Host::start();
    let agent = host.sandbox().await;
    let trap = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done";
    for (id, script, signal, status) in [
        ("zero", "exit 0", None, 0),
        ("one", "exit 1", None, 1),
        ("killed", "echo ready; sleep 1000", Some(9), 137),
        // It is not handled: the agent turns it into SIGKILL, as an init process would ignore it.
        ("ended", "echo ready; sleep 1000", Some(15), 137),
        ("handled", trap, Some(15), 9),
    ] {
        agent.run(&container(id, sh(script))).await.unwrap();
        if let Some(signal) = signal {
            assert_eq!(agent.read(id, id, false, 100).await.unwrap(), b"ready\n");
            agent.signal(id, id, signal).await.unwrap();
        }
        assert_eq!(agent.wait(id, id).await.unwrap(), status, "{id}");
    }
    // An exec is not an init process: its signal is sent unchanged.
    agent.run(&container("c1", process(&["sleep", "1000"]))).await.unwrap();
    agent.exec("c1", "e1", sh("echo ready; exec sleep 1000")).await.unwrap();
    agent.read("c1", "e1", false, 100).await.unwrap();
    agent.signal("c1", "e1", 15).await.unwrap();
    assert_eq!(agent.wait("c1", "e1").await.unwrap(), 143);
    // All waiters get the status; every process of the container ends with SIGKILL for all.
    agent.exec("c1", "e2", process(&["sleep", "1000"])).await.unwrap();
    let killing = async {
        sleep(Duration::from_millis(50)).await;
        agent.signal("c1", "", 9).await.unwrap();
    };
    let (a, b, c, ()) =
        tokio::join!(agent.wait("c1", "c1"), agent.wait("c1", "c1"), agent.wait("c1", "e2"), killing);
    assert_eq!([a.unwrap(), b.unwrap(), c.unwrap()], [137; 3]);
}

#[tokio::test]
async fn output_is_complete_when_read_before_the_status() {
    let host = Host::start();
    let agent = host.sandbox().await;
    agent.run(&container("c1", sh("seq 1 200000; printf end"))).await.unwrap();
    let left = agent.finish("c1", "c1").await;
    let wanted: String = (1..=200_000).map(|n| format!("{n}\n")).chain(["end".into()]).collect();
    assert!(left.stdout == wanted.as_bytes(), "{} bytes of {}", left.stdout.len(), wanted.len());
    // No read returns more, whatever the requested length.
    agent.exec_in_new("c2", sh("head -c 200000 /dev/zero")).await;
    let mut total = 0;
    for len in [1, 10, 65536, 131_072].into_iter().cycle() {
        let data = agent.read("c2", "c2", false, len).await.unwrap();
        assert!(data.len() <= len as usize);
        total += data.len();
        if data.is_empty() {
            break;
        }
    }
    assert_eq!(total, 200_000);
}

impl support::Agent {
    async fn exec_in_new(&self, id: &str, process: guest_agent::messages::oci::Process) {
        self.run(&container(id, process)).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_unread_when_the_status_is_told_is_lost() {
    let host = Host::start();
    let agent = host.sandbox().await;
    agent.run(&container("c1", sh("echo lost"))).await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await.unwrap(), 0);
    assert_eq!(code(&agent.read("c1", "c1", false, 10).await.unwrap_err()), 5);
    // Without WaitProcess the rest can be read long after the exit.
    agent.run(&container("c2", sh("echo kept"))).await.unwrap();
    sleep(Duration::from_millis(700)).await;
    assert_eq!(agent.read("c2", "c2", false, 100).await.unwrap(), b"kept\n");
    assert_eq!(agent.read("c2", "c2", false, 100).await.unwrap(), b"");
}

#[tokio::test]
async fn a_waiting_read_gives_up_half_a_second_after_the_end() {
    let host = Host::start();
    let agent = host.sandbox().await;
    agent.run(&container("c1", process(&["sleep", "1000"]))).await.unwrap();
    // A grandchild keeps the streams open.
    agent.exec("c1", "e1", sh("echo begun; sleep 3 & exec sleep 0.3")).await.unwrap();
    assert_eq!(agent.read("c1", "e1", false, 100).await.unwrap(), b"begun\n");
    let began = Instant::now();
    assert_eq!(agent.read("c1", "e1", false, 100).await.unwrap(), b"");
    let took = began.elapsed();
    assert!(took > Duration::from_millis(700) && took < Duration::from_millis(1500), "{took:?}");
    // A read that begins after the exit waits for the grandchild.
    assert_eq!(agent.read("c1", "e1", false, 100).await.unwrap(), b"");
    assert!(began.elapsed() > Duration::from_millis(2500));
    assert_eq!(agent.wait("c1", "e1").await.unwrap(), 0);
    // The init process's children end with it, and so do its streams.
    agent.run(&container("c2", sh("sleep 1000 & echo out"))).await.unwrap();
    let left = timeout(Duration::from_secs(5), agent.finish("c2", "c2")).await.unwrap();
    assert_eq!(left.out(), "out\n");
}

#[tokio::test]
async fn input_reaches_the_process_until_it_is_closed() {
    let host = Host::start();
    let agent = host.sandbox().await;
    agent.run(&container("c1", process(&["sleep", "1000"]))).await.unwrap();
    agent.exec("c1", "e1", sh("cat; echo closed >&2; exit 3")).await.unwrap();
    let big = vec![b'x'; 1 << 20];
    let feeding = async {
        assert_eq!(agent.write("c1", "e1", &big).await.unwrap(), 1 << 20);
        assert_eq!(agent.write("c1", "e1", b"end").await.unwrap(), 3);
        agent.close_stdin("c1", "e1").await.unwrap();
    };
    let (left, ()) = tokio::join!(agent.finish("c1", "e1"), feeding);
    assert_eq!(
        (left.stdout.len(), left.stderr.as_slice(), left.status),
        ((1 << 20) + 3, b"closed\n".as_slice(), 3)
    );
    // Without a reader only this call hangs, and ends at its deadline.
    agent.exec("c1", "e2", process(&["sleep", "1000"])).await.unwrap();
    let req = pb::WriteStreamRequest {
        container_id: "c1".into(),
        exec_id: "e2".into(),
        data: big,
        ..Default::default()
    };
    let brief = ttrpc::context::with_duration(Duration::from_millis(200));
    let (hung, alive) = tokio::join!(agent.calls.write_stdin(brief, &req), agent.check());
    assert_eq!(code(&hung.unwrap_err()), 4);
    alive.unwrap();
    // Empty data closes as well, and then nothing can be written.
    agent.exec("c1", "e3", process(&["cat"])).await.unwrap();
    agent.write("c1", "e3", b"").await.unwrap();
    assert_eq!(agent.wait("c1", "e3").await.unwrap(), 0);
    assert_eq!(code(&agent.write("c1", "e3", b"x").await.unwrap_err()), 13);
}

#[tokio::test]
async fn a_terminal_has_a_size_and_ends_with_an_error() {
    let host = Host::start();
    let agent = host.sandbox().await;
    let resize = |id: &str, row, column| pb::TtyWinResizeRequest {
        container_id: id.into(),
        exec_id: id.into(),
        row,
        column,
        ..Default::default()
    };
    agent
        .calls
        .create_container(limit(), &container("c1", terminal(&["sh", "-c", "stty size; read x; stty size"])))
        .await
        .unwrap();
    agent.calls.tty_win_resize(limit(), &resize("c1", 33, 111)).await.unwrap();
    let start = pb::StartContainerRequest { container_id: "c1".into(), ..Default::default() };
    agent.calls.start_container(limit(), &start).await.unwrap();
    assert_eq!(agent.read("c1", "c1", false, 100).await.unwrap(), b"33 111\r\n");
    agent.calls.tty_win_resize(limit(), &resize("c1", 10, 20)).await.unwrap();
    agent.write("c1", "c1", b"\n").await.unwrap();
    let mut rest = Vec::new();
    let end = loop {
        match agent.read("c1", "c1", false, 100).await {
            Ok(data) => rest.extend(data),
            Err(e) => break e,
        }
    };
    assert_eq!((code(&end), says(&end).as_str()), (13, "Input/output error (os error 5)"));
    assert_eq!(rest, b"\r\n10 20\r\n");
    assert_eq!(agent.wait("c1", "c1").await.unwrap(), 0);
    agent.run(&container("c2", process(&["sleep", "1000"]))).await.unwrap();
    let no = agent.calls.tty_win_resize(limit(), &resize("c2", 1, 1)).await.unwrap_err();
    assert_eq!((code(&no), says(&no).as_str()), (14, "no tty"));
}

#[tokio::test]
async fn a_missing_program_fails_at_once() {
    let host = Host::start();
    let agent = host.sandbox().await;
    let create = container("c1", process(&["/no/such/file"]));
    let e = agent.calls.create_container(limit(), &create).await.unwrap_err();
    assert_eq!((code(&e), says(&e).as_str()), (13, "the file /no/such/file was not found"));
    agent.run(&container("c2", process(&["sleep", "1000"]))).await.unwrap();
    let e = agent.exec("c2", "e1", process(&["nosuch"])).await.unwrap_err();
    assert_eq!(says(&e), "the file nosuch was not found");
    // The container that failed left its id free.
    agent.run(&container("c1", process(&["true"]))).await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await.unwrap(), 0);
}

#[tokio::test]
async fn mistakes_of_a_host_are_told() {
    let host = Host::start();
    let agent = host.agent().await;
    let early =
        agent.calls.create_container(limit(), &container("c1", process(&["true"]))).await.unwrap_err();
    assert_eq!(says(&early), "CreateContainer before CreateSandbox");
    agent.sandbox().await.unwrap();
    let mut missing = container("c1", process(&["true"]));
    missing.OCI.as_mut().unwrap().Mounts[6].source = "/run/kata-containers/sandbox/nothing".into();
    let e = agent.calls.create_container(limit(), &missing).await.unwrap_err();
    assert!(says(&e).contains("does not exist in the guest"), "{e}");
    let mut unknown = container("c1", process(&["true"]));
    unknown.storages.push(storage("virtio-fs", "kataShared", "virtiofs", "/run/kata-containers/shared", &[]));
    let e = agent.calls.create_container(limit(), &unknown).await.unwrap_err();
    assert!(says(&e).contains("Failed to find the storage handler"), "{e}");
    // Concurrent reads have no order.
    agent.run(&container("c2", process(&["sleep", "1000"]))).await.unwrap();
    let (a, b) = tokio::join!(
        timeout(Duration::from_millis(300), agent.read("c2", "c2", false, 10)),
        agent.read("c2", "c2", false, 10)
    );
    assert!(a.is_err() && says(&b.unwrap_err()).contains("two reads outstanding"));
    // A second container of the same id: the agent forgets the first.
    let e = agent.calls.create_container(limit(), &container("c2", process(&["true"]))).await.unwrap_err();
    assert_eq!(says(&e), "exec fifo exists");
    assert_eq!(code(&agent.wait("c2", "c2").await.unwrap_err()), 3);
    let stats = pb::StatsContainerRequest { container_id: "c2".into(), ..Default::default() };
    assert_eq!(
        says(&agent.calls.stats_container(limit(), &stats).await.unwrap_err()),
        "invalid container id"
    );
    let e = agent.calls.add_swap(limit(), &pb::AddSwapRequest::new()).await.unwrap_err();
    assert_eq!(code(&e), 12);
}

#[tokio::test]
async fn a_device_that_is_not_plugged_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("devices");
    let host = Host::with(&["--devices", &list.display().to_string()]);
    let agent = host.sandbox().await;
    let began = Instant::now();
    let e = agent.calls.create_container(limit(), &container("c1", process(&["true"]))).await.unwrap_err();
    assert!(says(&e).starts_with("Timeout after 3s waiting for uevent"), "{e}");
    assert!(began.elapsed() > Duration::from_secs(3));
    let mut late = container("c2", process(&["true"]));
    // The failed mount of a shared layer counts as mounted: a new mount point is needed.
    late.storages[0].mount_point = "/run/kata-containers/sandbox/layers/l2".into();
    late.storages[1].options[0] = "lowerdir=/run/kata-containers/sandbox/layers/l2".into();
    let plugging = async {
        sleep(Duration::from_millis(100)).await;
        std::fs::write(&list, "0.0.0007\n").unwrap();
    };
    let (made, ()) = tokio::join!(agent.calls.create_container(limit(), &late), plugging);
    made.unwrap();
}

#[tokio::test]
async fn a_shared_layer_stays_mounted_without_users() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("devices");
    std::fs::write(&list, "0.0.0007\n").unwrap();
    let host = Host::with(&["--devices", &list.display().to_string()]);
    let agent = host.sandbox().await;
    agent.run(&container("c1", process(&["true"]))).await.unwrap();
    agent.wait("c1", "c1").await.unwrap();
    let remove = pb::RemoveContainerRequest { container_id: "c1".into(), ..Default::default() };
    agent.calls.remove_container(limit(), &remove).await.unwrap();
    // The source is not checked, as nothing is mounted again.
    std::fs::remove_file(&list).unwrap();
    agent.run(&container("c2", process(&["true"]))).await.unwrap();
}

const SHARED: &str = "/run/kata-containers/shared/containers";

fn file(name: &str, mode: u32, size: i64, offset: i64, data: &str) -> pb::CopyFileRequest {
    pb::CopyFileRequest {
        path: format!("{SHARED}/v-0123456789abcdef-{name}"),
        file_size: size,
        file_mode: mode,
        dir_mode: 0o40750,
        offset,
        data: data.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn files_are_copied_in_pieces_below_one_folder() {
    let host = Host::start();
    let agent = host.sandbox().await;
    for req in [
        file("hosts", 0o100_644, 10, 0, "hello"),
        file("hosts", 0o100_644, 10, 5, "world"),
        file("cfg", 0o40_755, 0, 0, ""),
        file("cfg/..1", 0o40_755, 0, 0, ""),
        file("cfg/..1/key", 0o100_600, 3, 0, "one"),
        file("cfg/..data", 0o120_777, 3, 0, "..1"),
        file("cfg/key", 0o120_777, 10, 0, "..data/key"),
    ] {
        agent.calls.copy_file(limit(), &req).await.unwrap();
    }
    let at = |name: &str| host.path(&format!("{SHARED}/v-0123456789abcdef-{name}"));
    assert_eq!(std::fs::read(at("hosts")).unwrap(), b"helloworld");
    assert_eq!(std::fs::read(at("cfg/key")).unwrap(), b"one");
    // A file takes the place of a folder with all that is in it.
    agent.calls.copy_file(limit(), &file("cfg", 0o100_400, 0, 0, "")).await.unwrap();
    assert_eq!(std::fs::read(at("cfg")).unwrap(), b"");
    let mut outside = file("x", 0o100_644, 1, 0, "x");
    outside.path = "/etc/x".into();
    let e = agent.calls.copy_file(limit(), &outside).await.unwrap_err();
    assert_eq!(says(&e), "removing \"/run/kata-containers/shared/containers/\" prefix from /etc/x");
    outside.path = "/run/kata-containers/shared/containers/../../../etc/x".into();
    assert!(agent.calls.copy_file(limit(), &outside).await.is_err());
}

#[tokio::test]
async fn what_policies_refuse_of_copied_files_is_refused() {
    let host = Host::start();
    let agent = host.sandbox().await;
    let named = |name: &str| pb::CopyFileRequest {
        path: format!("{SHARED}/{name}"),
        ..file("", 0o100_644, 0, 0, "")
    };
    for refused in [
        named("v-hosts"),
        named("0123456789abcdef-hosts"),
        named("v-0123456789ABCDEF-hosts"),
        file("link", 0o120_777, 3, 0, "..1"),
        file("cfg/link", 0o120_777, 4, 0, "/etc"),
        file("cfg/link", 0o120_777, 4, 0, "../x"),
    ] {
        let e = agent.calls.copy_file(limit(), &refused).await.unwrap_err();
        assert_eq!(code(&e), 7, "{refused}: {e}");
        assert!(says(&e).starts_with("CopyFileRequest is blocked by policy: "), "{e}");
    }
}

#[tokio::test]
async fn pieces_are_collected_under_a_name_that_other_files_share() {
    let host = Host::start();
    let agent = host.sandbox().await;
    let at = |name: &str| host.path(&format!("{SHARED}/v-0123456789abcdef-{name}"));
    let read = |name: &str| std::fs::read_to_string(at(name)).unwrap_or_else(|e| e.kind().to_string());
    let send = |req: pb::CopyFileRequest| {
        let calls = &agent.calls;
        async move { calls.copy_file(limit(), &req).await.unwrap() }
    };
    send(file("a.conf", 0o100_644, 3, 0, "old")).await;
    // The first piece of a file removes what is there.
    send(file("a.conf", 0o100_644, 10, 0, "half")).await;
    assert_eq!((read("a.conf").as_str(), read("a.tmp").as_str()), ("entity not found", "half"));
    // A rest that is longer is never complete, and no one is told.
    send(file("a.x", 0o100_644, 2, 0, "xy")).await;
    assert_eq!((read("a.x").as_str(), read("a.tmp").as_str()), ("entity not found", "xylf"));
    send(file("a.tmp", 0o100_644, 0, 0, "")).await;
    send(file("a.x", 0o100_644, 2, 0, "xy")).await;
    assert_eq!((read("a.x").as_str(), read("a.tmp").as_str()), ("xy", "entity not found"));
    // Collected for another name, with one byte less than announced, then put in the file's place.
    send(file("a.kse", 0o100_644, 4, 0, "new")).await;
    assert_eq!(read("a.x"), "xy");
    send(file("a.x", 0o100_600, 3, 3, "")).await;
    assert_eq!((read("a.x").as_str(), read("a.tmp").as_str()), ("new", "entity not found"));
    // What is made in a folder gives it its owner.
    send(file("cfg", 0o40_700, 0, 0, "")).await;
    send(pb::CopyFileRequest { uid: 1000, gid: 1001, ..file("cfg/key", 0o100_600, 1, 0, "x") }).await;
    let owner = |name: &str| std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(at(name)).unwrap());
    if nix::unistd::geteuid().is_root() {
        assert_eq!(owner("cfg"), 1000);
        send(file("cfg", 0o40_700, 0, 0, "")).await;
        assert_eq!((owner("cfg"), owner("cfg/key")), (0, 1000));
    }
}

#[tokio::test]
async fn a_paused_container_does_not_run() {
    let host = Host::start();
    let agent = host.sandbox().await;
    agent.run(&container("c1", sh("while :; do echo x; sleep 0.01; done"))).await.unwrap();
    agent.read("c1", "c1", false, 10).await.unwrap();
    let pause = pb::PauseContainerRequest { container_id: "c1".into(), ..Default::default() };
    agent.calls.pause_container(limit(), &pause).await.unwrap();
    assert!(agent.calls.pause_container(limit(), &pause).await.is_err());
    while timeout(Duration::from_millis(200), agent.read("c1", "c1", false, 100)).await.is_ok() {}
    // Only this side gave up the read above; end it for the agent too.
    let resume = pb::ResumeContainerRequest { container_id: "c1".into(), ..Default::default() };
    agent.calls.resume_container(limit(), &resume).await.unwrap();
    agent.signal("c1", "c1", 9).await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await.unwrap(), 137);
}

#[tokio::test]
async fn a_lost_connection_loses_no_status() {
    let host = Host::start();
    let agent = host.sandbox().await;
    agent.run(&container("c1", sh("sleep 0.3; exit 4"))).await.unwrap();
    let brief = timeout(Duration::from_millis(100), agent.wait("c1", "c1")).await;
    assert!(brief.is_err());
    drop(agent);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(host.agent().await.wait("c1", "c1").await.unwrap(), 4);
}

#[tokio::test]
async fn a_killed_agent_leaves_no_process() {
    let mut host = Host::start();
    let agent = host.sandbox().await;
    agent.run(&container("c1", sh("setsid sleep 1000 & echo up; sleep 1000"))).await.unwrap();
    agent.read("c1", "c1", false, 10).await.unwrap();
    agent.exec("c1", "e1", process(&["sleep", "1000"])).await.unwrap();
    agent.calls.create_container(limit(), &container("c2", process(&["true"]))).await.unwrap();
    assert!(host.processes() >= 4, "{}", host.processes());
    host.child.kill().unwrap();
    host.child.wait().unwrap();
    let began = Instant::now();
    while host.processes() > 0 {
        assert!(began.elapsed() < Duration::from_secs(5), "{} processes are left", host.processes());
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_pods_first_container_pauses_until_it_is_told_to_end() {
    let host = Host::start();
    let agent = host.sandbox().await;
    agent.run(&container("sb1", process(&["/pause"]))).await.unwrap();
    // A single wait: if it were given up and repeated, the first could consume the answer of the second.
    let waiting = agent.wait("sb1", "sb1");
    tokio::pin!(waiting);
    assert!(timeout(Duration::from_millis(200), &mut waiting).await.is_err());
    agent.signal("sb1", "", 9).await.unwrap();
    assert_eq!(waiting.await.unwrap(), 137);
    agent.remove("sb1").await.unwrap();
}
