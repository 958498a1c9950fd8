//! The `start` command: finds or starts the pod's shim and prints its address.
//!
//! One shim serves all containers of a pod. The server is this program again. It inherits the listening socket and
//! the pod's lock, so that the address works as soon as it is printed and the lock is never free in between. The
//! format of the output depends on the caller's version.

use std::fs::{self, Permissions};
use std::io::{IsTerminal, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Instant;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use crate::error::{Context, Error, Result};
use crate::host::config;
use crate::host::files::{private_dir, write_atomic};
use crate::host::lock::PodLock;
use crate::host::process::{FdTable, Launch, check_file_limit};
use crate::ids::{ContainerId, Namespace, PodKey};
use crate::limits;
use crate::limits::qemu::SOCKET_PATH_BYTES;
use crate::oci::role::Role;
use crate::pod::{cleanup, dir};
use crate::shim::convert::config_path;
use crate::shim::flags::Flags;
use crate::shim::{poll_pause, remove_pod_dir, role_of, serve};

/// Which bootstrap protocol the caller uses.
#[derive(Clone, Debug, PartialEq)]
enum Dialect {
    /// containerd 2.3 and newer: bootstrap parameters on stdin, a bootstrap result on stdout.
    Bootstrap { events: String },
    /// containerd 1.6 to 2.2, CRI-O: a bare address on stdout; the environment names the event service.
    Address,
}

/// Returns the address of the pod's shim, which is started if this is the pod's first container.
pub(crate) fn start(flags: &Flags) -> Result<Vec<u8>> {
    let (namespace, id) = flags.ids()?;
    let input = read_start_input()?;
    let dialect = detect_dialect(&input, flags)?;
    let config = named_config(&input, &dialect)?;
    let bundle_dir = flags.bundle_dir()?;
    let role = role_of(&bundle_dir, &id)?;
    let sandbox = role.sandbox(&id);
    let key = PodKey::new(&flags.address, &namespace, &sandbox);
    let root = dir::run_dir();
    let pod_dir = dir::of(&root, &key);
    let socket = pod_dir.join(dir::SOCKET);
    let address = format!("unix://{}", socket.display());
    let answer = encode_address(&dialect, &address)?;
    if let Role::Member { .. } = role {
        if !PodLock::is_held(&pod_dir.join(dir::LOCK))? {
            return Err(Error::not_found(format!(
                "container {id}: its sandbox {sandbox} has no running shim"
            )));
        }
        write_address(&bundle_dir, &address)?;
    } else {
        let caller = Caller {
            flags,
            namespace: &namespace,
            id: &id,
            bundle: &bundle_dir,
            address: &address,
            dialect: &dialect,
            config: config.as_deref(),
        };
        start_shim(&root, &pod_dir, &socket, &caller).with_context(|| format!("start sandbox {sandbox}"))?;
    }
    Ok(answer)
}

/// What containerd has written to our stdin; empty if that is a terminal.
fn read_start_input() -> Result<Vec<u8>> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Ok(Vec::new());
    }
    let mut input = Vec::new();
    stdin.lock().take(limits::shim::START_INPUT_BYTES + 1).read_to_end(&mut input).context("read stdin")?;
    if input.len() as u64 > limits::shim::START_INPUT_BYTES {
        return Err(Error::invalid(format!("stdin: more than {} bytes", limits::shim::START_INPUT_BYTES)));
    }
    Ok(input)
}

struct Caller<'a> {
    flags: &'a Flags,
    namespace: &'a Namespace,
    id: &'a ContainerId,
    bundle: &'a Path,
    address: &'a str,
    dialect: &'a Dialect,
    /// The configuration file that the runtime options name.
    config: Option<&'a Path>,
}

fn start_shim(root: &Path, pod_dir: &Path, socket: &Path, caller: &Caller<'_>) -> Result<()> {
    if socket.as_os_str().len() > SOCKET_PATH_BYTES {
        return Err(Error::invalid(format!(
            "socket {}: longer than {SOCKET_PATH_BYTES} bytes",
            socket.display()
        )));
    }
    check_file_limit()?;
    private_dir(root)?;
    let lock = lock_pod_dir(pod_dir)?;
    let reserved = lock.reserve(&pod_dir.join(dir::LOCK));
    let cleaned = reserved.and_then(|()| clean_leftovers(pod_dir));
    // All that can fail for lack of space comes before the shim runs: one that serves and was not announced would
    // be found by no one.
    let announced = cleaned.and_then(|()| write_address(caller.bundle, caller.address));
    match announced.and_then(|()| spawn_server(socket, &lock, caller)) {
        Ok(()) => {
            lock.leave();
            Ok(())
        }
        Err(e) => {
            remove_pod_dir(pod_dir);
            Err(e)
        }
    }
}

