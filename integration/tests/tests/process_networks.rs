//! A pod's network of many interfaces with any names: each reaches the guest under its own.

use std::collections::BTreeSet;

use harness::{Bundle, NO_STREAMS, PodNetwork, TestNode, within};

#[tokio::test]
async fn a_hundred_interfaces_of_odd_names_reach_the_guest_by_name() {
    // What the kernel takes: no '/', ':', '%' or space, 15 bytes.
    let odd = [
        "-n",
        "--help",
        "..x",
        "a,b",
        "a,,b=c",
        "id=x",
        "{}",
        "[0]",
        "\"",
        "\\",
        "'",
        "$(id)",
        "`id`",
        "a;b",
        "a|b",
        "*",
        "\u{e9}\u{e8}\u{20ac}",
        "\u{202e}abc",
        "\u{1}\u{1b}[1m",
        "eth0.100",
        "eth0@if7",
        "#",
        "!",
        "~",
        "0",
        "tap0_kata",
        "123456789012345",
        "lo0",
    ];
    let names: Vec<String> = odd.iter().map(|name| (*name).to_owned()).collect();
    let many = (names.len()..100).map(|n| format!("net-{n}"));
    let names: Vec<String> = names.into_iter().chain(many).collect();
    // In pairs: not every kernel has links of another kind.
    let lines = |pair: &[String]| {
        let (one, other) = (&pair[0], &pair[1]);
        format!(
            "link add name {one} type veth peer name {other}\nlink set dev {one} up\nlink set dev {other} up\n"
        )
    };
    let network =
        PodNetwork::new("addr add 10.1.0.1/24 dev eth0", &names.chunks(2).map(lines).collect::<String>());
    let node = TestNode::new().await;
    let dir = node.bundle("c1", &Bundle::sh("sleep 1000").network(&network.path()));
    let shim = node.shim("c1", &dir).await;
    within("a pod", 30, shim.create("c1", &dir, NO_STREAMS)).await.expect("create");
    let requests = node.requests();
    let of_interfaces = requests.iter().filter(|request| request["call"] == "UpdateInterface");
    let told: BTreeSet<_> = of_interfaces.map(|r| r["request"]["interface"]["name"].to_string()).collect();
    let wanted = names.iter().map(String::as_str).chain(["eth0"]);
    assert_eq!(told, wanted.map(|name| serde_json::Value::from(name).to_string()).collect());
    shim.start("c1", "").await.expect("start");
    node.end(&shim, "c1").await;
}
