//! Many containers, pods, execs and callers at once: nothing is mixed up, and nothing leaks.

use std::fs;
use std::path::Path;
use std::time::Instant;

use harness::{Bundle, Code, NO_STREAMS, Shim, TestNode, code, eventually, within};

/// Resources that a shim uses.
#[derive(Clone, Copy, Debug)]
struct Usage {
    rss_kib: u64,
    fds: usize,
    threads: u64,
}

impl Usage {
    fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let figure = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("figure");
            line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("number")
        };
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("fd").count();
        Self { rss_kib: figure("VmRSS:"), fds, threads: figure("Threads:") }
    }

    /// The usage once idle threads have exited.
    async fn settled(pid: u32, before: Self) -> Self {
        eventually("descriptors and threads are as before", 20, || {
            let now = Self::of(pid);
            now.fds <= before.fds && now.threads <= before.threads
        })
        .await;
        Self::of(pid)
    }
}

/// An exec of each kind: silent, with output, with input that is closed by CloseIO, of a missing program.
async fn exec(shim: &Shim, name: &str, kind: usize) {
    let (input, out) = (shim.fifo(name, "in"), shim.fifo(name, "out"));
    let text = |path: &Path| path.to_str().expect("utf-8").to_owned();
    let (stdin, stdout) = (text(&input), text(&out));
    let (script, streams): (&str, [&str; 3]) = match kind % 4 {
        0 => ("exit 0", NO_STREAMS),
        1 => ("head -c 20000 /dev/zero", ["", &stdout, &stdout]),
        2 => ("wc -c", [&stdin, &stdout, ""]),
        _ => ("", NO_STREAMS),
    };
    let ends = [&input, &out].map(|path| {
        // Both ends are held here, so that nothing waits for a reader or a writer.
        fs::OpenOptions::new().read(true).write(true).open(path).expect("fifo")
    });
    let program = if script.is_empty() { vec!["/no/such"] } else { vec!["/bin/sh", "-c", script] };
    shim.exec("c1", name, Bundle::process(&program), streams).await.expect("exec");
    let started = shim.start("c1", name).await;
    assert_eq!(started.is_ok(), !script.is_empty(), "{started:?}");
    if started.is_ok() {
        if kind % 4 == 2 {
            shim.close_stdin("c1", name).await.expect("close");
            drop(ends);
        }
        assert_eq!(within("its end", 30, shim.wait("c1", name)).await, Ok(0), "{name}");
    }
    shim.delete("c1", name).await.expect("delete");
    for path in [input, out] {
        fs::remove_file(path).expect("fifo");
    }
}

#[tokio::test]
async fn many_execs_leave_the_shim_as_it_was() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let (pid, _) = shim.pid("c1").await;
    for n in 0..40 {
        exec(&shim, &format!("w{n}"), n).await;
    }
    many(&shim, "v").await;
    // Threads that wait for blocking work end after some ten seconds.
    let mut before = Usage::settled(pid, Usage { rss_kib: 0, fds: usize::MAX, threads: 1 }).await;
    // A leak grows in each round; fragmentation of the allocator's memory varies a little.
    for round in 1.. {
        let began = Instant::now();
        for n in 0..1000 {
            exec(&shim, &format!("e{n}"), n).await;
        }
        let each = began.elapsed() / 1000;
        let began = Instant::now();
        many(&shim, "p").await;
        let together = began.elapsed();
        let after = Usage::settled(pid, before).await;
        eprintln!(
            "1,000 execs, {each:?} each, then 100 at once in {together:?}: before {before:?}, after {after:?}"
        );
        assert_eq!((after.fds, after.threads), (before.fds, before.threads));
        if after.rss_kib <= before.rss_kib + 512 {
            break;
        }
        assert!(round < 4, "grows each time: {before:?} {after:?}");
        before = after;
    }
    node.end(&shim, "c1").await;
}

/// 100 execs at once.
async fn many(shim: &Shim, prefix: &str) {
    let running: Vec<_> = (0..100)
        .map(|n| {
            let (shim, name) = (shim.clone(), format!("{prefix}{n}"));
            tokio::spawn(async move { exec(&shim, &name, n).await })
        })
        .collect();
    for one in running {
        within("all of them", 60, one).await.expect("join");
    }
}

#[tokio::test]
async fn twenty_containers_in_one_pod_keep_their_output_and_their_ends_apart() {
    let node = TestNode::new().await;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    let began = Instant::now();
    let making = (0..20).map(|n| {
        let (id, script) = (format!("m{n}"), format!("echo I am m{n}; exit {n}"));
        let dir = node.bundle(&id, &Bundle::sh(&script).member("s1"));
        let (shim, out) = (shim.clone(), format!("file://{}", node.path(&id).display()));
        tokio::spawn(async move {
            shim.create(&id, &dir, ["", &out, ""]).await.expect("create");
            shim.start(&id, "").await.expect("start");
            shim.wait(&id, "").await
        })
    });
    for (n, one) in making.collect::<Vec<_>>().into_iter().enumerate() {
        let status = within("its end", 60, one).await.expect("join");
        assert_eq!(status, Ok(u32::try_from(n).expect("small")));
        assert_eq!(fs::read_to_string(node.path(&format!("m{n}"))).expect("output"), format!("I am m{n}\n"));
    }
    let (pid, _) = shim.pid("s1").await;
    eprintln!("20 containers in {:?}: {:?}", began.elapsed(), Usage::of(pid));
    for n in 0..20 {
        shim.delete(&format!("m{n}"), "").await.expect("delete");
    }
    node.end(&shim, "s1").await;
}

