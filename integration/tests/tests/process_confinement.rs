//! QEMU inherits what it is meant to have and nothing else; files of the shim are private.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::PathBuf;

use harness::{Bundle, NO_STREAMS, Shim, TestNode, within};

fn fds(pid: u32) -> BTreeSet<String> {
    let dir = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("fds");
    let link = |e: std::fs::DirEntry| std::fs::read_link(e.path()).unwrap_or_default().display().to_string();
    dir.flatten()
        .filter(|e| e.file_name().to_string_lossy().parse::<i32>().is_ok_and(|n| n > 2))
        .map(link)
        .map(|target| target.split(['[', ':']).next().unwrap_or_default().to_owned())
        .collect()
}

/// A set of capabilities of a process.
fn capabilities(pid: &str, set: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(":\t"));
    u64::from_str_radix(line.expect(set), 16).expect(set)
}

#[tokio::test]
#[allow(unsafe_code)]
async fn qemu_and_the_shim_inherit_nothing_by_accident() {
    let node = TestNode::new().await;
    // A hundred descriptors without CLOEXEC in the caller.
    let file = std::fs::File::open("/etc/passwd").expect("open");
    let leaked: Vec<std::fs::File> = (0..100)
        .map(|_| {
            // SAFETY: `dup` of an open descriptor returns a new one that has no other owner.
            unsafe { std::fs::File::from_raw_fd(nix::libc::dup(file.as_raw_fd())) }
        })
        .collect();
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let (shim_pid, vm) = shim.pid("c1").await;
    drop(leaked);
    for pid in [shim_pid, vm] {
        assert!(!fds(pid).contains("/etc/passwd"), "{:?}", fds(pid));
    }
    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, KILL, SETGID, SETUID, SETPCAP, NET_ADMIN, SYS_PTRACE,
    // SYS_ADMIN, SYS_NICE, SYS_RESOURCE; QEMU runs as root in these tests, and gets no more.
    let kept = capabilities("self", "CapBnd") & 0x1a8_11ef;
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(capabilities(&shim_pid.to_string(), set), kept, "{set}");
    }
    assert_eq!(capabilities(&vm.to_string(), "CapBnd"), kept);
    let double = std::fs::read_link(format!("/proc/{vm}/exe")).expect("exe");
    assert!(double.ends_with("qemu-double"));
    // QMP, the console and the agent's sockets, what it boots, and the image layers that were plugged.
    let meant = |name: &String| {
        let ends = ["/kernel", "/initrd", "/vsock"].iter().any(|end| name.ends_with(end));
        ["socket", "pipe"].contains(&name.as_str()) || name.contains("/layers/") || ends
    };
    assert!(fds(vm).iter().all(meant), "{:?}", fds(vm));
    let environment = std::fs::read(format!("/proc/{vm}/environ")).expect("environ");
    assert_eq!(environment, b"", "QEMU's environment is empty");
    assert_eq!(std::fs::read_link(format!("/proc/{vm}/cwd")).expect("cwd"), std::path::Path::new("/"));
    let limits = std::fs::read_to_string(format!("/proc/{vm}/limits")).expect("limits");
    assert!(limits.lines().any(|l| l.starts_with("Max core file size") && l.contains(" 0 ")), "{limits}");
    let cgroups = std::fs::read_to_string(format!("/proc/{vm}/cgroup")).expect("cgroup");
    assert!(cgroups.contains("/kata-se-tests/kata-se-"), "{cgroups}");
    let own = std::fs::read_to_string(format!("/proc/{shim_pid}/cgroup")).expect("cgroup");
    let pods = cgroups.lines().filter(|line| line.contains("/kata-se-tests/"));
    assert!(
        pods.clone().count() > 0 && pods.clone().all(|line| !own.lines().any(|o| o == line)),
        "the shim is never in the cgroup that it kills: {own}"
    );
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn qemu_has_the_pods_oom_score_and_a_missing_privilege_is_a_warning() {
    let node = TestNode::new().await;
    node.environment.lock().expect("environment").push(("SCHED_CORE".into(), "1".into()));
    let mut bundle = Bundle::sh("sleep 1000");
    bundle.config["process"]["oomScoreAdj"] = 321.into();
    let shim = node.running("c1", &bundle).await;
    let (_, vm) = shim.pid("c1").await;
    let score = std::fs::read_to_string(format!("/proc/{vm}/oom_score_adj")).expect("score");
    assert_eq!(score, "321\n");
    // A scheduling cookie, or one warning with the reason; the pod runs either way.
    let warnings = node.log().matches("PR_SCHED_CORE").count();
    assert!(warnings <= 1, "{}", node.log());
    assert_eq!(shim.state("c1", "").await.expect("state").status.value(), 2);
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn files_are_private_whatever_the_umask() {
    for umask in [0, 0o022, 0o077] {
        let node = TestNode::new().await;
        let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_retain(umask));
        let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
        nix::sys::stat::umask(before);
        let made = all_below(vec![node.path("run"), node.path("layers")]);
        for name in &made {
            let meta = std::fs::symlink_metadata(name).expect("stat");
            assert_eq!(meta.uid(), 0);
            // The sockets belong to the vsock program; their folder is private.
            let inner = name.components().any(|c| c.as_os_str() == "pack")
                || name.parent().is_some_and(|folder| folder.ends_with("vsock"));
            assert!(inner || meta.mode() & 0o077 == 0, "{}: mode {:o}", name.display(), meta.mode());
        }
        assert!(made.len() > 5, "{made:?}");
        node.end(&shim, "c1").await;
    }
}

