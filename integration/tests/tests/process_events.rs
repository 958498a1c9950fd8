//! Events reach containerd in order, however long it is away, and block nothing meanwhile.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::{Bundle, TestNode, eventually, within};

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

#[tokio::test]
async fn events_wait_for_a_containerd_that_is_away() {
    let mut node = TestNode::new().await;
    node.events.down().await;
    let shim = node.running("c1", &Bundle::sh("exit 3")).await;
    assert_eq!(shim.wait("c1", "").await, Ok(3));
    node.events.up().await;
    eventually("the events come", 10, || node.events.seen().len() >= 3).await;
    assert_eq!(node.events.lines(), ["create c1", "start c1", "exit c1 3"]);
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn execs_work_while_containerd_takes_no_events() {
    let mut node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    eventually("the first events", 5, || node.events.seen().len() == 2).await;
    node.events.down().await;
    // A service that accepts what is sent and never answers.
    let mute = std::os::unix::net::UnixListener::bind(node.path("events.sock")).expect("bind");
    let began = Instant::now();
    for n in 0..30 {
        assert_eq!(within("an exec", 5, shim.run_exec("c1", &format!("e{n}"), &["/bin/true"])).await, 0);
    }
    eprintln!("30 execs in {:?} beside a containerd that takes no events", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    drop(mute);
    node.events.up().await;
    eventually("all events", 20, || node.events.seen().len() == 2 + 30 * 3).await;
    let lines = node.events.lines();
    for (n, of_exec) in lines[2..].chunks(3).enumerate() {
        assert_eq!(
            of_exec,
            [format!("exec-added c1/e{n}"), format!("exec-started c1/e{n}"), format!("exit c1/e{n} 0")]
        );
    }
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn exit_events_of_execs_come_before_that_of_their_init() {
    let node = TestNode::new().await;
    // The init process exits, is killed, and ends with its VM.
    for way in ["exit", "kill", "vm"] {
        for round in 0..5 {
            let id = format!("{way}{round}");
            let go = node.path(&id);
            let script = format!("while ! [ -e {} ]; do sleep 0.02; done; exit 7", go.display());
            let shim = node.running(&id, &Bundle::sh(&script)).await;
            let mut held = Vec::new();
            for n in 0..3 {
                let (name, out) = (format!("e{n}"), shim.fifo(&format!("{id}-{n}"), "out"));
                // Nobody reads what they write.
                held.push(std::fs::OpenOptions::new().read(true).write(true).open(&out).expect("open"));
                let process = Bundle::process(&["/bin/sh", "-c", "echo some output; sleep 1000"]);
                shim.exec(&id, &name, process, ["", text(&out), ""]).await.expect("exec");
                shim.start(&id, &name).await.expect("start");
            }
            let status = match way {
                "exit" => {
                    std::fs::File::create(&go).expect("go").write_all(b"").expect("go");
                    7
                }
                "kill" => shim.kill(&id, "", 9).await.map(|()| 137).expect("kill"),
                _ => {
                    let vm = nix::unistd::Pid::from_raw(i32::try_from(shim.pid(&id).await.1).expect("pid"));
                    nix::sys::signal::kill(vm, nix::sys::signal::Signal::SIGKILL).map(|()| 137).expect("kill")
                }
            };
            assert_eq!(within("its end", 5, shim.wait(&id, "")).await, Ok(status));
            let exits = || -> Vec<String> {
                let lines = node.events.lines().into_iter();
                lines.filter(|l| l.starts_with(&format!("exit {id}"))).collect()
            };
            eventually("all exits", 5, || exits().len() == 4).await;
            assert_eq!(exits().last(), Some(&format!("exit {id} {status}")), "{:?}", exits());
            shim.delete(&id, "").await.expect("delete");
            shim.shutdown(false).await.expect("shutdown");
        }
    }
    node.assert_clean();
}
