//! The one error type: a code the caller acts on and one line a person reads.
//!
//! The message says what failed, with which value, why, and what to do; context is put in front
//! of it, outermost first, and nothing is repeated. `shim` turns the code into a ttrpc status.

use std::fmt;

/// What a caller does about an error; the names are those of the gRPC status codes containerd uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    DeadlineExceeded,
    Unavailable,
    Unimplemented,
    Cancelled,
    Internal,
}

/// An error with its code and its full text (context first, cause last, one line).
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    code: Code,
    message: String,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Makes an error; control characters of the text are escaped, so that no foreign text can
    /// forge a line of a log.
    pub fn new(code: Code, message: impl AsRef<str>) -> Self {
        Self { code, message: one_line(message.as_ref()) }
    }

    pub fn not_found(message: impl AsRef<str>) -> Self {
        Self::new(Code::NotFound, message)
    }

    pub fn already_exists(message: impl AsRef<str>) -> Self {
        Self::new(Code::AlreadyExists, message)
    }

    pub fn precondition(message: impl AsRef<str>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    pub fn invalid(message: impl AsRef<str>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub fn unimplemented(message: impl AsRef<str>) -> Self {
        Self::new(Code::Unimplemented, message)
    }

    pub fn unavailable(message: impl AsRef<str>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    pub fn deadline(message: impl AsRef<str>) -> Self {
        Self::new(Code::DeadlineExceeded, message)
    }

    pub fn internal(message: impl AsRef<str>) -> Self {
        Self::new(Code::Internal, message)
    }

    pub fn code(&self) -> Code {
        self.code
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same text under another code.
    #[must_use]
    pub fn with_code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// Puts what was being done in front of the text.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = one_line(&format!("{doing}: {}", self.message));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

/// Puts context in front of a failure, of ours or of somebody else's.
///
/// `Error` itself is no `std::error::Error`, so that both cases can have this one name.
pub(crate) trait Context<T> {
    fn context(self, doing: impl fmt::Display) -> Result<T>;
    fn with_context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.context(doing))
    }

    fn with_context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| e.context(doing()))
    }
}

impl<T, E: std::error::Error + 'static> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.with_context(|| doing)
    }

    fn with_context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| Error::new(code_of(&e), format!("{}: {e}", doing())))
    }
}

/// Resource exhaustion keeps its meaning; every other foreign failure is ours to explain.
fn code_of(e: &(dyn std::error::Error + 'static)) -> Code {
    use std::io::ErrorKind::{OutOfMemory, QuotaExceeded, StorageFull};
    match e.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        Some(StorageFull | QuotaExceeded | OutOfMemory) => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

/// Escapes control characters and trims the ends: the result is one printable line.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.trim().chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_stands_in_front_and_keeps_the_code() {
        let e = Err::<(), _>(Error::not_found("container \"a\": no such container"))
            .context("kill")
            .expect_err("stays an error");
        assert_eq!(e.code(), Code::NotFound);
        assert_eq!(e.to_string(), "kill: container \"a\": no such container");
    }

    #[test]
    fn a_full_disk_is_resource_exhaustion() {
        let full = std::io::Error::from_raw_os_error(nix::libc::ENOSPC);
        let e = Err::<(), _>(full).context("write /x").expect_err("stays an error");
        assert_eq!(e.code(), Code::ResourceExhausted);
        assert_eq!(e.to_string(), "write /x: No space left on device (os error 28)");
    }

    #[test]
    fn foreign_text_cannot_make_a_second_line() {
        assert_eq!(Error::internal("a\nb\x1b[31m\0").to_string(), "a\\nb\\u{1b}[31m\\u{0}");
    }
}
