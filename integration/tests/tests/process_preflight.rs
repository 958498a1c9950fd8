//! A confidential pod in the production configuration, on a machine made of files: what must not run is
//! refused before QEMU starts, with the reason; what may run is recorded.

use std::fs;

use harness::{Bundle, Code, NO_STREAMS, Shim, TestNode, code, within};
use serde_json::json;

/// A sealed image, its key slots' hashes computed by another program (`src/image/testdata`).
const IMAGE: &[u8] = include_bytes!("../../../src/image/testdata/by-hand.img");

/// A node that is a Z host for which the image was sealed.
async fn z_host() -> TestNode {
    let node = TestNode::new().await;
    let image = kata_se::test_api::image::read(IMAGE).expect("image");
    let key = image.header.slots.first().expect("slot").host_key.to_string();
    let zeros = "0".repeat(64);
    for (name, text) in [
        ("proc/sys/kernel/arch", "s390x"),
        ("proc/cpuinfo", "facilities : 0 1 158"),
        ("proc/1/cmdline", "init"),
        ("sys/firmware/uv/prot_virt_host", "1"),
        ("sys/firmware/uv/query/max_cpus", "248"),
        ("sys/firmware/uv/query/max_guests", "10"),
        ("sys/firmware/uv/query/max_address", "ffffffffff"),
        ("sys/firmware/uv/query/supp_se_hdr_ver", "4000000000000000"),
        ("sys/firmware/uv/query/supp_se_hdr_pcf", "ffffffffffffffff"),
        ("sys/firmware/uv/keys/all", &format!("{key}\n{zeros}\n")),
        ("dev/kvm", "1"),
    ] {
        machine(&node, name, Some(text));
    }
    let root = node.path("machine").display().to_string();
    *node.environment.lock().expect("environment") = vec![("KATA_SE_SYS_ROOT".into(), root)];
    fs::write(node.path("image"), IMAGE).expect("image");
    configure(&node, "");
    node
}

/// Writes or removes one file of the machine.
fn machine(node: &TestNode, name: &str, text: Option<&str>) {
    let path = node.path("machine").join(name);
    fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
    match text {
        Some(text) => fs::write(path, text).expect("write"),
        None => fs::remove_file(path).expect("remove"),
    }
}

/// The production configuration but for paths and the vsock transport; `more` goes into `[guest]`.
fn configure(node: &TestNode, more: &str) {
    let at = |name: &str| node.path(name).display().to_string();
    let text = format!(
        "[qemu]\npath = \"{qemu}\"\nuser = \"root\"\n[vsock]\ndevice = \"vhost-user\"\nprogram = \"{vsock}\"\n\
         [rootfs]\nmode = \"packed\"\ntrust_host = true\ncache_dir = \"{}\"\n[log]\nlevel = \"debug\"\n[agent]\nconnect_timeout_s = 10\n\
         [guest]\nimage = \"{}\"\n{more}",
        at("layers"),
        at("image"),
        qemu = at("bin/qemu"),
        vsock = at("bin/vsock"),
    );
    fs::write(node.path("config.toml"), text).expect("config");
}

