//! Secure Execution without a Z machine, for development only: seals images, and emulates
//! the ultravisor that unpacks them. See README.md.
//!
//! Nothing here is shared with the product's reader (`kata_se::test_api::image`): both follow the format's
//! description, and the tests compare them.

// Separate programs: the product's rules for children and exits do not apply.
#![allow(clippy::disallowed_methods)]

pub mod arguments;
pub mod certificates;
pub mod damage;
pub mod document;
pub mod header;
pub mod initrd;
pub mod kernel;
pub mod keys;
pub mod machine;
pub mod page;
pub mod refusal;
pub mod seal;
pub mod secrets;
pub mod unpack;

/// What failed, as one line.
pub type Result<T> = std::result::Result<T, String>;

/// Ends a failed command with a line on stderr.
pub fn report(program: &str, result: Result<()>) -> std::process::ExitCode {
    use std::io::Write;
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(text) => {
            drop(std::io::stderr().write_all(format!("{program}: {text}\n").as_bytes()));
            std::process::ExitCode::FAILURE
        }
    }
}

/// Reads a file whole.
pub fn read_file(path: &std::path::Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| format!("read {}: {e}", path.display()))
}

/// Writes a file whole.
pub fn write_file(path: &std::path::Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|e| format!("write {}: {e}", path.display()))
}
