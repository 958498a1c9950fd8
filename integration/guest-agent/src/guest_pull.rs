//! The storage driver `image_guest_pull`: a container whose root file system the guest makes without the host, of an
//! image that it pulls, or of its own pause bundle.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::check::{CRI_TYPES, GUEST_DIR};
use crate::environment::Environment;
use crate::failure::{Result, Trying, internal};
use crate::image::{Images, Reference};
use crate::messages::agent::Storage;
use crate::messages::oci::{LinuxCapabilities, Process, Spec, User};
use crate::settings::Settings;

pub(crate) const DRIVER: &str = "image_guest_pull";

const PAUSE_BUNDLE: &str = "/pause_bundle";
/// The bundle's `config.json`, for agents that have no guest with a bundle.
const PAUSE_CONFIG: &str = include_str!("../pause_bundle/config.json");

/// What a host says of a container, beside the name of its image.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Volume {
    metadata: HashMap<String, String>,
}

/// The images of this guest; pulls run one after another.
#[derive(Clone, Debug)]
pub(crate) struct GuestPull(Arc<Mutex<Images>>);

impl GuestPull {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Images::new(Path::new(GUEST_DIR).join("image")))))
    }

    /// Makes the root file system of container `id`. The process, where the guest replaces the host's.
    pub(crate) async fn make(
        &self,
        environment: &Environment,
        settings: &Settings,
        storage: &Storage,
        (id, sandbox): (&str, &str),
        spec: &Spec,
    ) -> Result<Option<Process>> {
        let rootfs = environment.path(&storage.mount_point);
        fs::create_dir_all(&rootfs).trying(rootfs.display())?;
        let said = spec_says_sandbox(&spec.Annotations);
        let pause = if settings.reads_pull_metadata() {
            spec_says_sandbox(&metadata(&storage.driver_options).map_err(internal)?)
        } else {
            if !storage.driver_options.is_empty() {
                return Err(internal(format!(
                    "storage {DRIVER}: driver_options are set: policies refuse them"
                )));
            }
            said || id == sandbox
        };
        if pause {
            let process = unpack_pause(environment, &rootfs)?;
            return Ok(said.then_some(process));
        }
        // As the real agent does it: the task of the call ends, and nothing is answered.
        assert!(settings.cdh, "Confidential Data Hub not initialized");
        // A process of the host has nothing that it could mount.
        if environment.is_guest() {
            let folders = self.pull(&storage.source, settings.pull_limit).await?;
            mount(environment, id, &rootfs, &folders)?;
        }
        Ok(None)
    }

    async fn pull(&self, image: &str, limit: Duration) -> Result<Vec<PathBuf>> {
        let failed = |e: String| internal(format!("[CDH] [ERROR]: Image Pull error: {e}"));
        let reference =
            Reference::parse(image).ok_or_else(|| failed("Illegal image reference".to_owned()))?;
        let (sender, receiver) = oneshot::channel();
        let images = self.0.clone();
        // A thread of its own: the end of the agent does not wait for it.
        thread::spawn(move || {
            let pulled = images.lock().unwrap_or_else(PoisonError::into_inner).pull(&reference);
            // Nobody waits any more after the limit; the layers stay for the next.
            sender.send(pulled).ok();
        });
        let pulled = timeout(limit, receiver).await.trying("ttrpc err: Receive packet timeout")?;
        pulled.trying("image pull")?.map_err(failed)
    }
}

fn mount(environment: &Environment, id: &str, rootfs: &Path, folders: &[PathBuf]) -> Result<()> {
    let dir = environment.path(&format!("{GUEST_DIR}/{id}"));
    let lower: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    let mut options = vec![format!("lowerdir={}", lower.join(":"))];
    for name in ["upper", "work"] {
        let part = dir.join(name);
        fs::create_dir_all(&part).trying(part.display())?;
        options.push(format!("{name}dir={}", part.display()));
    }
    environment.mount(Path::new("overlay"), rootfs, "overlay", &options).trying("Failed to create bundle")
}

fn spec_says_sandbox(annotations: &HashMap<String, String>) -> bool {
    CRI_TYPES.iter().any(|key| annotations.get(*key).is_some_and(|value| value == "sandbox"))
}

/// The metadata that agents up to 4.1 need.
fn metadata(options: &[String]) -> std::result::Result<HashMap<String, String>, String> {
    let missing = "missing Image information for ImagePull volume";
    let [option] = options else { return Err(missing.to_owned()) };
    let value = option.strip_prefix(DRIVER).and_then(|rest| rest.strip_prefix('='));
    let volume: Volume =
        serde_json::from_str(value.ok_or(missing)?).map_err(|e| format!("storage {DRIVER}: {e}"))?;
    Ok(volume.metadata)
}

/// Copies what the real agent copies: the configuration, and the program that it names.
fn unpack_pause(environment: &Environment, rootfs: &Path) -> Result<Process> {
    let process = |text: &str| -> Result<Process> {
        let config: PauseConfig = serde_json::from_str(text).trying("config.json of the pause bundle")?;
        Ok(config.process.into())
    };
    if !environment.is_guest() {
        return process(PAUSE_CONFIG);
    }
    let bundle = Path::new(PAUSE_BUNDLE);
    let text = fs::read_to_string(bundle.join("config.json")).trying(PAUSE_BUNDLE)?;
    let process = process(&text)?;
    let program = process.Args.first().map(|arg| arg.trim_start_matches('/')).unwrap_or_default();
    let (from, to) = (bundle.join("rootfs").join(program), rootfs.join(program));
    fs::create_dir_all(to.parent().unwrap_or(rootfs)).trying(to.display())?;
    fs::copy(&from, &to).trying(from.display())?;
    Ok(process)
}

#[derive(Debug, Deserialize)]
struct PauseConfig {
    process: PauseProcess,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PauseProcess {
    user: PauseUser,
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
    capabilities: PauseCapabilities,
    no_new_privileges: bool,
}

#[derive(Debug, Deserialize)]
struct PauseUser {
    uid: u32,
    gid: u32,
}

#[derive(Debug, Deserialize)]
struct PauseCapabilities {
    bounding: Vec<String>,
    effective: Vec<String>,
    permitted: Vec<String>,
}

impl From<PauseProcess> for Process {
    fn from(pause: PauseProcess) -> Self {
        let user = User { UID: pause.user.uid, GID: pause.user.gid, ..Default::default() };
        let capabilities = LinuxCapabilities {
            Bounding: pause.capabilities.bounding,
            Effective: pause.capabilities.effective,
            Permitted: pause.capabilities.permitted,
            ..Default::default()
        };
        Self {
            User: Some(user).into(),
            Args: pause.args,
            Env: pause.env,
            Cwd: pause.cwd,
            Capabilities: Some(capabilities).into(),
            NoNewPrivileges: pause.no_new_privileges,
            ..Default::default()
        }
    }
}
