//! The command line, and the agent's life from start to end.

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::agent::Agent;
use crate::boot::{self, Asked};
use crate::crun::Crun;
use crate::device::Devices;
use crate::environment::Environment;
use crate::exec_gate;
use crate::interpose::Interposer;
use crate::network::Network;
use crate::plain::Plain;
use crate::reaper::Reaper;
use crate::record::Record;
use crate::script::Rules;
use crate::serve::{Endpoint, serve};
use crate::service::services;
use crate::settings::Settings;

const USAGE: &str =
    "usage: guest-agent --listen unix:PATH --root DIR [--plain] [--devices FILE] [--record FILE]
                   [--script FILE] [--version VERSION] [--no-cdh] [--die-with-parent]
  --listen   Unix socket; each connection begins with `CONNECT 1024` unless --plain
  --root     folder that plays the guest's file system
  --devices  file with the addresses of plugged devices, one a line (default: every device is there)
  --record   write every request there, one JSON line each
  --script   misbehave as this JSON file says; read again when it changes
  --version  the version that it answers (4.1.0), and behaves like
  --no-cdh   a guest without a confidential data hub: CreateContainer with an image to pull has no answer
As process 1 it takes no options and prepares the guest first.";

/// The record's path in a guest.
const GUEST_RECORD: &str = "/run/record.jsonl";

/// Time to send the last answer.
const FAREWELL: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Options {
    listen: Option<PathBuf>,
    root: Option<PathBuf>,
    plain: bool,
    devices: Option<PathBuf>,
    record: Option<PathBuf>,
    script: Option<PathBuf>,
    settings: Settings,
    die_with_parent: bool,
}

/// The program, from its arguments to its exit code.
pub fn run() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let first = args.next();
    if first.as_deref() == Some(exec_gate::COMMAND.as_ref()) {
        return exec_gate::run(args);
    }
    let guest = std::process::id() == 1;
    let ended =
        if guest { live_in_guest() } else { options(first.into_iter().chain(args)).and_then(live_on_host) };
    let code = match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            say(&e);
            ExitCode::FAILURE
        }
    };
    if guest {
        boot::power_off();
    }
    code
}

/// One line to the console.
pub(crate) fn say(line: &str) {
    // Without a reader it is lost.
    std::io::stderr().write_all(format!("guest-agent: {line}\n").as_bytes()).ok();
}

/// Exits like a program that failed.
#[allow(clippy::exit)]
pub(crate) fn crash() -> ! {
    std::process::exit(70)
}

fn options(mut args: impl Iterator<Item = OsString>) -> Result<Options, String> {
    let mut options = Options::default();
    while let Some(option) = args.next() {
        let mut value =
            || args.next().map(PathBuf::from).ok_or_else(|| format!("{option:?} needs a value\n{USAGE}"));
        match option.to_str() {
            Some("--listen") => {
                let text = value()?.to_string_lossy().into_owned();
                let path =
                    text.strip_prefix("unix:").ok_or_else(|| format!("--listen {text}: not unix:PATH"))?;
                options.listen = Some(path.trim_start_matches("//").into());
            }
            Some("--root") => options.root = Some(value()?),
            Some("--devices") => options.devices = Some(value()?),
            Some("--record") => options.record = Some(value()?),
            Some("--script") => options.script = Some(value()?),
            Some("--version") => options.settings.version = value()?.to_string_lossy().into_owned(),
            Some("--no-cdh") => options.settings.cdh = false,
            Some("--plain") => options.plain = true,
            Some("--die-with-parent") => options.die_with_parent = true,
            _ => return Err(format!("unknown option {option:?}\n{USAGE}")),
        }
    }
    Ok(options)
}

fn on_runtime(live: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    // One thread: the parent-death signal is sent when the thread that forked ends, not the process.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(live)
}

fn live_on_host(options: Options) -> Result<(), String> {
    if options.die_with_parent {
        set_pdeathsig(Signal::SIGKILL).map_err(|e| e.to_string())?;
        if nix::unistd::getppid().as_raw() == 1 {
            return Err("its parent had ended already".to_owned());
        }
    }
    let (Some(path), Some(root)) = (options.listen, options.root) else {
        return Err(USAGE.to_owned());
    };
    std::fs::create_dir_all(&root).map_err(|e| format!("{}: {e}", root.display()))?;
    let root = root.canonicalize().map_err(|e| format!("{}: {e}", root.display()))?;
    let record = Record::new(options.record.as_deref(), false).map_err(|e| format!("record: {e}"))?;
    let rules = options.script.as_deref().map(Rules::of_file).unwrap_or_default();
    let environment =
        Environment::Host { plain: Plain::new(root), devices: Devices::Listed(options.devices) };
    let endpoint = Endpoint::Unix { path: path.clone(), greeted: !options.plain };
    let ended = on_runtime(async {
        let reaper = Reaper::start().map_err(|e| e.to_string())?;
        live(
            Agent::new(environment, Network::host(), reaper, options.settings),
            endpoint,
            Arc::new(record),
            rules,
        )
        .await
    });
    std::fs::remove_file(path).ok();
    ended
}

fn live_in_guest() -> Result<(), String> {
    let Asked { record_console, record_file, script, settings } = boot::prepare();
    let file = record_file.then(|| PathBuf::from(GUEST_RECORD));
    let record = Record::new(file.as_deref(), record_console).map_err(|e| format!("record: {e}"))?;
    let rules = script.map_or_else(|| Ok(Rules::default()), |text| Rules::of_text(&text))?;
    on_runtime(async {
        let reaper = Reaper::start().map_err(|e| e.to_string())?;
        let network = Network::guest().map_err(|e| e.to_string())?;
        network.loopback_up().await.unwrap_or_else(|e| say(&crate::failure::text(&e)));
        let environment = Environment::Guest { crun: Crun::new(reaper.clone()), devices: Devices::kernel() };
        live(Agent::new(environment, network, reaper, settings), Endpoint::Vsock, Arc::new(record), rules)
            .await
    })
}

/// Serves until the sandbox is destroyed or a signal ends the process.
async fn live(
    agent: Arc<Agent>,
    endpoint: Endpoint,
    record: Arc<Record>,
    rules: Rules,
) -> Result<(), String> {
    let interposer = Interposer::new(record.clone(), rules);
    let asked = |kind| signal(kind).map_err(|e| e.to_string());
    let (mut terminate, mut interrupt) = (asked(SignalKind::terminate())?, asked(SignalKind::interrupt())?);
    let _server = serve(endpoint, services(&agent, &record), interposer).await?;
    say("listening");
    tokio::select! {
        () = agent.ended.notified() => sleep(FAREWELL).await,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
