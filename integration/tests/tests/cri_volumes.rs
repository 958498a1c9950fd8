//! Files of the node and of images in a pod's containers; and what CRI can request that no VM can provide.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use cri::api::{Device, ImageSpec, Mount, MountPropagation, NamespaceMode, NamespaceOption};
use cri::{Node, OWN, Pod, pod_security, security};
use harness::{KubeletVolume, until};

cri::on_each_version! {
    in_short:
    files_and_folders_of_the_node_are_copies,
    a_config_map_follows_the_nodes,
    what_no_vm_can_share_is_refused_in_one_line;
    in_full:
    volumes_of_an_image_begin_with_its_files,
    an_empty_dir_is_shared_by_the_pods_containers,
    a_termination_message_comes_back_from_the_guest;
}

fn mount(node: &Node, name: &str, at: &str) -> Mount {
    Mount {
        container_path: at.into(),
        host_path: node.path(name).display().to_string(),
        ..Default::default()
    }
}

fn files_and_folders_of_the_node_are_copies(node: &Node) {
    fs::create_dir_all(node.path("volume/deep")).expect("folder");
    fs::write(node.path("volume/one"), "first\n").expect("file");
    fs::write(node.path("volume/deep/two"), "second\n").expect("file");
    symlink("one", node.path("volume/link")).expect("link");
    fs::write(node.path("hosts"), "127.0.0.1 localhost\n10.0.0.1 here\n").expect("file");
    symlink("volume/deep", node.path("way")).expect("link");
    let pod = node.pod("volumes");
    let mut config = pod.plain("c1", &["sleep", "1000"]);
    config.mounts = vec![
        mount(node, "volume", "/data"),
        Mount { readonly: true, ..mount(node, "volume", "/fixed") },
        mount(node, "hosts", "/etc/hosts"),
        mount(node, "way", "/way"),
        mount(node, "not-there", "/made"),
    ];
    let container = pod.start(&config);
    assert_eq!(
        container.sh("cat /data/one /data/deep/two /data/link /fixed/one"),
        "first\nsecond\nfirst\nfirst\n"
    );
    assert_eq!(container.sh("cat /way/two"), "second\n", "a path that is a link");
    assert_eq!(container.sh("ls -a /made | wc -l"), "2\n", "containerd makes what is not there");
    assert_eq!(container.sh("cat /etc/hosts"), "127.0.0.1 localhost\n10.0.0.1 here\n");
    assert_eq!(container.exec(&["touch", "/fixed/new"]).code, 1, "read only");
    container.sh("echo changed > /data/one; cat /data/one");
    assert_eq!(fs::read_to_string(node.path("volume/one")).expect("file"), "first\n", "the node's stays");
}

fn volumes_of_an_image_begin_with_its_files(node: &Node) {
    let pod = node.pod("image-volume");
    let mut config = pod.plain("c1", &["sleep", "1000"]);
    config.image = Some(ImageSpec { image: OWN.into(), ..Default::default() });
    security(&mut config).run_as_username = "root".into();
    let container = pod.start(&config);
    assert_eq!(container.sh("cat /data/file; echo more > /data/new; cat /data/new"), "of the image\nmore\n");
}

fn an_empty_dir_is_shared_by_the_pods_containers(node: &Node) {
    let volume = "pods/uid/volumes/kubernetes.io~empty-dir/cache";
    fs::create_dir_all(node.path(volume)).expect("folder");
    let pod = node.pod("empty-dir");
    let start = |name: &str| {
        let mut config = pod.plain(name, &["sleep", "1000"]);
        config.mounts = vec![mount(node, volume, "/cache")];
        pod.start(&config)
    };
    let (one, other) = (start("one"), start("other"));
    one.sh("echo shared > /cache/file");
    assert_eq!(other.sh("cat /cache/file"), "shared\n");
    one.remove();
    assert_eq!(
        start("third").sh("cat /cache/file; ls /cache"),
        "shared\nfile\nlost+found\n",
        "it lives as long as the pod"
    );
    let names =
        fs::read_dir(node.path(volume)).expect("folder").map(|entry| entry.expect("entry").file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["disk.img"], "nothing else of it is on the node");
}

fn a_termination_message_comes_back_from_the_guest(node: &Node) {
    let pod = node.pod("termination");
    for (policy, wanted) in [("File", "why\n"), ("FallbackToLogsOnError", "")] {
        fs::write(node.path("message"), "").expect("file");
        let mut config = pod.plain(
            &policy.to_lowercase(),
            &["sh", "-c", "echo why > /dev/termination-log; cat /dev/termination-log; exit 4"],
        );
        config.mounts = vec![mount(node, "message", "/dev/termination-log")];
        for (name, value) in [("Path", "/dev/termination-log"), ("Policy", policy)] {
            config
                .annotations
                .insert(format!("io.kubernetes.container.terminationMessage{name}"), value.into());
        }
        let container = pod.start(&config);
        assert_eq!((container.ended(20).exit_code, container.logged("stdout").as_str()), (4, "why\n"));
        assert_eq!(fs::read_to_string(node.path("message")).expect("file"), wanted, "{policy}");
    }
}

