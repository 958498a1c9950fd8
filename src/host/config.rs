//! Finds and reads the configuration: the file and its drop-ins.

use std::path::{Path, PathBuf};

use crate::config::{Config, file};
use crate::error::{Code, Context, Error, Result};
use crate::host::files::read_bounded;
use crate::limits;

/// Where the file is looked for when neither the runtime option `ConfigPath` nor the environment names one.
const PLACES: [&str; 2] = ["/etc/kata-se/config.toml", "/usr/share/kata-se/config.toml"];

/// Names the file when neither containerd nor CRI-O does.
pub(crate) const ENVIRONMENT: &str = "KATA_SE_CONFIG";

/// Loads the configuration. A named file must exist; without any file the defaults are used.
pub fn load(option: Option<&Path>) -> Result<Config> {
    let named = option.map(Path::to_path_buf).or_else(|| std::env::var_os(ENVIRONMENT).map(PathBuf::from));
    let main = match named {
        Some(path) => Some(read(&path).with_context(|| format!("configuration {}", path.display()))?),
        None => first_there()?,
    };
    let Some((path, text)) = main else { return file::parse(&[]) };
    let folder = path.parent().map(|parent| parent.join("config.d")).unwrap_or_default();
    let mut files = vec![(path, text)];
    for drop_in in drop_ins(&folder)? {
        files.push(read(&drop_in).with_context(|| format!("configuration {}", drop_in.display()))?);
    }
    let config = file::parse(&files)?;
    Ok(Config { files: files.into_iter().map(|(path, _)| path).collect(), ..config })
}

fn first_there() -> Result<Option<(PathBuf, String)>> {
    for place in PLACES.map(Path::new) {
        match read(place) {
            Ok(found) => return Ok(Some(found)),
            Err(e) if e.code() == Code::NotFound => {}
            Err(e) => return Err(e.context("configuration")),
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<(PathBuf, String)> {
    let bytes = read_bounded(path, limits::host::CONFIG_BYTES)?;
    let text = String::from_utf8(bytes)
        .map_err(|e| Error::invalid(format!("{}: not UTF-8 text: {e}", path.display())))?;
    Ok((path.to_path_buf(), text))
}

/// The `*.toml` files of the folder, by name.
fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("configuration {}", folder.display());
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(context),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(context)?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::FILES;

    #[test]
    fn the_documentation_names_the_places() {
        let text = FILES.concat();
        for place in PLACES.iter().chain([&ENVIRONMENT, &"config.d/*.toml"]) {
            assert!(text.contains(place), "{place}");
        }
    }

    #[test]
    fn drop_ins_are_read_in_order_and_a_named_file_must_exist() {
        let dir = tempfile::tempdir().expect("dir");
        let main = dir.path().join("config.toml");
        std::fs::create_dir(dir.path().join("config.d")).expect("mkdir");
        for (name, text) in [
            ("config.toml", "[guest]\nvcpus = 2\nmemory_mib = 512"),
            ("config.d/20.toml", "[guest]\nvcpus = 4"),
            ("config.d/10.toml", "[guest]\nvcpus = 3"),
            ("config.d/readme", "not read"),
        ] {
            std::fs::write(dir.path().join(name), text).expect("write");
        }
        let config = load(Some(&main)).expect("load");
        assert_eq!((config.vcpus, config.memory_mib), (4, 512));
        let wanted =
            ["config.toml", "config.d/10.toml", "config.d/20.toml"].map(|name| dir.path().join(name));
        assert_eq!(config.files, wanted);
        let e = load(Some(Path::new("/nonexistent/c.toml"))).expect_err("missing");
        assert!(
            e.to_string().starts_with("configuration /nonexistent/c.toml: read /nonexistent/c.toml: No such")
        );
    }
}
