//! The Task API on a real guest, called as containerd calls it: waiters, taken and unknown names, and
//! a container that is deleted before it starts.

use std::path::Path;

use harness::{Bundle, Code, Containerd, NO_STREAMS, Shim, cached, code, within};

/// A bundle for a container that is never started; its program must exist all the same.
fn bundle(node: &Containerd, id: &str) -> std::path::PathBuf {
    let dir = node.path(id);
    std::fs::create_dir_all(dir.join("rootfs/bin")).expect("rootfs");
    std::fs::copy(cached("guest/programs/bin/busybox"), dir.join("rootfs/bin/busybox")).expect("busybox");
    let member = Bundle::new(&["/bin/busybox", "true"]).member("pod");
    std::fs::write(dir.join("config.json"), member.config.to_string()).expect("config.json");
    dir
}

async fn waiters(shim: &Shim) {
    shim.exec("pod", "e1", Bundle::process(&["sleep", "1000"]), NO_STREAMS).await.expect("exec");
    shim.start("pod", "e1").await.expect("start");
    let (one, two, three, ()) =
        tokio::join!(shim.wait("pod", "e1"), shim.wait("pod", "e1"), shim.wait("pod", "e1"), async {
            shim.kill("pod", "e1", 15).await.expect("kill");
        });
    assert_eq!((one, two, three), (Ok(143), Ok(143), Ok(143)), "all waiters get the status");
    assert_eq!(shim.wait("pod", "e1").await, Ok(143), "also later");
    assert_eq!(shim.delete("pod", "e1").await, Ok(143));
}

async fn names(shim: &Shim, dir: &Path) {
    assert_eq!(code(&shim.create("pod", dir, NO_STREAMS).await), Some(Code::ALREADY_EXISTS));
    for (id, exec) in [("cx", ""), ("cx", "e1"), ("pod", "ex")] {
        shim.assert_unknown(id, exec).await;
    }
    assert_eq!(code(&shim.pids("cx").await), Some(Code::NOT_FOUND));
}

#[tokio::test]
async fn waiters_names_and_deletes_of_one_guest() {
    let node = Containerd::new();
    let options = ["--rm", "--annotation", "io.kubernetes.cri.container-type=sandbox"];
    let mut running = node.running(&options, "pod", "trap 'exit 0' TERM; while :; do sleep 0.1; done");
    let address = format!("unix://{}", node.pod_dir().join("s").display());
    let shim = Shim::connect(&address, &node.path("run")).await;
    waiters(&shim).await;
    names(&shim, &node.path("state/io.containerd.runtime.v2.task/default/pod")).await;
    let dir = bundle(&node, "member");
    for _ in 0..2 {
        shim.create("member", &dir, NO_STREAMS).await.expect("create");
        assert_eq!(shim.delete("member", "").await, Ok(0), "never started");
        assert_eq!(code(&shim.state("member", "").await), Some(Code::NOT_FOUND));
    }
    node.ctr_ok(&["task", "kill", "pod"]);
    let ended = within("its end", 20, tokio::task::spawn_blocking(move || running.wait())).await;
    assert_eq!(ended.expect("join").expect("ctr").code(), Some(0));
    node.assert_clean();
}