/// Everything below these folders.
fn all_below(mut folders: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut all = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("list").flatten() {
            if entry.file_type().expect("type").is_dir() {
                folders.push(entry.path());
            }
            all.push(entry.path());
        }
    }
    all
}

#[tokio::test]
async fn a_link_at_any_path_that_a_pod_makes_is_not_followed() {
    let node = TestNode::new().await;
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let all = all_below(vec![node.path("run"), node.path("layers")]);
    let made: Vec<(PathBuf, bool)> = all.into_iter().map(|path| (path.clone(), path.is_dir())).collect();
    node.end(&shim, "c1").await;
    assert!(made.len() > 10, "{made:?}");
    let (file, folder) = (node.path("canary"), node.path("canaries"));
    let (mut ran, mut refused) = (0, 0);
    for (path, is_folder) in made {
        std::fs::write(&file, "canary").expect("write");
        std::fs::create_dir(&folder).expect("folder");
        let state = || {
            let meta = [&file, &folder].map(|path| std::fs::metadata(path).expect("stat"));
            let seen = meta.map(|meta| (meta.mode(), meta.uid(), meta.nlink(), meta.len()));
            (seen, std::fs::read(&file).expect("read"), all_below(vec![folder.clone()]))
        };
        let before = state();
        let parent = path.parent().expect("parent");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).expect("folder");
        std::fs::remove_file(&path).ok();
        std::fs::remove_dir_all(&path).ok();
        symlink(if is_folder { &folder } else { &file }, &path).expect("link");
        let dir = node.bundle("c1", &Bundle::sh("sleep 1000"));
        let output = node.start_output("c1", &dir);
        let mut error = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            let shim = Shim::connect(&String::from_utf8_lossy(&output.stdout), &node.path("stdio")).await;
            match shim.create("c1", &dir, NO_STREAMS).await {
                Ok(_) => shim.delete("c1", "").await.map(|_| ()).expect("delete"),
                Err(e) => error = e.to_string(),
            }
            shim.shutdown(true).await.expect("shutdown");
        }
        assert_eq!(state(), before, "{}", path.display());
        if error.is_empty() {
            ran += 1;
        } else {
            refused += 1;
            eprintln!("{}: {error}", path.display());
            // The vsock program names its sockets in a folder that it got as a descriptor.
            let name = path.file_name().expect("name").to_string_lossy();
            assert!(error.contains(&format!("/{name}")), "{}: {error}", path.display());
        }
        node.delete_output("c1");
        assert_eq!(state(), before, "{}", path.display());
        for made in ["run", "layers", "canaries"].map(|name| node.path(name)) {
            std::fs::remove_dir_all(&made).ok();
        }
        std::fs::DirBuilder::new().mode(0o700).create(node.path("run")).expect("run");
    }
    eprintln!("{ran} pods ran, {refused} were refused");
}

#[tokio::test]
async fn a_directory_accessible_to_others_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let node = TestNode::new().await;
    std::fs::set_permissions(node.path("run"), std::fs::Permissions::from_mode(0o777)).expect("chmod");
    let dir = node.bundle("c1", &Bundle::sh("true"));
    let output = node.start_output("c1", &dir);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    std::fs::set_permissions(node.path("run"), std::fs::Permissions::from_mode(0o700)).expect("chmod");
    assert!(text.contains("mode 0777") && text.contains("chmod 700"), "{text}");
}

