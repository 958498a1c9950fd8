//! Containers under a real containerd: ours in emulated guests, runc's on this machine's kernel.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Bundle, Containerd, Shim, cached, program};
use kata_se::test_api::OutputStream;

use crate::doubles;
use crate::process::{cpu, idle, only};
use crate::table::{Table, Wanted, median, ms};

const RUNC_SHIM: &str = "containerd/1.6/usr/bin/containerd-shim-runc-v2";
/// What one throughput measurement carries.
const BYTES: usize = 32 << 20;

pub(crate) fn sizes(table: &mut Table) {
    table.heading("on disk, MB");
    let mb = |path: PathBuf| {
        let bytes = fs::metadata(path).expect("size").len();
        f64::from(u32::try_from(bytes / 1000).unwrap_or(u32::MAX)) / 1e3
    };
    let ours = mb(program("containerd-shim-kata-se-v2"));
    table.row("shim", ours, Some(mb(cached(RUNC_SHIM))), Wanted::AtMost(6.0));
}

pub(crate) fn measure(table: &mut Table, runtime: &tokio::runtime::Runtime) {
    remove_runcs_cgroup(); // of an earlier run
    let node = Containerd::new();
    let native = Native::new();
    let root = native.0.path().display().to_string();
    let ours = |id: &str, args: &[&str]| node.run(&["--rm"], id, args);
    let runc = |id: &str, args: &[&str]| {
        let words = ["run", "--rm", "--runtime", "io.containerd.runc.v2", "--rootfs", &root, id];
        node.command(&[&words[..], args].concat())
    };

    table.heading("wall time of ctr, milliseconds, median");
    let runs = |count: usize, start: &dyn Fn(&str, &[&str]) -> Command| {
        median((0..count).map(|n| timed(start(&format!("t{n}"), &["/bin/true"]))).collect())
    };
    table.row(
        "run true (ours boots an emulated guest)",
        runs(3, &ours),
        Some(runs(5, &runc)),
        Wanted::Nothing,
    );

    let mut sleeping = vec![];
    for (id, mut command) in
        [("ours", ours("ours", &["sleep", "1000"])), ("runc", runc("runc", &["/bin/sleep", "1000"]))]
    {
        sleeping.push((id, command.stdout(Stdio::null()).spawn().expect("ctr")));
        harness::until("it runs", 60, || {
            node.ctr_ok(&["task", "ls"]).lines().any(|l| l.starts_with(id) && l.contains("RUNNING"))
        });
    }
    let socket = node.path("c.sock").display().to_string();
    let shims = ["kata-se-v2 -namespace default -id ours", "runc-v2 -namespace default -id runc"]
        .map(|text| only(&format!("{text} -address {socket}")));
    let execs = |id: &str, pid: u32| {
        let before = cpu(pid);
        let times = (0..20)
            .map(|n| timed(node.command(&["task", "exec", "--exec-id", &format!("x{n}"), id, "/bin/true"])));
        let time = median(times.collect());
        (time, ms(cpu(pid).saturating_sub(before) / 20))
    };
    let held = shims.map(idle);
    let (our_exec, runc_exec) = (execs("ours", shims[0]), execs("runc", shims[1]));
    table.row("exec true (ours in an emulated guest)", our_exec.0, Some(runc_exec.0), Wanted::Nothing);
    table.row("CPU of the shim for one exec", our_exec.1, Some(runc_exec.1), Wanted::Nothing);
    table.heading("the shim, with one idle container");
    table.row("memory, PSS, MB", held[0].pss_mb, Some(held[1].pss_mb), Wanted::AtMost(6.0));
    table.row("threads", held[0].threads, Some(held[1].threads), Wanted::AtMost(4.0));
    table.row("open files", held[0].files, Some(held[1].files), Wanted::Nothing);

    table.heading("stdout of an emulated guest");
    let pod = node.pod_dir();
    let (shim, direct) = runtime.block_on(throughput(&pod, &node.path("output")));
    table.row("MB/s; reference: back-to-back ReadStdout calls", shim, Some(direct), Wanted::Nothing);
    table.row("percent of those calls", shim / direct * 100.0, None, Wanted::AtLeast(90.0));
    for (id, mut child) in sleeping {
        node.ctr_ok(&["task", "kill", "--signal", "KILL", id]);
        child.wait().expect("ctr");
    }
    remove_runcs_cgroup();
    node.assert_clean();
}

/// runc leaves the parent of its container's cgroup.
fn remove_runcs_cgroup() {
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        fs::remove_dir(hierarchy.path().join("default")).ok();
    }
}

fn timed(mut command: Command) -> Duration {
    let began = Instant::now();
    let output = command.output().expect("ctr");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    began.elapsed()
}

/// A root file system for runc: two programs of this machine with their libraries.
struct Native(tempfile::TempDir);

impl Native {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        for file in
            ["/bin/true", "/bin/sleep", "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"]
        {
            let to = dir.path().join(file.trim_start_matches('/'));
            fs::create_dir_all(to.parent().expect("folder")).expect("mkdir");
            fs::copy(file, to).expect(file);
        }
        Self(dir)
    }
}

/// The same bytes of one guest through the shim into a fifo, and by direct calls; MB/s.
async fn throughput(pod: &Path, fifo: &Path) -> (f64, f64) {
    let count = format!("count={}", BYTES >> 16);
    let args = ["dd", "if=/dev/zero", "bs=65536", &count];
    let address = format!("unix://{}", pod.join("s").display());
    let shim = Shim::connect(&address, fifo.parent().expect("folder")).await;
    let agent = harness::agent(pod).await;
    let (mut ours, mut direct) = (vec![], vec![]);
    for round in 0..3 {
        ours.push(by_shim(&shim, &format!("by-shim{round}"), &args).await);
        direct.push(by_calls(&agent, &format!("by-calls{round}"), &args).await);
    }
    let rate = |times| f64::from(u32::try_from(BYTES).expect("fits")) / 1e3 / median(times);
    (rate(ours), rate(direct))
}

async fn by_shim(shim: &Shim, exec: &str, args: &[&str]) -> Duration {
    let fifo = shim.fifo(exec, "out");
    let path = fifo.display().to_string();
    let reader = std::thread::spawn(move || {
        let mut file = fs::File::open(fifo).expect("open");
        let (mut chunk, mut left, mut began) = (vec![0; 1 << 20], BYTES, None);
        while left > 0 {
            left -= file.read(&mut chunk).expect("read");
            began.get_or_insert_with(Instant::now);
        }
        began.expect("bytes").elapsed()
    });
    shim.exec("ours", exec, Bundle::process(args), ["", &path, ""]).await.expect("exec");
    shim.start("ours", exec).await.expect("start");
    assert_eq!(shim.wait("ours", exec).await, Ok(0));
    shim.delete("ours", exec).await.expect("delete");
    reader.join().expect("reader")
}

async fn by_calls(agent: &kata_se::test_api::Agent, exec: &str, args: &[&str]) -> Duration {
    let id = doubles::process("ours", exec);
    doubles::exec(agent, &id, args).await;
    let (mut left, mut began) = (BYTES, None);
    while left > 0 {
        left -= doubles::read(agent, &id, OutputStream::Stdout).await.len();
        began.get_or_insert_with(Instant::now);
    }
    let took = began.expect("bytes").elapsed();
    assert_eq!(agent.wait_process(&id).await, Ok(0));
    took
}
