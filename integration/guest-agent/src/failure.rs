//! Errors as the real agent returns them: which situation has which code.

use std::fmt::Display;

use ttrpc::{Code, Error, get_status};

pub(crate) type Result<T> = std::result::Result<T, Error>;

fn with(code: Code, text: impl Into<String>) -> Error {
    Error::RpcStatus(get_status(code, text.into()))
}

/// Whatever fails inside the agent.
pub(crate) fn internal(text: impl Into<String>) -> Error {
    with(Code::INTERNAL, text)
}

pub(crate) fn invalid(text: impl Into<String>) -> Error {
    with(Code::INVALID_ARGUMENT, text)
}

/// What a policy does not allow.
pub(crate) fn denied(text: impl Into<String>) -> Error {
    with(Code::PERMISSION_DENIED, text)
}

/// A process that is not known (any more).
pub(crate) fn no_process() -> Error {
    with(Code::NOT_FOUND, "InvalidExecId")
}

pub(crate) fn no_terminal() -> Error {
    with(Code::UNAVAILABLE, "no tty")
}

/// The text of an error, for the console.
pub(crate) fn text(e: &Error) -> String {
    match e {
        Error::RpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    }
}

/// Adds what was tried to an error of the system.
pub(crate) trait Trying<T> {
    fn trying(self, what: impl Display) -> Result<T>;
}

impl<T, E: Display> Trying<T> for std::result::Result<T, E> {
    fn trying(self, what: impl Display) -> Result<T> {
        self.map_err(|e| internal(format!("{what}: {e}")))
    }
}
