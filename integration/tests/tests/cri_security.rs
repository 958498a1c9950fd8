//! Who a container is and what it may do: users, groups, capabilities, paths, seccomp.

use std::fs;

use cri::api::security_profile::ProfileType;
use cri::api::{
    Capability, ContainerConfig, ImageSpec, Int64Value, LinuxContainerSecurityContext, SecurityProfile,
};
use cri::{Node, OWN, Pod, pod_security, security};

cri::on_each_version! {
    in_short:
    a_container_runs_as_the_requested_user_and_groups,
    a_container_has_the_requested_capabilities,
    paths_are_read_only_or_masked_as_requested;
    in_full:
    no_new_privs_prevents_gaining_privileges,
    seccomp_profiles_do_not_keep_a_container_from_running,
    a_seccomp_profile_is_applied_by_a_guest_that_can,
    a_privileged_container_is_privileged_in_its_guest;
}

/// What a script prints in a new container with this security context.
fn printed(pod: &Pod, name: &str, script: &str, change: impl FnOnce(&mut ContainerConfig)) -> String {
    let mut config = pod.plain(name, &["sh", "-c", script]);
    change(&mut config);
    let container = pod.start(&config);
    let status = container.ended(20);
    assert_eq!(status.exit_code, 0, "{script}: {:?}", container.lines());
    container.remove();
    container.logged("stdout")
}

/// The same for several scripts, from the container's log; a script that fails fails the test.
fn secured(
    pod: &Pod,
    name: &str,
    script: &str,
    change: impl FnOnce(&mut LinuxContainerSecurityContext),
) -> String {
    printed(pod, name, script, |config| change(security(config)))
}

fn a_container_runs_as_the_requested_user_and_groups(node: &Node) {
    let pod = node.pod("users");
    let who = "echo $(id -u) $(id -g) $(id -G)";
    assert_eq!(secured(&pod, "root", who, |_| ()), "0 0 0\n");
    let user = |s: &mut LinuxContainerSecurityContext| {
        s.run_as_user = Some(Int64Value { value: 1234 });
        s.run_as_group = Some(Int64Value { value: 567 });
        s.supplemental_groups = vec![10, 20];
    };
    assert_eq!(secured(&pod, "numbers", who, user), "1234 567 567 10 20\n");
    let image = |config: &mut ContainerConfig| {
        config.image = Some(ImageSpec { image: OWN.into(), ..Default::default() });
    };
    // A user given by name gets its groups from the image; containerd 1.6 does not look them up otherwise.
    let of_image = printed(&pod, "image", "echo $(id -u) $(id -g); pwd", image);
    assert_eq!(of_image, "1000 1000\n/home/user\n");
    let named = |config: &mut ContainerConfig| {
        image(config);
        security(config).run_as_username = "user".into();
        config.working_dir = "/tmp".into();
        config.envs = vec![cri::api::KeyValue { key: "WHAT".into(), value: "a b".into() }];
    };
    assert_eq!(
        printed(&pod, "name", &format!("{who}; pwd; echo $WHAT"), named),
        "1000 1000 1000 4242\n/tmp\na b\n"
    );

    // The pod's own container too.
    let mut config = node.config("user-of-the-pod");
    pod_security(&mut config).run_as_user = Some(Int64Value { value: 65535 });
    pod_security(&mut config).supplemental_groups = vec![30];
    let pod = node.run(&config);
    // An exec is the container's user.
    let mut config = pod.plain("c1", &["sleep", "1000"]);
    user(security(&mut config));
    assert_eq!(pod.start(&config).sh(who), "1234 567 567 10 20\n");
}

fn a_container_has_the_requested_capabilities(node: &Node) {
    let pod = node.pod("capabilities");
    let effective = "sed -n 's/^CapEff:.//p' /proc/self/status";
    let of = |add: &[&str], drop: &[&str]| {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Some(Capability { add_capabilities: list(add), drop_capabilities: list(drop), ..Default::default() })
    };
    let bits = |name: &str, capabilities: Option<Capability>| {
        let text = secured(&pod, name, effective, |s| s.capabilities = capabilities);
        u64::from_str_radix(text.trim(), 16).expect("bits")
    };
    let usual = bits("usual", None);
    assert_eq!(usual, 0xa804_25fb, "containerd's list");
    let (net_admin, chown) = (1 << 12, 1);
    assert_eq!(bits("one-more", of(&["NET_ADMIN"], &[])), usual | net_admin);
    assert_eq!(bits("one-less", of(&[], &["CHOWN"])), usual & !chown);
    assert_eq!(bits("none", of(&[], &["ALL"])), 0);
    assert_eq!(bits("only-one", of(&["NET_ADMIN"], &["ALL"])), net_admin);
    assert!(bits("all", of(&["ALL"], &[])).count_ones() > 36);
    // With the capability the guest's network can be changed, without it not.
    let change = "ip addr add 10.9.9.9/32 dev lo && echo made; ip addr del 10.9.9.9/32 dev lo; true";
    assert_eq!(secured(&pod, "with", change, |s| s.capabilities = of(&["NET_ADMIN"], &[])), "made\n");
    assert_eq!(secured(&pod, "without", change, |_| ()), "");
}

