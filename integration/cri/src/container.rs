//! One container of a pod.

use std::path::PathBuf;

use harness::until;

use crate::api::{
    ContainerState, ContainerStats, ContainerStatsRequest, ContainerStatus, ContainerStatusRequest,
    ExecSyncRequest, RemoveContainerRequest, StartContainerRequest, StopContainerRequest,
};
use crate::log::{self, Line};
use crate::{Node, Status};

#[derive(Debug)]
pub struct Container<'n> {
    pub node: &'n Node,
    pub id: String,
    /// Where its log is written.
    pub log: PathBuf,
}

/// ExecSync's answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Executed {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

impl Container<'_> {
    pub fn try_start(&self) -> Result<(), Status> {
        self.node.start_container(StartContainerRequest { container_id: self.id.clone() }).map(drop)
    }

    pub fn start(&self) {
        self.try_start().unwrap_or_else(|e| panic!("StartContainer: {}", e.message()));
    }

    /// `timeout`: its grace period in seconds.
    pub fn try_stop(&self, timeout: i64) -> Result<(), Status> {
        self.node.stop_container(StopContainerRequest { container_id: self.id.clone(), timeout }).map(drop)
    }

    pub fn stop(&self, timeout: i64) {
        self.try_stop(timeout).unwrap_or_else(|e| panic!("StopContainer: {}", e.message()));
    }

    pub fn try_remove(&self) -> Result<(), Status> {
        self.node.remove_container(RemoveContainerRequest { container_id: self.id.clone() }).map(drop)
    }

    pub fn remove(&self) {
        self.try_remove().unwrap_or_else(|e| panic!("RemoveContainer: {}", e.message()));
    }

    pub fn try_status(&self) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        self.node.container_status(request).map(|answer| answer.status.expect("status"))
    }

    pub fn status(&self) -> ContainerStatus {
        self.try_status().expect("ContainerStatus")
    }

    /// Its status once it has ended, within `seconds`.
    pub fn ended(&self, seconds: u64) -> ContainerStatus {
        until("the container ends", seconds, || self.status().state() == ContainerState::ContainerExited);
        self.status()
    }

    pub fn stats(&self) -> ContainerStats {
        let request = ContainerStatsRequest { container_id: self.id.clone() };
        self.node.container_stats(request).expect("ContainerStats").stats.expect("stats")
    }

    /// `timeout`: seconds; 0 has none.
    pub fn try_exec(&self, command: &[&str], timeout: i64) -> Result<Executed, Status> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecSyncRequest { container_id: self.id.clone(), cmd, timeout };
        self.node.exec_sync(request).map(|answer| Executed {
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
            code: answer.exit_code,
        })
    }

    pub fn exec(&self, command: &[&str]) -> Executed {
        self.try_exec(command, 30).unwrap_or_else(|e| panic!("ExecSync {command:?}: {}", e.message()))
    }

    /// The output of a script, which must succeed.
    pub fn sh(&self, script: &str) -> String {
        let done = self.exec(&["sh", "-c", script]);
        assert_eq!(done.code, 0, "{script}: {done:?}");
        done.stdout
    }

    /// The lines of its log.
    pub fn lines(&self) -> Vec<Line> {
        log::read(&self.log)
    }

    /// The text of its log that came from `stream`: "stdout" or "stderr".
    pub fn logged(&self, stream: &str) -> String {
        self.lines().iter().filter(|line| line.stream == stream).map(|line| line.text.as_str()).collect()
    }

    /// Waits until its stdout in the log contains `text`.
    pub fn says(&self, text: &str) {
        until(&format!("its log says {text:?}"), 20, || self.logged("stdout").contains(text));
    }
}
