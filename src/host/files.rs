//! Files of the host: read with a bound; and our own: private directories, atomic writes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

use crate::error::{Code, Context, Error, Result};

/// Reads a whole regular file of at most `max` bytes.
pub(crate) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>> {
    let context = || format!("read {}", path.display());
    // O_NONBLOCK: a fifo in the file's place must not block us.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(|e| open_error(context(), &e))?;
    let meta = file.metadata().with_context(context)?;
    if !meta.is_file() {
        return Err(Error::invalid(format!("read {}: not a regular file", path.display())));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len().min(max)).unwrap_or(0));
    file.take(max + 1).read_to_end(&mut bytes).with_context(context)?;
    if bytes.len() as u64 > max {
        return Err(Error::invalid(format!("read {}: larger than {max} bytes", path.display())));
    }
    Ok(bytes)
}

/// The error of opening a file: that it does not exist keeps its code.
pub(super) fn open_error(doing: impl std::fmt::Display, e: &std::io::Error) -> Error {
    let code = if e.kind() == ErrorKind::NotFound { Code::NotFound } else { Code::Internal };
    Error::new(code, format!("{doing}: {e}"))
}

/// The first place on the path of a file at which others than root and we could change it, or put another
/// file there.
pub(super) fn changeable_by_others(path: &Path) -> Option<String> {
    let real = fs::canonicalize(path).ok()?;
    let own = nix::unistd::geteuid().as_raw();
    path.ancestors().chain(real.ancestors()).find_map(|place| {
        let meta = fs::metadata(place).ok()?;
        // Where the sticky bit is, nobody can replace what belongs to another (chmod(2)).
        let is_shared = meta.mode() & 0o022 != 0 && !(meta.is_dir() && meta.mode() & libc::S_ISVTX != 0);
        let is_foreign = ![0, own].contains(&meta.uid());
        let text = || format!("{} (uid {}, mode {:04o})", place.display(), meta.uid(), meta.mode() & 0o7777);
        (is_foreign || is_shared).then(text)
    })
}

/// Creates a directory and those above it that are missing, each with this mode (less what the umask takes
/// away).
pub(crate) fn make_dirs(path: &Path, mode: u32) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.with_context(|| format!("make directory {}", path.display()))
}

/// Creates a directory for our user only (0700), or checks that an existing one is.
pub(crate) fn private_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => check_private(path),
        made => made.with_context(|| format!("make directory {}", path.display())),
    }
}

/// Whether this is a directory for our user only; a missing one is an error with the code for it.
pub(crate) fn check_private(path: &Path) -> Result<()> {
    let place = path.display();
    let meta = fs::symlink_metadata(path).map_err(|e| open_error(format!("directory {place}"), &e))?;
    let own = nix::unistd::geteuid().as_raw();
    let (found, advice) = if !meta.is_dir() {
        ("no directory".to_owned(), "remove it".to_owned())
    } else if meta.uid() != own {
        (format!("of uid {}, not of uid {own}", meta.uid()), format!("chown {own} {place}"))
    } else if meta.mode() & 0o077 != 0 {
        (format!("open to others, mode {:04o}", meta.mode() & 0o7777), format!("chmod 700 {place}"))
    } else {
        return Ok(());
    };
    Err(Error::new(
        Code::PermissionDenied,
        format!("{place}: is {found}; what is kept there is for one user: {advice}"),
    ))
}

/// Creates or replaces a file atomically, mode 0600.
pub(crate) fn write_atomic(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let context = || format!("write {}/{name}", dir.display());
    let temporary = dir.join(format!(".{name}.new"));
    fs::remove_file(&temporary).ok(); // of a process that was killed
    let result = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut f| f.write_all(bytes))
        .and_then(|()| fs::rename(&temporary, dir.join(name)));
    if result.is_err() {
        fs::remove_file(&temporary).ok();
    }
    result.with_context(context)
}

/// Replaces the content of a regular file that exists; no link is followed as the last part of its path.
pub(crate) fn overwrite(path: &Path, bytes: &[u8]) -> Result<()> {
    let context = || format!("write {}", path.display());
    // O_NONBLOCK: a fifo in the file's place must not block us.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
    let mut file = OpenOptions::new().write(true).custom_flags(flags).open(path).with_context(context)?;
    if !file.metadata().with_context(context)?.is_file() {
        return Err(Error::invalid(format!("{}: not a regular file", context())));
    }
    file.set_len(0).and_then(|()| file.write_all(bytes)).with_context(context)
}