/// CRI-O reads the address from there after it was restarted.
fn write_address(bundle_dir: &Path, address: &str) -> Result<()> {
    write_atomic(bundle_dir, "address", address.as_bytes())
}

/// Makes the pod's directory and takes its lock. An older shim of the same sandbox removes the directory a moment
/// after its response to Shutdown: we wait for that.
fn lock_pod_dir(pod_dir: &Path) -> Result<PodLock> {
    let until = Instant::now() + limits::shim::START_GRACE;
    loop {
        let taken = private_dir(pod_dir).and_then(|()| PodLock::try_take(&pod_dir.join(dir::LOCK)));
        let leaving = matches!(taken, Ok(None)) || fs::symlink_metadata(pod_dir).is_err();
        match taken {
            Ok(Some(lock)) => return Ok(lock),
            _ if leaving && Instant::now() < until => poll_pause(),
            Ok(None) => return Err(Error::already_exists("its shim is already running")),
            Err(e) => return Err(e),
        }
    }
}

/// Cleans up by the journal that a killed shim of the same sandbox may have left.
fn clean_leftovers(pod_dir: &Path) -> Result<()> {
    cleanup::run(pod_dir)?;
    for name in [dir::JOURNAL, dir::SOCKET, dir::RECORD] {
        fs::remove_file(pod_dir.join(name)).ok();
    }
    Ok(())
}

fn spawn_server(socket: &Path, lock: &PodLock, caller: &Caller<'_>) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    fs::set_permissions(socket, Permissions::from_mode(0o600)).context("set the socket's mode")?;
    let mut fds = FdTable::default();
    fds.give(listener.into());
    fds.give(lock.share()?);
    let bundle = caller.bundle.display().to_string();
    let mut args: Vec<String> = Vec::new();
    let (namespace, id) = (caller.namespace.as_str(), caller.id.as_str());
    for (flag, value) in
        [("-namespace", namespace), ("-id", id), ("-address", &caller.flags.address), ("-bundle", &bundle)]
    {
        args.extend([flag.to_owned(), value.to_owned()]);
    }
    if caller.flags.debug {
        args.push("-debug".into());
    }
    args.push(serve::ACTION.into());
    let program = fs::read_link("/proc/self/exe").context("find this program")?;
    Launch {
        program,
        args: args.into_iter().map(Into::into).collect(),
        env: environment(caller),
        fds,
        ..Launch::default()
    }
    .spawn_detached()
    .map(|_pid| ())
}

/// The variables that the server needs, and no others.
fn environment(caller: &Caller<'_>) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    let names = [
        config::ENVIRONMENT,
        dir::ENVIRONMENT,
        serve::SCHED_CORE_ENVIRONMENT,
        #[cfg(feature = "failpoints")]
        crate::failpoint::ENVIRONMENT,
        #[cfg(feature = "failpoints")]
        crate::host::facts::FAKE_ROOT_ENVIRONMENT,
    ];
    let mut kept: Vec<_> =
        names.into_iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?))).collect();
    // Of two values the later one is used.
    kept.extend(caller.config.map(|path| (config::ENVIRONMENT.into(), path.into())));
    let events = match caller.dialect {
        Dialect::Bootstrap { events } => Some(events.into()),
        Dialect::Address => std::env::var_os(serve::EVENTS_ENVIRONMENT),
    };
    kept.extend(events.filter(|e| !e.is_empty()).map(|e| (serve::EVENTS_ENVIRONMENT.into(), e)));
    kept
}

