//! The life cycle of pods and containers as the kubelet drives it through containerd's CRI, from RunPodSandbox to a
//! clean node.

use std::time::{Duration, Instant};

use cri::api::{
    CheckpointContainerRequest, ContainerEventType, ContainerFilter, ContainerState, ContainerStateValue,
    ImageSpec, ListContainersRequest, ListPodSandboxRequest, PodSandboxFilter, PodSandboxState,
    PodSandboxStatusRequest, VersionRequest,
};
use cri::{Code, Node, OWN, Pod};
use harness::until;

cri::on_each_version! {
    in_short:
    the_main_path,
    exit_codes_have_the_kubelets_reasons,
    a_stop_waits_for_its_grace_period;
    in_full:
    running_containers_and_pods_can_be_removed,
    a_container_is_started_again_in_its_pod,
    a_missing_program_is_named,
    several_pods_run_at_once,
    thirty_containers_come_and_go,
    pods_come_and_go,
    a_checkpoint_is_refused,
    events_report_the_life_of_a_pod,
    a_dead_vm_ends_its_pod_and_nothing_else;
}

fn containers(node: &Node, filter: ContainerFilter) -> Vec<String> {
    let answer =
        node.list_containers(ListContainersRequest { filter: Some(filter) }).expect("ListContainers");
    answer.containers.into_iter().map(|container| container.id).collect()
}

fn pods(node: &Node, filter: PodSandboxFilter) -> Vec<String> {
    let answer =
        node.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).expect("ListPodSandbox");
    answer.items.into_iter().map(|pod| pod.id).collect()
}