/// A configMap as the kubelet replaces it; and a file of it by `subPath`, which Kubernetes does not.
fn a_config_map_follows_the_nodes(node: &Node) {
    let mut volume = KubeletVolume::new(node.path("config"), &[("a", "1"), ("gone", "1")]);
    fs::write(node.path("hosts"), "one\n").expect("file");
    let pod = node.pod("config-map");
    let mut config = pod.plain("c1", &["sleep", "1000"]);
    config.mounts = vec![
        Mount { readonly: true, ..mount(node, "config", "/config") },
        mount(node, "hosts", "/etc/hosts"),
    ];
    let container = pod.start(&config);
    assert_eq!(container.sh("cat /config/a /config/gone /etc/hosts"), "11one\n");
    volume.update(&[("a", "2"), ("new", "3")]);
    let seen = || container.exec(&["sh", "-c", "cat /config/a /config/new 2>&1; ls /config/gone"]).stdout;
    until("the update", 20, || seen() == "23");
    assert_eq!(container.sh("cd /config; ls"), "a\ngone\nnew\n", "nothing removes a link in the guest");
    fs::write(node.path("hosts"), "two\n").expect("file");
    volume.update(&[("a", "4"), ("new", "5")]);
    until("another", 20, || seen() == "45");
    assert_eq!(container.sh("cat /etc/hosts"), "one\n", "the mount holds the file of the start");
}

fn refused_pod(node: &Node, options: NamespaceOption) -> String {
    let mut config = node.config("refused");
    pod_security(&mut config).namespace_options = Some(options);
    one_line(node.try_run(&config).expect_err("refused"))
}

fn one_line(e: cri::Status) -> String {
    assert_eq!(e.message().lines().count(), 1, "{}", e.message());
    e.message().to_owned()
}

fn refused(pod: &Pod, change: impl FnOnce(&mut cri::api::ContainerConfig)) -> String {
    let mut config = pod.plain("refused", &["true"]);
    change(&mut config);
    match pod.try_create(&config) {
        Err(e) => one_line(e),
        Ok(container) => {
            let e = one_line(container.try_start().expect_err("refused"));
            container.remove();
            e
        }
    }
}

/// A mount that allows propagation, which containerd requires.
struct SharedMount(PathBuf);

impl SharedMount {
    fn new(at: PathBuf) -> Self {
        fs::create_dir(&at).expect("folder");
        let made = Self(at);
        for options in [&["-t", "tmpfs", "shared"][..], &["--make-shared"]] {
            let ran = Command::new("mount").args(options).arg(&made.0).status().expect("mount");
            assert!(ran.success(), "mount {options:?}");
        }
        made
    }
}

impl Drop for SharedMount {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.0).status().ok();
    }
}

fn what_no_vm_can_share_is_refused_in_one_line(node: &Node) {
    let of_node = NamespaceMode::Node;
    for (options, setting) in [
        (
            NamespaceOption { network: of_node.into(), ..Default::default() },
            "hostNetwork: a guest has its own kernel",
        ),
        (
            NamespaceOption { pid: of_node.into(), ..Default::default() },
            "hostPID: a guest has its own kernel",
        ),
        (
            NamespaceOption { ipc: of_node.into(), ..Default::default() },
            "hostIPC: a guest has its own kernel",
        ),
    ] {
        if node.sandbox_api && options.network == i32::from(of_node) {
            continue; // containerd 2.1 does not survive it: e2e_sandbox_api.rs
        }
        let message = refused_pod(node, options);
        assert!(message.contains(setting), "{message}");
    }
    let _shared = SharedMount::new(node.path("shared"));
    let pod = node.pod("refusals");
    let propagating = |propagation: MountPropagation| Mount {
        propagation: propagation.into(),
        ..mount(node, "shared", "/data")
    };
    let message = refused(&pod, |config| {
        config.mounts = vec![propagating(MountPropagation::PropagationBidirectional)];
    });
    assert!(
        message.contains("mount /data: mounts made in the guest cannot be propagated to the host"),
        "{message}"
    );
    // In the other direction a container sees what existed when it was created.
    fs::write(node.path("shared/file"), "here\n").expect("file");
    let mut config = pod.plain("propagated", &["sleep", "1000"]);
    config.mounts = vec![propagating(MountPropagation::PropagationHostToContainer)];
    assert_eq!(pod.start(&config).sh("cat /data/file"), "here\n");
    // The node's memory device, by its device numbers.
    let device = node.path("mem");
    let made = Command::new("mknod").arg(&device).args(["c", "1", "1"]).status().expect("mknod");
    assert!(made.success(), "mknod");
    let message = refused(&pod, |config| {
        config.devices = vec![Device {
            container_path: "/dev/x".into(),
            host_path: device.display().to_string(),
            permissions: "rw".into(),
        }];
    });
    assert!(message.contains("device /dev/x: a device of the host"), "{message}");
    let message = refused(&pod, |config| {
        config.mounts = vec![mount(node, "c.sock", "/run/containerd.sock")];
    });
    assert!(message.contains("/run/containerd.sock"), "{message}");
    let mut config = node.config("host-devices");
    pod_security(&mut config).privileged = true;
    let with_devices = node.try_run_by("kata-se-host-devices", &config).expect("a pod");
    let message = refused(&with_devices, |config| security(config).privileged = true);
    assert!(message.contains("set privileged_without_host_devices = true for this runtime"), "{message}");
    // After all of them the pod still works.
    assert_eq!(pod.script("c1", "exit 0").ended(20).exit_code, 0);
}
