//! Output of a process arrives complete, in order and on the right stream; its input arrives to the
//! end; and a reader that stops delays only its own stream.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use harness::{Bundle, TestNode, reader, rounds, within};

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

#[tokio::test]
async fn both_streams_are_complete_and_apart() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    for round in 0..20 {
        let (out, err) = (shim.fifo(&format!("r{round}"), "out"), shim.fifo(&format!("r{round}"), "err"));
        let (one, two) = (reader(out.clone()), reader(err.clone()));
        let name = format!("e{round}");
        shim.script("c1", &name, "echo to-out; echo to-err >&2; printf last", ["", text(&out), text(&err)])
            .await;
        assert_eq!(shim.wait("c1", &name).await, Ok(0));
        shim.delete("c1", &name).await.expect("delete");
        assert_eq!(one.join().expect("join"), b"to-out\nlast");
        assert_eq!(two.join().expect("join"), b"to-err\n");
    }
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_process_without_stdin_reads_end_of_file() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("cat; sleep 1000")).await;
    let out = shim.fifo("e1", "out");
    let reading = reader(out.clone());
    shim.script("c1", "e1", "cat; echo read to its end", ["", text(&out), ""]).await;
    assert_eq!(within("its end", 10, shim.wait("c1", "e1")).await, Ok(0));
    assert_eq!(reading.join().expect("join"), b"read to its end\n");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn sixty_four_mebibytes_arrive_unchanged() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let script = "i=0; while [ $i -lt 64 ]; do head -c 1048576 /dev/zero | tr '\\0' \"\\\\$((i % 8 + 60))\"; i=$((i+1)); done";
    for round in 0..rounds(1) {
        let name = format!("big{round}");
        let out = shim.fifo(&name, "out");
        let reading = reader(out.clone());
        shim.script("c1", &name, script, ["", text(&out), ""]).await;
        assert_eq!(within("its end", 120, shim.wait("c1", &name)).await, Ok(0));
        let got = reading.join().expect("join");
        assert_eq!(got.len(), 64 << 20);
        for (index, block) in got.chunks(1 << 20).enumerate() {
            let wanted = u8::from_str_radix(&format!("{}", index % 8 + 60), 8).expect("octal");
            assert!(
                block.iter().all(|b| *b == wanted),
                "block {index} has {:?}, not {wanted}",
                block.first()
            );
        }
        shim.delete("c1", &name).await.expect("delete");
    }
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn input_is_delivered_to_its_end() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    // The input ends when the writer closes it, and by CloseIO while the writer keeps it open.
    for close_io in [false, true] {
        let name = format!("in{close_io}");
        let (input, out) = (shim.fifo(&name, "in"), shim.fifo(&name, "out"));
        let reading = reader(out.clone());
        shim.script("c1", &name, "wc -c; echo done", [text(&input), text(&out), ""]).await;
        let path = input.clone();
        let writer = tokio::task::spawn_blocking(move || {
            let mut file = std::fs::OpenOptions::new().write(true).open(path).expect("open");
            file.write_all(&vec![b'x'; 300_000]).expect("write");
            file
        });
        let file = within("the input is taken", 10, writer).await.expect("join");
        if close_io {
            shim.close_stdin("c1", &name).await.expect("close");
        } else {
            drop(file);
        }
        assert_eq!(within("its end", 10, shim.wait("c1", &name)).await, Ok(0));
        assert_eq!(String::from_utf8_lossy(&reading.join().expect("join")), "300000\ndone\n");
    }
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_reader_that_never_reads_delays_its_own_stream_only() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let (out, err) = (shim.fifo("slow", "out"), shim.fifo("slow", "err"));
    let errors = reader(err.clone());
    // The other stream is closed, so that only this reader is waited for.
    let script = "echo fine >&2; exec 2>&-; head -c 10000000 /dev/zero";
    shim.script("c1", "slow", script, ["", text(&out), text(&err)]).await;
    assert_eq!(shim.run_exec("c1", "other", &["/bin/true"]).await, 0, "others go on");
    let state = shim.state("c1", "slow").await.expect("state");
    assert_eq!(state.status.value(), 2, "its writer is held back");
    // A reader comes so late that the shim already polls for the exit: nothing is lost.
    harness::eventually("its end is looked for", 15, || {
        node.requests().iter().any(|r| r["call"] == "WaitProcess" && r.to_string().contains("\"slow\""))
    })
    .await;
    let bytes = within("the late reader", 30, tokio::task::spawn_blocking(move || reader(out).join())).await;
    assert_eq!(bytes.expect("join").expect("join").len(), 10_000_000);
    assert_eq!(shim.wait("c1", "slow").await, Ok(0));
    assert_eq!(errors.join().expect("join"), b"fine\n");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn an_absent_reader_delays_an_exit_for_a_bounded_time() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let out = shim.fifo("mute", "out");
    shim.script("c1", "mute", "head -c 150000 /dev/zero", ["", text(&out), ""]).await;
    let began = std::time::Instant::now();
    assert_eq!(within("its exit", 20, shim.wait("c1", "mute")).await, Ok(0));
    assert!(began.elapsed() > Duration::from_secs(5), "a late reader has time: {:?}", began.elapsed());
    shim.delete("c1", "mute").await.expect("delete");

    // More than the buffer takes: the process blocks, and its exit is reported all the same.
    let out = shim.fifo("full", "out");
    shim.script("c1", "full", "head -c 1000000 /dev/zero", ["", text(&out), ""]).await;
    shim.kill("c1", "full", 9).await.expect("kill");
    assert_eq!(within("its exit", 20, shim.wait("c1", "full")).await, Ok(137));
    shim.delete("c1", "full").await.expect("delete");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn output_is_there_for_a_reader_that_comes_after_the_exit() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    for round in 0..10 {
        let name = format!("e{round}");
        let (out, err) = (shim.fifo(&name, "out"), shim.fifo(&name, "err"));
        let script = "echo to-out; head -c 50000 /dev/zero; echo to-err >&2";
        shim.script("c1", &name, script, ["", text(&out), text(&err)]).await;
        assert_eq!(within("its exit", 5, shim.wait("c1", &name)).await, Ok(0));
        for (path, bytes) in [(out, 50_007), (err, 7)] {
            let reading = reader(path); // a thread: without a writer its open never returns
            harness::eventually("the output and its end", 5, || reading.is_finished()).await;
            assert_eq!(reading.join().expect("join").len(), bytes, "round {round}");
        }
        shim.delete("c1", &name).await.expect("delete");
    }
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_shutdown_tells_every_exit_also_of_processes_whose_output_no_one_reads() {
    for round in 0..5 {
        let node = TestNode::new().await;
        let shim = node.running("s1", &Bundle::sh("sleep 1000").sandbox()).await;
        let dir = node.bundle("m1", &Bundle::sh("sleep 1000").member("s1"));
        let out = shim.fifo("m1", "out");
        shim.create("m1", &dir, ["", "", ""]).await.expect("create");
        shim.start("m1", "").await.expect("start");
        // One has ended and drains, one is held back, one runs.
        shim.script("m1", "e1", "head -c 150000 /dev/zero; exit 3", ["", text(&out), ""]).await;
        let out = shim.fifo("e2", "out");
        shim.script("m1", "e2", "head -c 1000000 /dev/zero", ["", text(&out), ""]).await;
        shim.script("m1", "e3", "sleep 1000", ["", "", ""]).await;
        harness::eventually("its end is known", 10, || {
            node.requests().iter().any(|r| r["call"] == "WaitProcess" && r.to_string().contains("\"e1\""))
        })
        .await;
        within("shutdown", 10, shim.shutdown(true)).await.expect("shutdown");
        let exits = || node.events.lines().into_iter().filter(|line| line.starts_with("exit ")).count();
        harness::eventually("five exits", 5, || exits() == 5).await;
        let lines = node.events.lines();
        assert!(lines.contains(&"exit m1/e1 3".to_owned()), "round {round}: {lines:?}");
        node.assert_clean();
    }
}

