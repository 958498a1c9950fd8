//! Files put into a sealed image: a further cpio archive behind the initrd, which the kernel unpacks
//! over the first one.

use crate::Result;

/// A file of the guest: its path without the leading `/`, and its content.
#[derive(Clone, Debug)]
pub struct Embedded {
    pub path: String,
    pub content: Vec<u8>,
}

/// Appends an archive (format "newc") with the files, their directories before them; mode 0600, root.
pub fn append(initrd: &mut Vec<u8>, files: &[Embedded]) -> Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    pad(initrd);
    let mut made = std::collections::BTreeSet::new();
    for file in files {
        let path = file.path.trim_start_matches('/');
        if path.is_empty() || path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(format!("embedded file {:?}: its path must be whole, without . and ..", file.path));
        }
        for (slash, _) in path.match_indices('/') {
            let directory = &path[..slash];
            if made.insert(directory.to_owned()) {
                entry(initrd, directory, 0o040_700, &[])?;
            }
        }
        entry(initrd, path, 0o100_600, &file.content)?;
    }
    entry(initrd, "TRAILER!!!", 0, &[])?;
    pad(initrd);
    Ok(())
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) -> Result<()> {
    let size = u32::try_from(content.len()).map_err(|e| format!("{name}: larger than 4 GiB: {e}"))?;
    let name_size = u32::try_from(name.len() + 1).map_err(|e| format!("{name}: too long: {e}"))?;
    // ino, mode, uid, gid, links, mtime, size, device and rdev (major, minor), name's size, check
    let numbers = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    archive.extend(b"070701");
    for number in numbers {
        archive.extend(format!("{number:08x}").bytes());
    }
    archive.extend(name.bytes().chain([0]));
    pad(archive);
    archive.extend(content);
    pad(archive);
    Ok(())
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> Embedded {
        Embedded { path: path.into(), content: b"secret".to_vec() }
    }

    #[test]
    fn files_come_behind_their_directories() {
        let mut initrd = b"first".to_vec();
        append(&mut initrd, &[file("/etc/keys/a"), file("etc/keys/b")]).expect("append");
        let text = String::from_utf8_lossy(&initrd);
        let at = |name: &str| text.find(name).unwrap_or_else(|| panic!("{name}"));
        assert!(text.starts_with("first\0\0\0") && text[8..].starts_with("070701"));
        assert!(at("etc\0") < at("etc/keys\0") && at("etc/keys\0") < at("etc/keys/a\0"));
        assert!(at("etc/keys/b\0") < at("TRAILER!!!\0"));
        assert_eq!(text.matches("secret").count(), 2);
        assert_eq!(text.matches("etc/keys\0").count(), 1);
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused() {
        for path in ["", "/", "../a", "a/../b", "a//b"] {
            append(&mut Vec::new(), &[file(path)]).expect_err(path);
        }
    }
}
