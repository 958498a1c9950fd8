//! Cgroups (version 2) of the guest's containers: limits, statistics, freezing, killing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::failure::{Result, Trying, internal};
use crate::messages::{agent as pb, oci};

const ROOT: &str = "/sys/fs/cgroup";
const FREEZE_LIMIT: Duration = Duration::from_secs(2);

/// A container's cgroup.
pub(crate) fn path(id: &str) -> PathBuf {
    Path::new(ROOT).join(crate::oci::cgroup(id).trim_start_matches('/'))
}

/// Enables every controller for cgroups below the root and below the one of all containers.
pub(crate) fn prepare() -> std::io::Result<()> {
    let all = Path::new(ROOT).join("pods");
    let controllers = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"))?;
    fs::create_dir_all(&all)?;
    let wanted: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    for dir in [Path::new(ROOT), &all] {
        fs::write(dir.join("cgroup.subtree_control"), wanted.join(" "))?;
    }
    Ok(())
}

/// SIGKILL for every process, including those being forked.
pub(crate) fn kill(id: &str) -> Result<()> {
    fs::write(path(id).join("cgroup.kill"), "1").trying("cgroup.kill")
}

pub(crate) async fn freeze(id: &str, frozen: bool) -> Result<()> {
    let dir = path(id);
    fs::write(dir.join("cgroup.freeze"), if frozen { "1" } else { "0" }).trying("cgroup.freeze")?;
    let wanted = format!("frozen {}", u8::from(frozen));
    let began = Instant::now();
    while !fs::read_to_string(dir.join("cgroup.events")).trying("cgroup.events")?.contains(&wanted) {
        if began.elapsed() > FREEZE_LIMIT {
            return Err(internal("the cgroup does not freeze"));
        }
        sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

pub(crate) fn update(id: &str, resources: &oci::LinuxResources) -> Result<()> {
    let dir = path(id);
    let set = |file: &str, value: String| fs::write(dir.join(file), value).trying(file);
    let limit = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    if resources.Memory.Limit != 0 {
        set("memory.max", limit(resources.Memory.Limit))?;
    }
    let cpu = &resources.CPU;
    if cpu.Shares != 0 {
        set("cpu.weight", (1 + cpu.Shares.clamp(2, 262_144).saturating_sub(2) * 9999 / 262_142).to_string())?;
    }
    if cpu.Quota != 0 || cpu.Period != 0 {
        let quota = if cpu.Quota <= 0 { "max".to_owned() } else { cpu.Quota.to_string() };
        set("cpu.max", format!("{quota} {}", if cpu.Period == 0 { 100_000 } else { cpu.Period }))?;
    }
    Ok(())
}

/// How often the OOM killer hit a process of the cgroup.
pub(crate) fn oom_kills(id: &str) -> u64 {
    table(&path(id).join("memory.events"), "oom_kill")
}

pub(crate) fn stats(id: &str) -> pb::CgroupStats {
    let dir = path(id);
    let number = |file: &str| {
        let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
        if text.trim() == "max" { u64::MAX } else { text.trim().parse().unwrap_or(0) }
    };
    let cpu = |name: &str| table(&dir.join("cpu.stat"), name);
    let usage = pb::CpuUsage {
        total_usage: cpu("usage_usec") * 1000,
        usage_in_kernelmode: cpu("system_usec") * 1000,
        usage_in_usermode: cpu("user_usec") * 1000,
        ..Default::default()
    };
    let throttling = pb::ThrottlingData {
        periods: cpu("nr_periods"),
        throttled_periods: cpu("nr_throttled"),
        throttled_time: cpu("throttled_usec") * 1000,
        ..Default::default()
    };
    let memory = pb::MemoryData {
        usage: number("memory.current"),
        max_usage: number("memory.peak"),
        limit: number("memory.max"),
        ..Default::default()
    };
    let details = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let memory = pb::MemoryStats {
        usage: Some(memory).into(),
        stats: lines(&details).collect(),
        ..Default::default()
    };
    let pids =
        pb::PidsStats { current: number("pids.current"), limit: number("pids.max"), ..Default::default() };
    let cpu = pb::CpuStats {
        cpu_usage: Some(usage).into(),
        throttling_data: Some(throttling).into(),
        ..Default::default()
    };
    pb::CgroupStats {
        cpu_stats: Some(cpu).into(),
        memory_stats: Some(memory).into(),
        pids_stats: Some(pids).into(),
        ..Default::default()
    }
}

/// `name value` lines.
fn lines(text: &str) -> impl Iterator<Item = (String, u64)> + '_ {
    text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    })
}

fn table(file: &Path, wanted: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    lines(&text).find(|(name, _)| name == wanted).map_or(0, |(_, value)| value)
}