/// An unguessable number, for names.
pub(crate) fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).context("read /dev/urandom")?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Creates an empty file as a mark, mode 0600; an existing one is success.
pub(crate) fn mark(path: &Path) -> Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            Err(e).with_context(|| format!("write {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_bounded_and_takes_regular_files_only() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("f");
        fs::write(&path, b"12345").expect("write");
        assert_eq!(read_bounded(&path, 5), Ok(b"12345".to_vec()));
        assert!(read_bounded(&path, 4).expect_err("large").to_string().ends_with("larger than 4 bytes"));
        assert!(read_bounded(dir.path(), 4).expect_err("dir").to_string().ends_with("not a regular file"));
        assert_eq!(read_bounded(&dir.path().join("x"), 4).expect_err("none").code(), Code::NotFound);
    }

    #[test]
    fn a_private_directory_that_is_none_is_refused_with_what_to_do() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("p");
        assert_eq!(check_private(&path).expect_err("none").code(), Code::NotFound);
        private_dir(&path).expect("new");
        private_dir(&path).expect("again");
        let refused = |wanted: &str| {
            let e = private_dir(&path).expect_err(wanted);
            assert_eq!(e.code(), Code::PermissionDenied);
            let place = path.display().to_string();
            assert_eq!(e.message(), wanted.replace("DIR", &place));
        };
        // A mount point cannot be removed.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        refused("DIR: is open to others, mode 0755; what is kept there is for one user: chmod 700 DIR");
        std::os::unix::fs::chown(&path, Some(1), None).expect("chown");
        refused("DIR: is of uid 1, not of uid 0; what is kept there is for one user: chown 0 DIR");
        fs::remove_dir(&path).expect("remove");
        fs::write(&path, "").expect("write");
        refused("DIR: is no directory; what is kept there is for one user: remove it");
    }

    #[test]
    fn a_file_that_others_could_change_or_replace_is_told_from_one_that_only_root_can() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("dir");
        let (folder, file) = (dir.path().join("d"), dir.path().join("d/f"));
        make_dirs(&folder, 0o755).expect("folder");
        fs::write(&file, "").expect("write");
        let found = |of_folder: u32, of_file: u32, path: &Path| {
            fs::set_permissions(&folder, fs::Permissions::from_mode(of_folder)).expect("chmod");
            fs::set_permissions(&file, fs::Permissions::from_mode(of_file)).expect("chmod");
            changeable_by_others(path)
        };
        assert_eq!(found(0o755, 0o644, &file), None);
        assert_eq!(found(0o1777, 0o600, &file), None, "sticky");
        assert_eq!(changeable_by_others(&dir.path().join("none")), None);
        for (of_folder, of_file, name, mode) in
            [(0o755, 0o664, "d/f", "0664"), (0o755, 0o646, "d/f", "0646"), (0o775, 0o644, "d", "0775")]
        {
            let text = found(of_folder, of_file, &file).expect(name);
            let wanted = format!("{} (uid ", dir.path().join(name).display());
            assert!(text.starts_with(&wanted) && text.ends_with(&format!(", mode {mode})")), "{text}");
        }
        // Behind a link, and on the way to it.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).expect("link");
        assert!(found(0o775, 0o644, &link).is_some());
        assert_eq!(found(0o755, 0o644, &link), None);
    }

    #[test]
    fn only_a_regular_file_that_is_there_is_overwritten() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("f"), "longer before").expect("write");
        overwrite(&at("f"), b"new").expect("overwrite");
        assert_eq!(fs::read(at("f")).expect("read"), b"new");
        std::os::unix::fs::symlink(at("f"), at("link")).expect("link");
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        let _reader = OpenOptions::new().read(true).write(true).open(at("fifo")).expect("fifo");
        for (name, why) in [
            ("link", "Too many levels of symbolic links"),
            ("fifo", "not a regular file"),
            ("none", "No such file"),
            ("", "Is a directory"),
        ] {
            let e = overwrite(&at(name), b"bad").expect_err(name);
            assert!(e.to_string().contains(why), "{e}");
        }
        assert_eq!(fs::read(at("f")).expect("read"), b"new");
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().expect("dir");
        for text in ["one", "two"] {
            write_atomic(dir.path(), "f", text.as_bytes()).expect("write");
            assert_eq!(fs::read_to_string(dir.path().join("f")).expect("read"), text);
        }
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }
}
