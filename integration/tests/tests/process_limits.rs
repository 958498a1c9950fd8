//! A shim that gets less of the node than it needs: an error that names the limit, and nothing left behind.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};

use harness::{Bundle, Mounted, NO_STREAMS, Shim, TestNode, within};

/// A small file system in the place of the run directory, until this is dropped.
struct SmallRun(Mounted);

impl SmallRun {
    fn mount(path: PathBuf) -> Self {
        Self(Mounted::new("tmpfs", path, Some("size=256k,mode=700")))
    }

    /// Leaves this many pages free.
    fn fill(&self, free: u64) {
        let filler = self.0.path().join("filler");
        let mut file = File::options().create(true).append(true).open(&filler).expect("filler");
        while file.write_all(&[0; 4096]).is_ok() {}
        let full = file.metadata().expect("filler").len();
        file.set_len(full.saturating_sub(free * 4096)).expect("free");
    }

    /// Nothing is left, once the shim has ended.
    async fn assert_empty(&self) {
        let left = || {
            let names =
                fs::read_dir(self.0.path()).expect("run").map(|entry| entry.expect("entry").file_name());
            names.filter(|name| !name.to_string_lossy().starts_with("verified-")).collect::<Vec<_>>()
        };
        harness::eventually("an empty directory", 5, || left() == ["filler"]).await;
    }
}

/// Creates a pod; an error of `start` or of Create, in words.
async fn create(node: &TestNode, dir: &Path, limit: Option<u64>) -> Result<Shim, String> {
    let mut start = node.start_command("c1", dir);
    if let Some(limit) = limit {
        // SAFETY: a system call, and nothing else.
        #[allow(unsafe_code)]
        unsafe {
            start.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?));
        }
    }
    let output = start.output().expect("run the shim");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let address = String::from_utf8_lossy(&output.stdout).into_owned();
    let shim = match Shim::try_connect(&address, &node.path("stdio")).await {
        Ok(shim) => shim,
        Err(e) => return Err(format!("connect: {e}")),
    };
    match within("an answer", 20, shim.create("c1", dir, NO_STREAMS)).await {
        Ok(_) => Ok(shim),
        Err(e) => {
            // As containerd: one that cannot be ended in order is deleted.
            tokio::time::timeout(Duration::from_secs(5), shim.shutdown(true)).await.ok();
            Err(e.to_string())
        }
    }
}

#[tokio::test]
async fn a_full_run_directory_is_named_at_whatever_step_and_needs_no_space_to_be_cleaned() {
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("sleep 1000"));
    let run = SmallRun::mount(node.path("run"));
    let mut failed = 0;
    let shim = loop {
        run.fill(failed);
        match create(&node, &dir, None).await {
            Ok(shim) => break shim,
            Err(e) => {
                assert!(e.contains("No space left on device"), "{failed} pages free: {e}");
                assert!(e.contains(&*node.path("run").to_string_lossy()) || e.contains("journal"), "{e}");
            }
        }
        node.delete("c1");
        run.assert_empty().await;
        failed += 1;
        assert!(failed < 40, "it never fits");
    };
    assert!(failed > 0, "a full directory fails");
    run.fill(0);
    shim.start("c1", "").await.expect("start");
    assert_eq!(shim.run_exec("c1", "e", &["/bin/true"]).await, 0);
    shim.kill("c1", "", 9).await.expect("kill");
    shim.wait("c1", "").await.expect("wait");
    shim.delete("c1", "").await.expect("delete");
    shim.shutdown(true).await.expect("shutdown");
    run.assert_empty().await;
    // And without a shim.
    run.fill(20);
    let shim = create(&node, &dir, None).await.expect("create");
    run.fill(0);
    let pid = shim.pid("c1").await.0;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.try_into().expect("pid")),
        nix::sys::signal::SIGKILL,
    )
    .expect("kill");
    node.delete("c1");
    run.assert_empty().await;
    drop(run);
    node.assert_clean();
}

#[tokio::test]
async fn too_few_descriptors_are_named_with_their_limit_at_whatever_step() {
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("sleep 1000"));
    let mut limit = 8;
    let shim = loop {
        match create(&node, &dir, Some(limit)).await {
            Ok(shim) => break shim,
            Err(e) => {
                assert!(e.contains("RLIMIT_NOFILE") || e.contains("os error 24"), "limit of {limit}: {e}");
            }
        }
        node.delete("c1");
        node.assert_clean();
        limit += 1;
        assert!(limit < 300, "they are never enough");
    };
    assert!(limit > 8, "the first ones are too few");
    shim.start("c1", "").await.expect("start");
    node.end(&shim, "c1").await;
}