/// Runtime options (an `Any`, up to containerd 2.2) also decode as bootstrap parameters, with the type URL as the
/// id. So input counts as parameters only if it repeats the flags.
fn detect_dialect(input: &[u8], flags: &Flags) -> Result<Dialect> {
    if input.is_empty() {
        return Ok(Dialect::Address);
    }
    let Ok(params) = BootstrapParams::parse_from_bytes(input) else { return Ok(Dialect::Address) };
    if params.instance_id == flags.id && params.namespace == flags.namespace {
        return Ok(Dialect::Bootstrap { events: params.containerd_ttrpc_address });
    }
    if params.containerd_ttrpc_address.is_empty() && params.containerd_binary.is_empty() {
        return Ok(Dialect::Address);
    }
    Err(Error::invalid(format!(
        "bootstrap parameters are for {:?} in {:?}, the flags for {:?} in {:?}",
        params.instance_id, params.namespace, flags.id, flags.namespace
    )))
}

/// The configuration that the runtime options name. With the Sandbox API it is passed only here; Task.Create repeats
/// it.
fn named_config(input: &[u8], dialect: &Dialect) -> Result<Option<PathBuf>> {
    let options = match dialect {
        Dialect::Address => vec![Any::parse_from_bytes(input).unwrap_or_default()],
        Dialect::Bootstrap { .. } => {
            let params = BootstrapParams::parse_from_bytes(input).unwrap_or_default();
            params.extensions.into_iter().filter_map(|extension| extension.value.into_option()).collect()
        }
    };
    let mut named = options.iter().map(config_path).filter_map(Result::transpose);
    named.next().transpose()
}

fn encode_address(dialect: &Dialect, address: &str) -> Result<Vec<u8>> {
    match dialect {
        Dialect::Address => Ok(address.as_bytes().to_vec()),
        Dialect::Bootstrap { .. } => {
            let address = address.to_owned();
            let result =
                BootstrapResult { version: 3, address, protocol: "ttrpc".to_owned(), ..Default::default() };
            result.write_to_bytes().context("encode the response")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::Extension;
    use containerd_shim_protos::protobuf::well_known_types::any::Any;

    fn flags() -> Flags {
        Flags { id: "c1".into(), namespace: "k8s.io".into(), ..Flags::default() }
    }

    fn params(id: &str) -> Vec<u8> {
        let params = BootstrapParams {
            instance_id: id.into(),
            namespace: "k8s.io".into(),
            containerd_ttrpc_address: "/run/t".into(),
            ..Default::default()
        };
        params.write_to_bytes().expect("encode")
    }

    #[test]
    fn the_callers_dialect_is_detected_from_its_input() {
        let options = Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: vec![18, 2, 47, 97],
            ..Default::default()
        };
        let options = options.write_to_bytes().expect("encode");
        for (input, wanted) in [
            (vec![], Dialect::Address),
            (options, Dialect::Address),
            (b"\xff\xff\xff".to_vec(), Dialect::Address),
            (params("c1"), Dialect::Bootstrap { events: "/run/t".into() }),
        ] {
            assert_eq!(detect_dialect(&input, &flags()), Ok(wanted), "{input:?}");
        }
        assert!(detect_dialect(&params("other"), &flags()).is_err());
    }

    #[test]
    fn the_options_name_the_configuration_in_both_dialects() {
        let options = Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: b"\x12\x02/a".to_vec(),
            ..Default::default()
        };
        let input = options.write_to_bytes().expect("encode");
        assert_eq!(named_config(&input, &Dialect::Address), Ok(Some("/a".into())));
        assert_eq!(named_config(b"", &Dialect::Address), Ok(None));
        let mut params = BootstrapParams::default();
        for value in [Any::default(), options] {
            let value = containerd_shim_protos::protobuf::MessageField::some(value);
            params.extensions.push(Extension { value, ..Default::default() });
        }
        let input = params.write_to_bytes().expect("encode");
        let dialect = Dialect::Bootstrap { events: String::new() };
        assert_eq!(named_config(&input, &dialect), Ok(Some("/a".into())));
    }

    #[test]
    fn the_address_is_encoded_in_the_callers_dialect() {
        assert_eq!(encode_address(&Dialect::Address, "unix:///s"), Ok(b"unix:///s".to_vec()));
        let bytes =
            encode_address(&Dialect::Bootstrap { events: String::new() }, "unix:///s").expect("encode");
        let result = BootstrapResult::parse_from_bytes(&bytes).expect("decode");
        assert_eq!(
            (result.version, result.address.as_str(), result.protocol.as_str()),
            (3, "unix:///s", "ttrpc")
        );
    }
}
