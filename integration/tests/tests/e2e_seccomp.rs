//! A container's seccomp profile holds in the guest, for its first process and for every exec.

use std::fs;

use harness::Containerd;
use serde_json::json;

/// The number of the system call on s390x.
const SIGURG: u32 = 23;

#[test]
fn a_denied_system_call_is_denied_in_the_guest() {
    let node = Containerd::new();
    let config = fs::read_to_string(node.path("config.toml")).expect("configuration");
    let config = config.replace("cgroup_no_v1=all", "cgroup_no_v1=all guest-agent.seccomp=on");
    fs::write(node.path("config.toml"), config.replace("[guest]", "[guest]\nseccomp = true"))
        .expect("configuration");
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_S390X"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95, "args": [
                {"index": 1, "value": SIGURG, "op": "SCMP_CMP_EQ"}]},
        ],
    });
    fs::write(node.path("profile.json"), profile.to_string()).expect("profile");
    let file = node.path("profile.json").display().to_string();
    let options = ["--seccomp", "--seccomp-profile", &file];
    let script = "mkdir /dev/shm/a 2>/dev/null || touch /dev/shm/denied; while :; do sleep 0.1; done";
    let mut child = node.running(&options, "c1", script);
    let run = |exec: &str, script: &str| {
        let output = node.exec("c1", exec, &["sh", "-c", script]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    harness::until("the first process was denied", 10, || {
        run("first", "[ -e /dev/shm/denied ]").0 == Some(0)
    });
    let (code, text) = run("mkdir", "mkdir /dev/shm/b");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("Operation not permitted"), "{text}");
    let (code, text) = run("argument", "kill -URG $$");
    assert!(code != Some(0) && text.contains("not supported"), "{code:?} {text}");
    let (code, text) = run("other", "kill -0 $$");
    assert_eq!(code, Some(0), "another argument: {text}");
    node.ctr(&["task", "kill", "--signal", "KILL", "c1"]);
    child.wait().expect("ctr");
    node.remove("c1");
    node.assert_clean();
}
