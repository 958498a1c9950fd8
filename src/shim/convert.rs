//! Conversions between containerd's messages and our types.

use std::path::PathBuf;
use std::time::SystemTime;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};

use crate::error::{Code, Error, Result};
use crate::ids::{ContainerId, ExecId, ProcessId};
use crate::plan::rootfs::RootfsMount;
use crate::pod::request::Exit;
use crate::shim::messages::runtimeoptions::Options;

/// Lets the handlers of the services use `?`.
impl From<Error> for ttrpc::Error {
    fn from(e: Error) -> Self {
        let code = match e.code() {
            Code::NotFound => ttrpc::Code::NOT_FOUND,
            Code::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
            Code::FailedPrecondition => ttrpc::Code::FAILED_PRECONDITION,
            Code::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
            Code::PermissionDenied => ttrpc::Code::PERMISSION_DENIED,
            Code::ResourceExhausted => ttrpc::Code::RESOURCE_EXHAUSTED,
            Code::DeadlineExceeded => ttrpc::Code::DEADLINE_EXCEEDED,
            Code::Unavailable => ttrpc::Code::UNAVAILABLE,
            Code::Unimplemented => ttrpc::Code::UNIMPLEMENTED,
            Code::Cancelled => ttrpc::Code::CANCELLED,
            Code::Internal => ttrpc::Code::INTERNAL,
        };
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, e.to_string()))
    }
}

pub(crate) fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        ..Default::default()
    }
}

/// Exit status and time; 0 and no time while the process runs.
pub(crate) fn exited(exit: Option<Exit>) -> (u32, MessageField<Timestamp>) {
    match exit {
        Some(exit) => (exit.status, MessageField::some(timestamp(exit.at))),
        None => (0, MessageField::none()),
    }
}

/// Checks both ids; an empty `exec` is the container's init process.
pub(crate) fn process_id(id: &str, exec: &str) -> Result<ProcessId> {
    let container = ContainerId::parse(id)?;
    let exec = if exec.is_empty() { None } else { Some(ExecId::parse(exec)?) };
    Ok(ProcessId { container, exec })
}

pub(crate) fn mount(mount: &RootfsMount) -> api::Mount {
    api::Mount {
        type_: mount.fstype.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
        ..Default::default()
    }
}

/// The configuration file that `runtimeoptions.v1.Options` names; options of other runtimes name none.
pub(crate) fn config_path(options: &Any) -> Result<Option<PathBuf>> {
    if options.type_url.rsplit('/').next() != Some("runtimeoptions.v1.Options") {
        return Ok(None);
    }
    let options = Options::parse_from_bytes(&options.value)
        .map_err(|e| Error::invalid(format!("runtime options: {e}")))?;
    Ok(Some(options.config_path).filter(|path| !path.is_empty()).map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(type_url: &str, value: &[u8]) -> Any {
        Any { type_url: type_url.into(), value: value.to_vec(), ..Default::default() }
    }

    #[test]
    fn the_configuration_is_named_by_runtime_options() {
        let value = b"\x0a\x03abc\x12\x06/a/b.c\x1a\x02hi";
        for url in ["runtimeoptions.v1.Options", "type.googleapis.com/runtimeoptions.v1.Options"] {
            assert_eq!(config_path(&options(url, value)), Ok(Some("/a/b.c".into())));
        }
        assert_eq!(config_path(&options("containerd.runc.v1.Options", value)), Ok(None));
        assert_eq!(config_path(&options("runtimeoptions.v1.Options", b"")), Ok(None));
        assert!(config_path(&options("runtimeoptions.v1.Options", b"\x12\xff\xff\xff\xff\xff")).is_err());
    }

    #[test]
    fn hostile_ids_are_refused() {
        for (id, exec) in [("../x", ""), ("c1", "a/b"), ("", ""), ("c1\n", "")] {
            assert_eq!(process_id(id, exec).expect_err(id).code(), Code::InvalidArgument);
        }
    }
}