fn the_main_path(node: &Node) {
    let version = node.version(VersionRequest::default()).expect("Version");
    assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("containerd", "v1"));
    let mut config = node.config("main");
    config.labels.insert("app".into(), "main".into());
    config.annotations.insert("note".into(), "kept".into());
    let pod = node.run(&config);
    let status = pod.status();
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(status.metadata, config.metadata);
    assert_eq!((&status.labels["app"], &status.annotations["note"]), (&"main".into(), &"kept".into()));
    assert_eq!(status.runtime_handler, "kata-se");
    assert!(pod.address().starts_with("10.89.0."), "{status:?}");
    let mine = |id: &str| PodSandboxFilter { id: id.into(), ..Default::default() };
    assert_eq!(pods(node, mine(&pod.id)), [pod.id.as_str()]);
    let labelled = |value: &str| PodSandboxFilter {
        label_selector: [("app".into(), value.into())].into(),
        ..Default::default()
    };
    assert_eq!((pods(node, labelled("main")).len(), pods(node, labelled("other")).len()), (1, 0));

    let mut config =
        pod.plain("c1", &["sh", "-c", "uname -m; echo problem >&2; trap 'exit 0' TERM; sleep 100 & wait"]);
    config.labels.insert("part".into(), "one".into());
    let container = pod.create(&config);
    assert_eq!(container.status().state(), ContainerState::ContainerCreated);
    container.start();
    container.says("s390x\n");
    let status = container.status();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert!(status.created_at > 0 && status.started_at >= status.created_at && status.finished_at == 0);
    assert_eq!((status.metadata, status.labels), (config.metadata.clone(), config.labels.clone()));
    until("stderr is in the log", 10, || container.logged("stderr") == "problem\n");
    let done = container.exec(&["sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!((done.stdout.as_str(), done.stderr.as_str(), done.code), ("out\n", "err\n", 5));

    let state = |state: ContainerState| ContainerFilter {
        state: Some(ContainerStateValue { state: state.into() }),
        pod_sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    assert_eq!(containers(node, state(ContainerState::ContainerRunning)), [container.id.as_str()]);
    container.stop(10);
    container.stop(10); // again: a no-op
    let status = container.status();
    assert_eq!(
        (status.state(), status.exit_code, status.reason.as_str()),
        (ContainerState::ContainerExited, 0, "Completed")
    );
    assert!(status.finished_at >= status.started_at);
    assert_eq!(containers(node, state(ContainerState::ContainerRunning)).len(), 0);
    assert_eq!(containers(node, state(ContainerState::ContainerExited)), [container.id.as_str()]);
    container.remove();
    container.remove();
    assert_eq!(container.try_status().expect_err("gone").code(), Code::NotFound);

    pod.stop();
    pod.stop();
    assert_eq!(pod.status().state(), PodSandboxState::SandboxNotready);
    pod.try_remove().expect("RemovePodSandbox");
    pod.try_remove().expect("RemovePodSandbox again");
    let id = pod.id.clone();
    pod.remove();
    assert_eq!(node.pod_status(&id).expect_err("gone").code(), Code::NotFound);
    assert_eq!(pods(node, mine(&id)).len(), 0);
}

fn exit_codes_have_the_kubelets_reasons(node: &Node) {
    let pod = node.pod("codes");
    for (name, script, code, reason) in [
        ("good", "exit 0", 0, "Completed"),
        ("bad", "exit 3", 3, "Error"),
        ("killed", "kill -9 $$; sleep 100", 137, "Error"),
    ] {
        // The init process of a namespace cannot kill itself.
        let script = if code == 137 { format!("sh -c '{script}'; exit $?") } else { script.to_owned() };
        let status = pod.script(name, &script).ended(20);
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{script}");
    }
    let mut hungry = pod.plain("hungry", &["tail", "/dev/zero"]);
    hungry.linux.get_or_insert_default().resources =
        Some(cri::api::LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() });
    let status = pod.start(&hungry).ended(60);
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
}

fn a_stop_waits_for_its_grace_period(node: &Node) {
    let pod = node.pod("stop");
    let polite =
        pod.script("polite", "trap 'sleep 1; echo bye; exit 7' TERM; echo up; while :; do sleep 0.1; done");
    polite.says("up");
    polite.stop(20);
    assert_eq!((polite.status().exit_code, polite.logged("stdout").as_str()), (7, "up\nbye\n"));

    let deaf = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    let stubborn = pod.script("stubborn", deaf);
    stubborn.says("up");
    let began = Instant::now();
    stubborn.stop(2);
    assert!((2..10).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(stubborn.status().exit_code, 137);

    let stubborn = pod.script("at-once", deaf);
    let began = Instant::now();
    stubborn.stop(0);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(stubborn.status().exit_code, 137);

    let mut own = pod.plain("own", &["sh", "-c", "trap 'exit 9' USR1; echo up; while :; do sleep 0.1; done"]);
    own.image = Some(ImageSpec { image: OWN.into(), ..Default::default() });
    let own = pod.start(&own);
    own.says("up");
    own.stop(20);
    assert_eq!(own.status().exit_code, 9, "the image's own signal");
}

fn running_containers_and_pods_can_be_removed(node: &Node) {
    let pod = node.pod("remove");
    let container = pod.idle("c1");
    container.remove();
    assert_eq!(container.try_status().expect_err("gone").code(), Code::NotFound);
    let created = pod.create(&pod.plain("never-started", &["true"]));
    created.remove();
    let left = pod.idle("c2");
    pod.stop();
    assert_eq!(left.status().state(), ContainerState::ContainerExited);
    left.try_exec(&["true"], 5).expect_err("it has ended");
    pod.remove();
    assert_eq!(left.try_status().expect_err("gone").code(), Code::NotFound);

    // Without stopping it first.
    let pod = node.pod("at-once");
    pod.idle("c1");
    pod.remove();
}

fn a_container_is_started_again_in_its_pod(node: &Node) {
    let pod = node.pod("again");
    let mut config = pod.plain("c1", &["sh", "-c", "echo attempt; touch /mark; exit 1"]);
    let first = pod.start(&config);
    assert_eq!(first.ended(20).exit_code, 1);
    config.metadata.as_mut().expect("metadata").attempt = 1;
    config.log_path = "c1/1.log".into();
    config.command = ["sh", "-c", "ls /mark; echo attempt"].map(String::from).to_vec();
    let second = pod.start(&config);
    assert_eq!(second.ended(20).exit_code, 0);
    assert_eq!(second.status().metadata.expect("metadata").attempt, 1);
    assert!(second.logged("stderr").contains("No such file"), "it begins with the image's files");
    assert_eq!(
        (first.logged("stdout").as_str(), second.logged("stdout").as_str()),
        ("attempt\n", "attempt\n")
    );
    first.remove();
    assert_eq!(pod.status().state(), PodSandboxState::SandboxReady);
}

fn a_missing_program_is_named(node: &Node) {
    let pod = node.pod("missing");
    let container = pod.create(&pod.plain("c1", &["/no/such/program"]));
    let e = container.try_start().expect_err("it cannot start");
    assert!(e.message().contains("/no/such/program"), "{}", e.message());
    let status = container.status();
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_ne!(status.exit_code, 0);
    assert!(matches!(status.reason.as_str(), "StartError" | "ContainerCannotRun"), "{status:?}");
    // The pod still works.
    assert_eq!(pod.script("c2", "exit 0").ended(20).exit_code, 0);
}

fn several_pods_run_at_once(node: &Node) {
    let pods: Vec<Pod> = std::thread::scope(|scope| {
        let running: Vec<_> =
            ["one", "two", "three"].into_iter().map(|name| scope.spawn(move || node.pod(name))).collect();
        running.into_iter().map(|pod| pod.join().expect("pod")).collect()
    });
    let serving: Vec<_> = pods
        .iter()
        .map(|pod| {
            let page = &pod.config.hostname;
            pod.script("web", &format!("mkdir /www; echo {page} > /www/index.html; httpd -f -p 80 -h /www"))
        })
        .collect();
    for (pod, server) in pods.iter().zip(&serving) {
        let get = format!("until wget -q -O - http://{}/; do sleep 0.2; done", pod.address());
        for asking in &serving {
            assert_eq!(asking.sh(&get), format!("{}\n", pod.config.hostname), "{server:?}");
        }
    }
    std::thread::scope(|scope| {
        for pod in pods {
            scope.spawn(move || pod.end());
        }
    });
}

fn thirty_containers_come_and_go(node: &Node) {
    let pod = node.pod("thirty");
    for round in 0..30 {
        let container = pod.script(&format!("c{round}"), "echo here");
        assert_eq!(container.ended(20).exit_code, 0, "{round}");
        assert_eq!(container.logged("stdout"), "here\n", "{round}");
        container.remove();
    }
    assert_eq!(containers(node, ContainerFilter::default()).len(), 0);
}

fn pods_come_and_go(node: &Node) {
    let config = node.config("cycle");
    for round in 0..4 {
        let pod = node.run(&config);
        assert_eq!(pod.script("c", "exit 0").ended(20).exit_code, 0, "{round}");
        pod.end();
        node.containerd.assert_clean();
    }
}

fn a_checkpoint_is_refused(node: &Node) {
    let pod = node.pod("checkpoint");
    let container = pod.idle("c1");
    let request = CheckpointContainerRequest {
        container_id: container.id.clone(),
        location: node.path("checkpoint.tar").display().to_string(),
        timeout: 10,
    };
    let e = node.checkpoint_container(request).expect_err("refused");
    assert!(!e.message().is_empty() && e.message().lines().count() == 1, "{}", e.message());
    assert_eq!(container.sh("echo goes on"), "goes on\n");
}

/// In order; containerd 1.6 does not have this call.
fn events_report_the_life_of_a_pod(node: &Node) {
    let mut events = node.container_events();
    if node.version == "1.6" {
        return assert_eq!(node.next_event(&mut events).expect_err("unknown").code(), Code::Unimplemented);
    }
    let pod = node.pod("events");
    let sandbox = pod.id.clone();
    let container = pod.script("c1", "exit 3");
    let id = container.id.clone();
    container.ended(20);
    container.remove();
    pod.end();
    let (mut of_pod, mut of_container) = (Vec::new(), Vec::new());
    while of_pod.last() != Some(&ContainerEventType::ContainerDeletedEvent) {
        let event = node.next_event(&mut events).expect("event");
        let of = if event.container_id == id { &mut of_container } else { &mut of_pod };
        assert!([&id, &sandbox].contains(&&event.container_id), "{event:?}");
        of.push(event.container_event_type());
    }
    use ContainerEventType::*;
    let whole = [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent, ContainerDeletedEvent];
    assert_eq!((of_pod, of_container), (whole.to_vec(), whole.to_vec()));
}

fn a_dead_vm_ends_its_pod_and_nothing_else(node: &Node) {
    let (dying, other) = (node.pod("dying"), node.pod("other"));
    let (victim, bystander) = (dying.idle("c1"), other.idle("c1"));
    let request = PodSandboxStatusRequest { pod_sandbox_id: dying.id.clone(), verbose: true };
    let info = node.pod_sandbox_status(request).expect("PodSandboxStatus").info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("JSON");
    // The process that node monitoring finds for the pod is its QEMU.
    let pid = info["pid"].as_u64().expect("pid").to_string();
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).expect("process");
    assert!(name.starts_with("qemu"), "{name}");
    let killed = std::process::Command::new("kill").args(["-KILL", &pid]).status().expect("kill");
    assert!(killed.success());
    let status = victim.ended(10);
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    until("its sandbox is not ready", 10, || dying.status().state() == PodSandboxState::SandboxNotready);
    victim.try_exec(&["true"], 5).expect_err("it is gone");
    dying.end();
    assert_eq!(bystander.sh("echo goes on"), "goes on\n");
}