#[tokio::test]
async fn four_pods_run_side_by_side() {
    let node = TestNode::new().await;
    node.double(|orders| orders["apart"] = true.into());
    let began = Instant::now();
    let names = ["p1", "p2", "p3", "p4"];
    let lives = names.map(|id| {
        let dir = node.bundle(id, &Bundle::sh("sleep 1000"));
        let out = format!("file://{}", node.path(id).display());
        let node = &node;
        async move {
            let shim = node.shim(id, &dir).await;
            shim.create(id, &dir, NO_STREAMS).await.expect("create");
            shim.start(id, "").await.expect("start");
            let process = Bundle::process(&["/bin/echo", id]);
            shim.exec(id, "e1", process, ["", &out, ""]).await.expect("exec");
            shim.start(id, "e1").await.expect("start");
            assert_eq!(shim.wait(id, "e1").await, Ok(0));
            shim
        }
    });
    let [one, two, three, four] = lives;
    let (one, two, three, four) = tokio::join!(one, two, three, four);
    eprintln!("4 pods in {:?}", began.elapsed());
    let shims = [one, two, three, four];
    let mut vms = Vec::new();
    for (id, shim) in names.iter().zip(&shims) {
        assert_eq!(fs::read_to_string(node.path(id)).expect("output"), format!("{id}\n"));
        vms.push(shim.pid(id).await.1);
    }
    vms.sort_unstable();
    vms.dedup();
    assert_eq!(vms.len(), 4, "one VM each");
    // One pod dies; the others are unaffected.
    shims[0].kill("p1", "", 9).await.expect("kill");
    assert_eq!(shims[0].wait("p1", "").await, Ok(137));
    for (id, shim) in names.iter().zip(&shims).skip(1) {
        assert_eq!(shim.run_exec(id, "e2", &["/bin/true"]).await, 0);
        shim.kill(id, "", 9).await.expect("kill");
    }
    for (id, shim) in names.iter().zip(&shims) {
        assert_eq!(shim.wait(id, "").await, Ok(137));
        shim.delete(id, "").await.expect("delete");
        shim.shutdown(false).await.expect("shutdown");
    }
    node.assert_clean();
}

#[tokio::test]
async fn one_of_two_concurrent_creates_of_a_name_wins() {
    let node = TestNode::new().await;
    for round in 0..10 {
        let dir = node.bundle("c1", &Bundle::sh("exit 7"));
        let shim = node.shim("c1", &dir).await;
        let (one, two) =
            tokio::join!(shim.create("c1", &dir, NO_STREAMS), shim.create("c1", &dir, NO_STREAMS));
        let lost: Vec<_> = [&one, &two].into_iter().filter_map(code).collect();
        assert_eq!(lost, [Code::ALREADY_EXISTS], "round {round}: {one:?} {two:?}");
        shim.start("c1", "").await.expect("the winner's is whole");
        assert_eq!(shim.wait("c1", "").await, Ok(7));
        shim.delete("c1", "").await.expect("delete");
        shim.shutdown(false).await.expect("shutdown");
        node.assert_clean();
    }
    let created = node.events.lines().into_iter().filter(|line| line == "create c1").count();
    assert_eq!(created, 10);
}

#[tokio::test]
async fn two_containers_are_created_at_once() {
    let node = TestNode::new().await;
    let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
    for round in 0..5 {
        let ids = [format!("a{round}"), format!("b{round}")];
        let dirs = ids.each_ref().map(|id| node.bundle(id, &Bundle::sh("exit 4").member("s1")));
        let (one, two) = tokio::join!(
            shim.create(&ids[0], &dirs[0], NO_STREAMS),
            shim.create(&ids[1], &dirs[1], NO_STREAMS)
        );
        assert!(one.is_ok() && one == two, "{one:?} {two:?}");
        for id in &ids {
            shim.start(id, "").await.expect("start");
            assert_eq!(shim.wait(id, "").await, Ok(4));
            shim.delete(id, "").await.expect("delete");
        }
    }
    node.end(&shim, "s1").await;
}

#[tokio::test]
async fn one_of_two_concurrent_starts_of_a_sandbox_wins() {
    let node = TestNode::new().await;
    for round in 0..10 {
        let dir = node.bundle("s1", &Bundle::sh("sleep 1000").sandbox());
        let both = [(); 2].map(|()| node.start_command("s1", &dir));
        let both = both.map(|mut start| std::thread::spawn(move || start.output().expect("shim")));
        let both = both.map(|one| one.join().expect("join"));
        let (won, lost): (Vec<_>, Vec<_>) = both.iter().partition(|output| output.status.success());
        assert_eq!((won.len(), lost.len()), (1, 1), "round {round}: {both:?}");
        let message = String::from_utf8_lossy(&lost[0].stderr).into_owned();
        assert!(message.contains("start sandbox s1: its shim is already running"), "{message}");
        let address = String::from_utf8_lossy(&won[0].stdout).into_owned();
        let shim = Shim::connect(&address, &node.path("stdio")).await;
        within("create", 10, shim.create("s1", &dir, NO_STREAMS)).await.expect("the winner's works");
        shim.shutdown(true).await.expect("shutdown");
        node.assert_clean();
    }
}
