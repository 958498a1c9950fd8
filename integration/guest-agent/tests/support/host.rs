//! The agent as a plain process of the host.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixStream;

use super::{Agent, dial};

pub struct Host {
    pub child: Child,
    pub dir: TempDir,
}

impl Host {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// An agent that misbehaves as `rules` (a JSON list) say.
    pub fn scripted(rules: Value) -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("script"), serde_json::json!({ "rules": rules }).to_string()).unwrap();
        let script = dir.path().join("script").display().to_string();
        Self::in_dir(dir, &["--script", &script])
    }

    pub fn with(options: &[&str]) -> Self {
        Self::in_dir(TempDir::new().unwrap(), options)
    }

    fn in_dir(dir: TempDir, options: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_guest-agent"))
            .arg("--listen")
            .arg(format!("unix:{}", dir.path().join("s").display()))
            .arg("--root")
            .arg(dir.path().join("root"))
            .arg("--record")
            .arg(dir.path().join("record"))
            .arg("--die-with-parent")
            .args(options)
            .spawn()
            .unwrap();
        let host = Self { child, dir };
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(host.socket()).is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "the agent does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
        host
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// The host's file behind a path of the guest.
    pub fn path(&self, guest: &str) -> PathBuf {
        self.dir.path().join("root").join(guest.trim_start_matches('/'))
    }

    pub async fn stream(&self) -> UnixStream {
        dial(&self.socket()).await.unwrap()
    }

    pub async fn agent(&self) -> Agent {
        Agent::new(self.stream().await)
    }

    /// A client whose sandbox is created.
    pub async fn sandbox(&self) -> Agent {
        let agent = self.agent().await;
        agent.sandbox().await.unwrap();
        agent
    }

    /// The requests so far.
    pub fn record(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path().join("record")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Whether a process of this agent has this among its arguments.
    pub fn runs(&self, argument: &str) -> bool {
        let mark = format!("GUEST_ROOT={}", self.dir.path().join("root").display());
        let named = |dir: &PathBuf| {
            let line = std::fs::read(dir.join("cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
        };
        of_mark(&mark).iter().any(named)
    }

    /// Processes whose environment names this agent's folder.
    pub fn processes(&self) -> usize {
        let mark = format!("GUEST_ROOT={}", self.dir.path().join("root").display());
        processes_with(&mark)
    }
}

pub fn processes_with(mark: &str) -> usize {
    of_mark(mark).len()
}

fn of_mark(mark: &str) -> Vec<PathBuf> {
    let holds = |dir: &Path| {
        let environ = std::fs::read(dir.join("environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|pair| pair == mark.as_bytes())
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    processes.filter(|dir| holds(dir)).collect()
}

impl Drop for Host {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