fn paths_are_read_only_or_masked_as_requested(node: &Node) {
    let pod = node.pod("paths");
    let write = "touch /new && echo root; touch /tmp/new && echo tmp; touch /dev/shm/new && echo shm; true";
    assert_eq!(secured(&pod, "writable", write, |_| ()), "root\ntmp\nshm\n");
    assert_eq!(secured(&pod, "read-only", write, |s| s.readonly_rootfs = true), "shm\n");
    let masked = "ls /var /usr | grep -c .; wc -c < /etc/passwd; touch /root/new && echo written; true";
    let change = |s: &mut LinuxContainerSecurityContext| {
        s.masked_paths = ["/usr", "/etc/passwd"].map(String::from).to_vec();
        s.readonly_paths = vec!["/root".into()];
    };
    let seen = secured(&pod, "masked", masked, change);
    assert_eq!(seen.lines().last(), Some("0"), "an empty file, and nothing written: {seen}");
    // What containerd masks by default.
    let usual =
        "wc -c < /proc/keys; ls /sys/firmware | wc -l; echo 1 > /proc/sys/kernel/panic && echo written; true";
    let defaults = |s: &mut LinuxContainerSecurityContext| {
        s.masked_paths = ["/proc/keys", "/sys/firmware"].map(String::from).to_vec();
        s.readonly_paths = vec!["/proc/sys".into()];
    };
    assert_eq!(secured(&pod, "defaults", usual, defaults), "0\n0\n");
}

fn no_new_privs_prevents_gaining_privileges(node: &Node) {
    let pod = node.pod("privileges");
    let asked = "sed -n 's/^NoNewPrivs:.//p' /proc/self/status";
    assert_eq!(secured(&pod, "may", asked, |_| ()), "0\n");
    assert_eq!(secured(&pod, "may-not", asked, |s| s.no_new_privs = true), "1\n");
}

fn seccomp_profiles_do_not_keep_a_container_from_running(node: &Node) {
    let pod = node.pod("seccomp");
    for (name, profile) in [("default", ProfileType::RuntimeDefault), ("none", ProfileType::Unconfined)] {
        let profile = SecurityProfile { profile_type: profile.into(), ..Default::default() };
        assert_eq!(secured(&pod, name, "echo runs", |s| s.seccomp = Some(profile)), "runs\n");
    }
}

fn a_seccomp_profile_is_applied_by_a_guest_that_can(node: &Node) {
    let config = fs::read_to_string(node.path("config.toml")).expect("configuration");
    let config = config.replace("cgroup_no_v1=all", "cgroup_no_v1=all guest-agent.seccomp=on");
    fs::write(node.path("config.toml"), config.replace("[guest]", "[guest]\nseccomp = true"))
        .expect("configuration");
    let denied = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}"#;
    fs::write(node.path("profile.json"), denied).expect("profile");
    let pod = node.pod("seccomp");
    let script = "sed -n 's/^Seccomp:.//p' /proc/self/status; mkdir /tmp/new || echo denied";
    let with = |name: &str, profile_type: ProfileType, localhost_ref: String| {
        let profile = SecurityProfile { profile_type: profile_type.into(), localhost_ref };
        secured(&pod, name, script, |s| s.seccomp = Some(profile))
    };
    let file = node.path("profile.json").display().to_string();
    assert_eq!(with("own", ProfileType::Localhost, file), "2\ndenied\n");
    assert_eq!(with("none", ProfileType::Unconfined, String::new()), "0\n");
}

fn a_privileged_container_is_privileged_in_its_guest(node: &Node) {
    let mut config = node.config("privileged");
    pod_security(&mut config).privileged = true;
    let pod = node.run(&config);
    let script = "sed -n 's/^CapEff:.//p' /proc/self/status; mount -t tmpfs none /tmp && echo mounted; \
                  ip addr add 10.9.9.9/32 dev lo && echo made; ip addr del 10.9.9.9/32 dev lo";
    let seen = secured(&pod, "c1", script, |s| s.privileged = true);
    let (bits, rest) = seen.split_once('\n').expect("lines");
    assert!(u64::from_str_radix(bits, 16).expect("bits").count_ones() > 36, "{seen}");
    assert_eq!(rest, "mounted\nmade\n");
    // Not in a pod that is not privileged.
    let plain = node.pod("plain");
    let mut config = plain.plain("c1", &["true"]);
    security(&mut config).privileged = true;
    plain.try_create(&config).expect_err("the pod has to be privileged");
}