#[tokio::test]
async fn files_and_programs_can_take_the_output() {
    use std::os::unix::fs::PermissionsExt;
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let file = node.path("stdio/file");
    let uri = format!("file://{}", file.display());
    shim.script("c1", "f1", "echo one", ["", &uri, &uri]).await;
    assert_eq!(shim.wait("c1", "f1").await, Ok(0));
    assert_eq!(std::fs::read_to_string(&file).expect("read"), "one\n");

    let program = node.path("stdio/logger");
    let result = node.path("stdio/logged");
    let script = "#!/bin/sh\n{ echo \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\"; cat <&3; cat <&4; } > \"$2.new\"\nmv \"$2.new\" \"$2\"\n";
    std::fs::write(&program, script).expect("write");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let uri = format!("binary://{}?to={}", program.display(), result.display());
    shim.script("c1", "b1", "echo out; echo err >&2", ["", &uri, &uri]).await;
    assert_eq!(shim.wait("c1", "b1").await, Ok(0));
    harness::eventually("the program ends with its input", 5, || result.exists()).await;
    let logged = std::fs::read_to_string(&result).expect("read");
    assert_eq!(logged, format!("c1 tests to {}\nout\nerr\n", result.display()));
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn a_terminal_is_one_stream_with_a_size() {
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("read go; stty size; echo bye >&2; exit 4").terminal());
    let shim = node.shim("c1", &dir).await;
    let (input, out) = (shim.fifo("c1", "in"), shim.fifo("c1", "out"));
    let reading = reader(out.clone());
    let streams = [text(&input), text(&out), ""];
    shim.create_for("c1", &dir, streams, true, Duration::from_secs(10)).await.expect("create");
    shim.start("c1", "").await.expect("start");
    shim.resize("c1", 111, 33).await.expect("resize");
    std::fs::OpenOptions::new().write(true).open(&input).expect("open").write_all(b"go\n").expect("write");
    assert_eq!(within("its end", 10, shim.wait("c1", "")).await, Ok(4));
    shim.delete("c1", "").await.expect("delete");
    shim.shutdown(false).await.expect("shutdown");
    let seen = String::from_utf8_lossy(&reading.join().expect("join")).into_owned();
    assert!(seen.contains("33 111") && seen.contains("bye"), "{seen}");
    node.assert_clean();
}