#[tokio::test]
async fn no_secret_is_in_any_log_state_error_or_event() {
    let node = TestNode::new().await;
    let canary = "CANARY-7c1f";
    let mut bundle = Bundle::sh(&format!("echo {canary}; sleep 1000"));
    let volume = node.path("volume");
    std::fs::create_dir(&volume).expect("volume");
    std::fs::write(volume.join("token"), canary).expect("volume");
    bundle.config["process"]["env"] = serde_json::json!([format!("TOKEN={canary}"), "PATH=/usr/bin:/bin"]);
    bundle.config["annotations"] = serde_json::json!({"secret": canary});
    let mounts = bundle.config["mounts"].as_array_mut().expect("mounts");
    mounts.push(serde_json::json!({
        "destination": "/secret", "type": "bind", "source": volume, "options": ["rbind", "ro"],
    }));
    let shim = node.running("c1", &bundle).await;
    let mut text = String::new();
    shim.exec("c1", "e1", Bundle::process(&["/no/such", canary]), NO_STREAMS).await.expect("exec");
    text += &shim.start("c1", "e1").await.expect_err("missing").to_string();
    // Input that a process reads, and input of one that has ended.
    let input = shim.fifo("e2", "in");
    let mut writer = std::fs::File::options().read(true).write(true).open(&input).expect("fifo");
    writer.write_all(format!("{canary}\n").as_bytes()).expect("write");
    shim.script("c1", "e2", "read line", [input.to_str().expect("text"), "", ""]).await;
    assert_eq!(within("its end", 10, shim.wait("c1", "e2")).await, Ok(0));
    writer.write_all(canary.as_bytes()).expect("write");
    // An agent that refuses what it got, and QEMU's end.
    node.script(&serde_json::json!([{"call": "CreateContainer", "error": {"code": 13, "text": "no"}}]));
    let member = node.bundle("m1", &bundle.clone().member("c1"));
    text += &shim.create("m1", &member, NO_STREAMS).await.expect_err("refused").to_string();
    let (_, vm) = shim.pid("c1").await;
    let vm = nix::unistd::Pid::from_raw(vm as i32);
    nix::sys::signal::kill(vm, nix::sys::signal::Signal::SIGKILL).expect("kill");
    assert_eq!(within("its end", 5, shim.wait("c1", "")).await, Ok(137));
    text += &shim.start("c1", "e2").await.expect_err("ended").to_string();
    text += &node.log();
    for entry in all_below(vec![node.path("run")]) {
        text += &String::from_utf8_lossy(&std::fs::read(entry).unwrap_or_default());
    }
    text += &format!("{:?}", node.events.seen());
    assert!(text.contains("created container c1"), "{text}");
    assert!(!text.contains(canary), "{text}");
    let got = node.requests();
    assert!(got.iter().any(|request| request.to_string().contains(canary)), "the guest got it");
    shim.delete("c1", "").await.expect("delete");
    shim.shutdown(true).await.expect("shutdown");
    node.assert_clean();
}

/// Real agents write whole container specs there.
#[tokio::test]
async fn what_an_agent_writes_on_the_console_is_not_quoted_when_the_vm_dies() {
    let node = TestNode::new().await;
    let canary = "CANARY-88e0";
    node.double(|o| {
        let spec = format!("{{\"msg\":\"env: [\\\"TOKEN={canary}\\\", \\\"Kernel panic - {canary}\\\"]\"}}");
        o["console"] =
            format!("{spec}\r\n[    9.1] Kernel panic - not syncing: test\r\n[    9.2] agent[7]: {spec}\r\n")
                .into();
    });
    let shim = node.running("c1", &Bundle::sh("sleep 1000")).await;
    let (_, vm) = shim.pid("c1").await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(vm as i32), nix::sys::signal::Signal::SIGKILL)
        .expect("kill");
    assert_eq!(within("its end", 5, shim.wait("c1", "")).await, Ok(137));
    let mut text = node.log();
    let record = node.pod_dir().join("state.json");
    let failed = || std::fs::read_to_string(&record).is_ok_and(|text| text.contains("killed by signal 9"));
    harness::eventually("the record", 5, failed).await;
    text += &std::fs::read_to_string(&record).expect("record");
    assert_eq!(text.matches("Kernel panic - not syncing: test").count(), 2, "log and record: {text}");
    assert!(!text.contains(canary), "{text}");
    shim.delete("c1", "").await.expect("delete");
    shim.shutdown(false).await.expect("shutdown");
    node.assert_clean();
}
