//! The shim with doubles for QEMU and the guest: only its own time is measured.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use harness::{Bundle, KubeletVolume, Shim, TestNode, agent};
use kata_se::test_api::Agent;
use kata_se::test_api::OutputStream;
use kata_se::test_api::guest_process;
use kata_se::test_api::parse_process;
use kata_se::test_api::{ContainerId, ExecId, ProcessId};

use crate::process::cpu;
use crate::table::{Table, Wanted, median};

const ROUNDS: usize = 20;
const EXECS: u32 = 100;

pub(crate) async fn measure(table: &mut Table) {
    table.heading("with doubles, milliseconds, median");
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("sleep 1000"));
    let layer = dir.join("rootfs");
    let (mut starts, mut to_exec, mut from_answer, mut deletes) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let shim = node.shim("c1", &dir).await;
        starts.push(began.elapsed());
        let asked = SystemTime::now();
        shim.create_on("c1", &dir, &[&layer]).await.expect("create");
        let answered = SystemTime::now();
        let log = node.log();
        to_exec.push(since(asked, logged(&log, "qemu_spawned")));
        from_answer.push(since(logged(&log, "agent_ready"), answered));
        node.end(&shim, "c1").await;
        let began = Instant::now();
        node.delete("c1");
        deletes.push(began.elapsed());
    }
    table.row("command start", median(starts), None, Wanted::AtMost(30.0));
    table.row("Create to the exec of QEMU", median(to_exec), None, Wanted::AtMost(30.0));
    table.row("the agent's first answer to Create's return", median(from_answer), None, Wanted::AtMost(50.0));
    table.row("command delete, nothing left to do", median(deletes), None, Wanted::AtMost(15.0));

    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let (pid, _) = shim.pid("c1").await;
    let before = cpu(pid);
    let through = through_shim(&shim).await;
    let used = cpu(pid).saturating_sub(before) / EXECS;
    let direct = directly(&agent(&node.pod_dir()).await, "c1").await;
    table.row("exec true over the agent's own time", through - direct, None, Wanted::AtMost(5.0));
    table.row("  the whole exec; the agent's own time", through, Some(direct), Wanted::Nothing);
    table.row("CPU of the shim for one exec", crate::table::ms(used), None, Wanted::Nothing);
    node.end(&shim, "c1").await;
    let plug = plugged(&node).await;
    table.row("an emptyDir's disk, made and plugged", plug, None, Wanted::AtMost(20.0));
    let name = "a secret of 20 keys, from the kubelet's swap to the guest";
    table.row(name, update(&node).await, None, Wanted::AtMost(300.0));
}

/// Creates with this many emptyDirs take so much longer than without, for each.
async fn plugged(node: &TestNode) -> f64 {
    const DISKS: u32 = 10;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    let (mut with, mut without) = (vec![], vec![]);
    for round in 0..ROUNDS {
        for (times, disks) in [(&mut without, 0), (&mut with, DISKS)] {
            let id = format!("m{round}-{disks}");
            let volumes = (0..disks).map(|n| (format!("/v{n}"), node.empty_dir(&format!("{id}-{n}"))));
            let bundle = volumes.fold(Bundle::sh("sleep 1000").member("s1"), |bundle, (at, folder)| {
                bundle.empty_dir(&at, &folder)
            });
            let dir = node.bundle(&id, &bundle);
            let began = Instant::now();
            shim.create_on(&id, &dir, &[&dir.join("rootfs")]).await.expect("create");
            times.push(began.elapsed());
            shim.delete(&id, "").await.expect("delete");
        }
    }
    node.end(&shim, "s1").await;
    (median(with) - median(without)) / f64::from(DISKS)
}

/// How long after the kubelet's update of a secret the guest has it.
async fn update(node: &TestNode) -> f64 {
    let keys: Vec<String> = (0..20).map(|n| format!("key{n}")).collect();
    let texts: Vec<String> = (0..=ROUNDS).map(|round| round.to_string()).collect();
    let of = |text: &str| keys.iter().map(|key| (key.clone(), text.to_owned())).collect::<Vec<_>>();
    let mut volume = KubeletVolume::new(node.path("secret"), &pairs(&of("0")));
    let mut bundle = Bundle::sh("sleep 1000");
    bundle.config["mounts"].as_array_mut().expect("list").push(serde_json::json!({
        "destination": "/etc/secret", "type": "bind", "source": volume.path(), "options": ["rbind", "ro"],
    }));
    let shim = node.running("c1", &bundle).await;
    let shared = node.path("guest/run/kata-containers/shared/containers");
    let copy = fs::read_dir(shared).expect("list").flatten().map(|entry| entry.path());
    let copy = copy.filter(|path| path.display().to_string().ends_with("-secret")).last().expect("a copy");
    let mut times = Vec::new();
    for text in texts.iter().skip(1) {
        volume.update(&pairs(&of(text)));
        let began = Instant::now();
        while fs::read_to_string(copy.join("key19")).ok().as_ref() != Some(text) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        times.push(began.elapsed());
        // Longer than the pause between two updates.
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    node.end(&shim, "c1").await;
    median(times)
}

fn pairs(keys: &[(String, String)]) -> Vec<(&str, &str)> {
    keys.iter().map(|(key, text)| (key.as_str(), text.as_str())).collect()
}

fn since(from: SystemTime, to: SystemTime) -> Duration {
    to.duration_since(from).unwrap_or_default()
}

/// When the shim logged the last line of this step.
fn logged(log: &str, step: &str) -> SystemTime {
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let line = lines.rfind(|line| line["step"] == step).expect("a line of the step");
    humantime::parse_rfc3339(line["time"].as_str().expect("time")).expect("time")
}

async fn through_shim(shim: &Shim) -> f64 {
    let mut times = Vec::new();
    for n in 0..EXECS {
        let began = Instant::now();
        assert_eq!(shim.run_exec("c1", &format!("s{n}"), &["/bin/true"]).await, 0);
        times.push(began.elapsed());
    }
    median(times)
}

/// The same calls as the shim makes, straight to the agent.
async fn directly(agent: &Agent, container: &str) -> f64 {
    let mut times = Vec::new();
    for n in 0..EXECS {
        let id = process(container, &format!("d{n}"));
        let began = Instant::now();
        exec(agent, &id, &["/bin/true"]).await;
        let to_end = |stream| {
            let id = &id;
            async move { while !read(agent, id, stream).await.is_empty() {} }
        };
        tokio::join!(to_end(OutputStream::Stdout), to_end(OutputStream::Stderr));
        assert_eq!(agent.wait_process(&id).await, Ok(0));
        times.push(began.elapsed());
    }
    median(times)
}

pub(crate) fn process(container: &str, exec: &str) -> ProcessId {
    let container = ContainerId::parse(container).expect("id");
    ProcessId { container, exec: Some(ExecId::parse(exec).expect("id")) }
}

pub(crate) async fn exec(agent: &Agent, id: &ProcessId, args: &[&str]) {
    let process = guest_process(parse_process(&Bundle::process(args)).expect("process"), false);
    agent.exec_process(id, &process).await.expect("exec");
}

/// As many as the shim asks for with one call.
const READ_BYTES: u32 = 64 << 10;

pub(crate) async fn read(agent: &Agent, id: &ProcessId, stream: OutputStream) -> Vec<u8> {
    agent.read_output(id, stream, READ_BYTES).await.expect("read")
}