/// Creates the pod, which must be refused as a failed precondition; returns the reason.
async fn refused(node: &TestNode) -> String {
    let dir = node.bundle("c1", &Bundle::sh("true"));
    let shim = node.shim("c1", &dir).await;
    let result = within("an error", 20, shim.create("c1", &dir, NO_STREAMS)).await;
    shim.shutdown(true).await.expect("shutdown");
    node.assert_clean();
    assert_eq!(code(&result), Some(Code::FAILED_PRECONDITION), "{result:?}");
    let text = result.expect_err("refused").to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

async fn says(node: &TestNode, wanted: &str) {
    let text = refused(node).await;
    assert!(text.contains(wanted), "{wanted:?} is not in: {text}");
    assert!(!node.log().contains("QEMU started"), "QEMU was started");
}

fn record(node: &TestNode) -> serde_json::Value {
    let pods = fs::read_dir(node.path("run")).expect("run").flatten();
    let state = pods.map(|pod| pod.path().join("state.json")).find(|path| path.is_file());
    serde_json::from_slice(&fs::read(state.expect("state.json")).expect("read")).expect("json")
}

async fn running(node: &TestNode) -> Shim {
    node.running("c1", &Bundle::sh("sleep 1000")).await
}

#[tokio::test]
async fn an_image_for_this_machine_runs_and_is_recorded() {
    let node = z_host().await;
    let shim = running(&node).await;
    let image = kata_se::test_api::image::read(IMAGE).expect("image");
    let tag = softuv::keys::hex(&image.header.tag);
    let recorded = record(&node);
    assert_eq!(recorded["image"]["path"], node.path("image").display().to_string());
    assert_eq!(recorded["image"]["size"], IMAGE.len());
    assert_eq!(recorded["confidential"], true);
    assert_eq!(recorded["image"]["tag"], tag.as_str());
    assert_eq!(recorded["image"]["key"], image.header.slots[0].host_key.to_string());
    let log = node.log();
    assert!(log.contains("image checked") && log.contains(&tag), "{log}");
    assert!(log.contains("preflight: kvm: KVM runs protected guests"), "{log}");
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn what_cannot_run_here_is_refused_before_qemu_starts() {
    let node = z_host().await;
    fs::write(node.path("image"), vec![0; 300_000]).expect("image");
    says(
        &node,
        "not a Secure Execution image: QEMU would boot it unprotected: there is no header in its 300000",
    )
    .await;
    fs::write(node.path("image"), IMAGE.get(..0x18100).expect("cut")).expect("image");
    says(&node, "the image is damaged").await;
    // Header, list and content are right, and QEMU would start the kernel behind the loader's place.
    let mut forged = IMAGE.to_vec();
    forged[0x10008..0x1000e].copy_from_slice(b"S390EP");
    fs::write(node.path("image"), forged).expect("image");
    says(&node, "QEMU would start something else than the image's loader, unprotected").await;
    fs::remove_file(node.path("image")).expect("remove");
    says(&node, "the image cannot be read").await;
    fs::write(node.path("image"), IMAGE).expect("image");

    let wrong = "ab".repeat(32);
    machine(&node, "sys/firmware/uv/keys/all", Some(&format!("{wrong}\n{wrong}\n")));
    says(
        &node,
        "built for another machine: rebuild it with this machine's host key document: the image's slots",
    )
    .await;
    machine(&node, "sys/firmware/uv/keys/all", None);
    machine(&node, "sys/firmware/uv/query/supp_se_hdr_ver", Some("2000000000000000"));
    says(&node, "this machine does not know the version of the image's header").await;
    machine(&node, "sys/firmware/uv/query/supp_se_hdr_ver", None);
    configure(&node, "vcpus = 4\n");
    machine(&node, "sys/firmware/uv/query/max_cpus", Some("3"));
    says(&node, "4 (guest.vcpus and the pod's limits), the limit is 3").await;
    configure(&node, "");
    machine(&node, "dev/kvm", Some("0"));
    says(&node, "KVM cannot run protected guests").await;
    machine(&node, "dev/kvm", Some("1"));
    machine(&node, "sys/firmware/uv/prot_virt_host", Some("0"));
    says(&node, "this kernel was not started as a Secure Execution host").await;
    machine(&node, "proc/sys/kernel/arch", Some("x86_64"));
    says(&node, "this machine is not an IBM Z or LinuxONE").await;
}

#[tokio::test]
async fn the_command_lines_of_others_keep_no_pod_from_starting() {
    let node = z_host().await;
    machine(&node, "proc/1/cmdline", Some("anything\0s390-pv-guest,id=pv0"));
    machine(&node, "sys/firmware/uv/query/max_guests", Some("1"));
    let shim = running(&node).await;
    assert!(node.log().contains("this machine may have no room for another secure guest"), "{}", node.log());
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn what_the_machine_lacks_is_named_with_what_turns_it_on() {
    let node = z_host().await;
    let uv = "sys/firmware/uv";
    let cpu = "the CPU does not offer the ultravisor facility";
    let none =
        "there is no ultravisor: /sys/firmware/uv/prot_virt_host does not exist: enable Secure Execution";
    let guest = "this kernel is a secure guest itself and cannot run others";
    let large = "the VM's memory is larger than a secure guest can have here: 2048 MiB (guest.memory_mib";
    let flags = "flags not supported: PCKMO DEA/TDEA keys, PCKMO AES keys, PCKMO ECC keys";
    for (file, text, wanted) in [
        ("proc/cpuinfo", Some("facilities : 0 1 2"), cpu),
        (&format!("{uv}/prot_virt_host"), None, none),
        (&format!("{uv}/prot_virt_guest"), Some("1"), guest),
        ("dev/kvm", None, "KVM is not available: /dev/kvm does not exist: load the module: modprobe kvm"),
        (&format!("{uv}/query/max_address"), Some("3fffffff"), large),
        (&format!("{uv}/query/supp_se_hdr_pcf"), Some("0"), flags),
    ] {
        let path = node.path("machine").join(file);
        let before = fs::read_to_string(&path).ok();
        machine(&node, file, text);
        says(&node, wanted).await;
        if before.is_some() || text.is_some() {
            machine(&node, file, before.as_deref());
        }
    }
    let shim = running(&node).await;
    node.end(&shim, "c1").await;
}

#[tokio::test]
async fn an_image_that_does_not_fit_the_vm_or_is_no_file_is_refused() {
    let node = z_host().await;
    configure(&node, "memory_mib = 256\n");
    let file = fs::File::options().write(true).open(node.path("image")).expect("open");
    file.set_len(300 << 20).expect("grow");
    says(
        &node,
        "the VM's memory is too small for the image: 256 MiB (guest.memory_mib and the pod's limits), the image needs 301 MiB",
    )
    .await;
    fs::remove_file(node.path("image")).expect("remove");
    fs::create_dir(node.path("image")).expect("mkdir");
    says(&node, "is a directory, must be a regular file").await;
    fs::remove_dir(node.path("image")).expect("rmdir");
    nix::unistd::mkfifo(&node.path("image"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    says(&node, "is a fifo, must be a regular file").await;
}

/// Kernels before 6.13 do not report the machine's keys.
#[tokio::test]
async fn without_the_machines_keys_its_documents_decide() {
    let node = z_host().await;
    machine(&node, "sys/firmware/uv/keys/all", None);
    let shim = running(&node).await;
    let unknown = "whether the image fits this machine could not be checked: this kernel does not report";
    assert!(node.log().contains(unknown), "a warning only");
    assert_eq!(record(&node)["image"]["key"], serde_json::Value::Null);
    node.end(&shim, "c1").await;

    let other = softuv::machine::Machine::at(node.path("other"));
    other.make(&softuv::machine::Options::default()).expect("machine");
    configure(&node, &format!("host_key_documents = [\"{}\"]\n", other.document().display()));
    let hash = softuv::keys::hash(&softuv::document::host_key(&other.document()).expect("key"));
    let hash = softuv::keys::hex(&hash);
    says(&node, &format!("keys of the configured documents: {}…", &hash[..16])).await;
}

#[tokio::test]
async fn a_changed_page_is_found_where_the_operator_asked_for_it() {
    let node = z_host().await;
    configure(&node, "verify_digest = true\n");
    let image = kata_se::test_api::image::read(IMAGE).expect("image");
    let at = image.ipib.expect("list").components.first().expect("component").address;
    let mut bytes = IMAGE.to_vec();
    bytes[usize::try_from(at).expect("small")] ^= 1;
    fs::write(node.path("image"), bytes).expect("image");
    says(&node, "the image was modified or truncated since it was sealed").await;
}

#[tokio::test]
async fn a_refusal_of_the_ultravisor_is_explained_in_one_line_and_kept() {
    let node = z_host().await;
    node.double(|o| {
        o["exit"] = json!({"code": 1, "stderr": "KVM PV command 2 (KVM_PV_SET_SEC_PARMS) failed: header rc 108 rrc 5 IOCTL rc: -22"});
    });
    let dir = node.bundle("c1", &Bundle::sh("true"));
    let shim = node.shim("c1", &dir).await;
    let text = shim.create("c1", &dir, NO_STREAMS).await.expect_err("refused").to_string();
    assert!(
        text.contains("the image was built for another machine: KVM_PV_SET_SEC_PARMS: rc 0x108 rrc 0x5"),
        "{text}"
    );
    let recorded = record(&node);
    assert_eq!(recorded["failure"]["cause"], "the image was built for another machine");
    assert!(recorded["failure"]["words"].as_str().expect("words").contains("header rc 108 rrc 5"));
    assert!(node.log().contains("\"evidence\":\"KVM_PV_SET_SEC_PARMS: rc 0x108 rrc 0x5"));
    shim.shutdown(true).await.expect("shutdown");
    node.assert_clean();
}

/// A forged image can pass every check of the file: QEMU boots what it starts in clear, without a word.
#[tokio::test]
async fn a_guest_that_is_not_protected_is_ended_before_it_gets_anything_of_the_pod() {
    let node = z_host().await;
    node.double(|o| o["unprotected"] = json!(true));
    let dir = node.bundle("c1", &Bundle::sh("true"));
    let shim = node.shim("c1", &dir).await;
    let created = within("an error", 20, shim.create("c1", &dir, NO_STREAMS)).await;
    let text = created.expect_err("unprotected").to_string();
    let cause = "the guest was started unprotected, and was ended before it got anything of the pod";
    assert!(text.contains(&format!("check the guest's protection: {cause}: ")), "{text}");
    assert_eq!(record(&node)["failure"]["cause"], cause);
    let asked: Vec<_> = node.requests().iter().map(|r| r["call"].clone()).collect();
    assert!(asked.iter().all(|call| call == "Check"), "{asked:?}");
    shim.shutdown(true).await.expect("shutdown");
    node.assert_clean();
}

/// Allowed for development, and never without a word.
#[tokio::test]
async fn a_pod_without_protection_says_so_in_its_log_its_record_and_the_commands() {
    let node = TestNode::new().await;
    let shim = running(&node).await;
    let log = node.log();
    let warned = log.lines().find(|line| line.contains("this pod is NOT protected from the host"));
    assert!(warned.is_some_and(|line| line.contains("\"level\":\"warning\"")), "{log}");
    assert_eq!(record(&node)["confidential"], false);
    let (_, text) = command(&node, &["explain", "c1"]);
    assert!(text.contains("NOT protected from the host (guest.confidential = false)"), "{text}");
    let (code, text) = command(&node, &["check"]);
    assert!(code != Some(0) && text.contains("starts guests that are not protected"), "{text}");
    let (code, text) = command(&node, &["runtimeclass"]);
    assert!(code != Some(0) && text.contains("--handler kata-se-unprotected"), "{text}");
    node.end(&shim, "c1").await;
}

/// What cannot be asked is not known.
#[tokio::test]
async fn a_qemu_that_does_not_say_whether_the_guest_is_protected_gets_no_pod() {
    let node = z_host().await;
    node.double(|o| o["refuse"] = json!("query-migrate"));
    let text = node.refused(&Bundle::sh("true")).await;
    assert!(
        text.contains("check the guest's protection: QMP query-migrate: query-migrate refused"),
        "{text}"
    );
}

/// The node command with the same configuration and machine as the shim.
fn command(node: &TestNode, args: &[&str]) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(harness::program("kata-se"));
    command
        .args(args)
        .env("KATA_SE_SYS_ROOT", node.path("machine"))
        .env("KATA_SE_RUN_DIR", node.path("run"))
        .env("KATA_SE_CONFIG", node.path("config.toml"))
        .stdin(std::process::Stdio::null());
    let output = command.output().expect("kata-se");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[tokio::test]
async fn the_node_command_predicts_the_shims_verdict() {
    let node = z_host().await;
    let (code, text) = command(&node, &["check"]);
    assert_eq!(code, Some(0), "{text}");
    // The doubles keep root's rights, and the containers are the host's.
    let last = "A secure pod could start here; 2 checks have a warning.\n";
    let user = "warn  user         QEMU and its helpers keep root's rights: ";
    let rootfs = "warn  rootfs       this host can read and change what confidential containers run: rootfs.mode = \"packed\"";
    assert!(text.ends_with(last) && text.contains(user) && !text.contains('\x1b'), "{text}");
    assert!(text.contains(rootfs), "{text}");

    let wrong = "ab".repeat(32);
    machine(&node, "sys/firmware/uv/keys/all", Some(&format!("{wrong}\n{wrong}\n")));
    let why = refused(&node).await;
    let (code, text) = command(&node, &["check"]);
    assert_eq!(code, Some(1), "{text}");
    let line = text.lines().find(|line| line.starts_with("FAIL  key")).expect("the key's line");
    let message = line.strip_prefix("FAIL  key").expect("mark").trim_start();
    assert!(why.contains(message), "{message:?} is not in: {why}");
    let (code, text) = command(&node, &["check", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&text).expect("json");
    assert_eq!((code, &answer["can_start"]), (Some(1), &json!(false)));

    let checks: Vec<_> = answer["findings"].as_array().expect("list").iter().map(|f| &f["check"]).collect();
    for check in ["qemu", "mkfs", "vsock", "network", "cgroups", "cache", "pods"] {
        assert!(checks.contains(&&json!(check)), "{check}: {checks:?}");
    }
    configure(&node, "");
    let text = fs::read_to_string(node.path("config.toml")).expect("configuration");
    let programs = ["bin/qemu", "bin/vsock"].map(|name| node.path(name).display().to_string());
    let text = programs.iter().fold(text, |text, program| text.replace(program, "/bin/true"));
    fs::write(node.path("config.toml"), text).expect("configuration");
    let (code, text) = command(&node, &["check"]);
    assert!(code == Some(1) && text.contains("FAIL  qemu         this program is not QEMU: "), "{text}");
    assert!(text.contains("FAIL  vsock        this program is not vhost-device-vsock: "), "{text}");

    let kernel = node.path("kernel").display().to_string();
    let (code, text) = command(&node, &["image", "inspect", &kernel]);
    assert!(code == Some(1) && text.contains("not a Secure Execution image"), "{text}");
    let (code, text) = command(&node, &["image", "inspect", "/nonexistent"]);
    assert!(code == Some(3) && text.contains("No such file"), "{text}");
    assert_eq!(command(&node, &["image"]).0, Some(2));
}

#[tokio::test]
async fn a_failed_pod_is_explained_while_it_is_there() {
    let node = z_host().await;
    node.double(|o| o["exit"] = json!({"code": 1, "stderr": "S390 PV guests require KVM"}));
    let dir = node.bundle("c1", &Bundle::sh("true"));
    let shim = node.shim("c1", &dir).await;
    shim.create("c1", &dir, NO_STREAMS).await.expect_err("refused");
    let (code, text) = command(&node, &["explain", "c1"]);
    assert!(code == Some(0) && text.contains("cause     QEMU runs without KVM\n"), "{text}");
    assert!(text.contains("tag       ") && text.contains("advice    boot the host"), "{text}");
    shim.shutdown(true).await.expect("shutdown");
    node.assert_clean();
    let (code, text) = command(&node, &["explain", "c1"]);
    assert!(code == Some(3) && text.contains("neither a sandbox that runs here nor a file"), "{text}");
}
