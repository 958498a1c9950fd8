//! A second connection to a pod's agent, beside the shim's.

use std::path::Path;
use std::time::Duration;

use kata_se::test_api::{Agent, AgentConfig, Transport};
use tokio::sync::watch;

/// Connects to the agent of the pod in this folder, by the socket of its vsock device.
pub async fn agent(pod: &Path) -> Agent {
    let (alive, gone) = watch::channel(None);
    std::mem::forget(alive); // as long as the program
    let socket = pod.join("vsock/agent");
    assert!(socket.exists(), "{}", socket.display());
    let limit = Duration::from_secs(10);
    let config = AgentConfig {
        connect_timeout: limit,
        create_timeout: limit,
        image_pull_timeout: limit,
        call_timeout: limit,
        health_timeout: limit,
    };
    Agent::connect(Transport::Hybrid { socket }, config, gone).await.expect("agent")
}
