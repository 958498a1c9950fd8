//! The error type: a code for the caller and one line for a person.
//!
//! The message says what failed, with which value, why, and what to do; context is prepended,
//! outermost first, and nothing is repeated. `shim` turns the code into a ttrpc status.

use std::fmt;

/// What kind of error it is for the caller; the names are those of the gRPC status codes of containerd.
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

/// An error with its code and its complete message (context first, cause last, one line).
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    code: Code,
    message: String,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Makes an error. Control characters in the text are escaped, so that foreign text cannot forge a
    /// line of a log.
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

    /// The same message with another code.
    #[must_use]
    pub fn with_code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// Prepends what was being done.
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

/// Prepends context to an error of this program or of a library.
///
/// `Error` does not implement `std::error::Error`, so that this trait can be implemented for both.
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

/// Resource exhaustion has its own code; every other error of a library is an internal one.
fn code_of(e: &(dyn std::error::Error + 'static)) -> Code {
    use std::io::ErrorKind::{OutOfMemory, QuotaExceeded, StorageFull};
    match e.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        Some(StorageFull | QuotaExceeded | OutOfMemory) => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

/// Escapes control characters, and those that change the direction or the width of text, and trims white space:
/// the result is one printable line that reads as it is.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.trim().chars() {
        if c.is_control() || is_invisible(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// The beginning of a text: at most this many bytes, and whole characters.
pub(crate) fn first_bytes(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Format characters of Unicode: directions, joiners, marks without width, line and paragraph separators,
/// fillers, tags, and variants of a character.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_would_be_shown_otherwise_is_escaped() {
        assert_eq!(one_line(" a\u{202e}b\nc\u{200b} "), "a\\u{202e}b\\nc\\u{200b}");
        for c in "\u{9b}\u{ad}\u{61c}\u{2029}\u{202a}\u{2066}\u{2069}\u{3164}\u{feff}\u{e0041}".chars() {
            assert_eq!(one_line(&format!("a{c}b")), format!("a\\u{{{:x}}}b", u32::from(c)));
        }
        assert_eq!(one_line("Zürich 東京 – “so”"), "Zürich 東京 – “so”");
    }

    #[test]
    fn the_beginning_of_a_text_has_whole_characters() {
        for (most, wanted) in [(0, ""), (1, "Z"), (2, "Z"), (3, "Zü"), (99, "Zürich")] {
            assert_eq!(first_bytes("Zürich", most), wanted);
        }
    }

    #[test]
    fn context_is_prepended_and_the_code_is_kept() {
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