#[tokio::test]
async fn a_log_on_a_full_disk_goes_on_when_there_is_room_and_one_that_is_a_fifo_holds_up_nothing() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let disk = node.path("small");
    std::fs::create_dir(&disk).expect("mkdir");
    nix::mount::mount(Some("none"), &disk, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=64k"))
        .expect("mount");
    let (log, input) = (disk.join("log"), shim.fifo("full", "in"));
    let uri = format!("file://{}", log.display());
    let script = "head -c 300000 /dev/zero; while read go; do echo again; done";
    shim.script("c1", "full", script, [text(&input), &uri, ""]).await;
    let mut input = std::fs::OpenOptions::new().write(true).open(&input).expect("open");
    let mut said = String::new();
    harness::eventually("the disk is full", 10, || {
        said += &node.log();
        said.contains("No space left on device")
    })
    .await;
    // The rest of the first output may fill the disk once more.
    harness::eventually("the log goes on", 10, || {
        let on = std::fs::read(&log).expect("read").ends_with(b"again\n");
        if !on {
            std::fs::File::create(&log).expect("make room");
            input.write_all(b"go\n").expect("write");
        }
        on
    })
    .await;
    drop(input);
    assert_eq!(within("its end", 10, shim.wait("c1", "full")).await, Ok(0));
    said += &node.log();
    nix::mount::umount(&disk).expect("umount");
    assert!(said.contains("bytes were lost"), "{said}");

    let fifo = format!("file://{}", shim.fifo("mute", "out").display());
    shim.script("c1", "mute", "head -c 1000000 /dev/zero", ["", &fifo, ""]).await;
    assert_eq!(shim.run_exec("c1", "other", &["/bin/true"]).await, 0, "others go on");
    node.end(&shim, "c1").await;
}
