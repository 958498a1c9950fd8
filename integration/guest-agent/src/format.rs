//! What a disk's storage asks for before it is mounted: encryption with a key that nobody keeps, a new file system;
//! and after: an owner. Programs and options are those of real guests.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::boot;
use crate::failure::{Result, Trying, internal};
use crate::messages::agent::Storage;
use crate::reaper::Reaper;

pub(crate) const CREATE: &str = "create_filesystem";
pub(crate) const ENCRYPT: &str = "encryption_key=ephemeral";

/// What programs print, a file each.
const SAID: &str = "/run/said";
static RUNS: AtomicU32 = AtomicU32::new(0);

/// Of the file system, and of what is encrypted at once.
const BLOCK: usize = 4096;

/// The file of a header that is not on the disk: sparse, in memory.
const HEADER_BYTES: u64 = 16 << 20;

/// Makes the disk ready in a guest and returns what is to be mounted.
pub(crate) async fn prepare(reaper: &Reaper, s: &Storage, disk: PathBuf) -> Result<PathBuf> {
    let has = |option: &str| s.driver_options.iter().any(|given| given == option);
    let disk = if has(ENCRYPT) { encrypt(reaper, &disk).await? } else { disk };
    if has(CREATE) {
        boot::load_modules("ext4"); // what mkfs leaves to the kernel depends on it
        if has(ENCRYPT) {
            wipe(reaper, &disk).await?;
        }
        run(reaper, mkfs(&disk).arg("-q")).await?;
    }
    Ok(disk)
}

fn mkfs(disk: &Path) -> Command {
    let mut command = Command::new("mkfs.ext4");
    command.args(["-F", "-O", "^has_journal", "-m", "0", "-i", "163840", "-I", "128"]).arg(disk);
    command
}

/// mkfs changes parts of blocks, and what was never written cannot be read where each block has its sum: the blocks
/// of superblocks are written before, as a try that writes nothing lists them.
async fn wipe(reaper: &Reaper, disk: &Path) -> Result<()> {
    let listed = run(reaper, mkfs(disk).arg("-n")).await?;
    let file = OpenOptions::new().write(true).open(disk).trying(disk.display())?;
    let blocks = (&file).seek(SeekFrom::End(0)).trying(disk.display())? / BLOCK as u64;
    let mut wiped = vec![0, blocks.saturating_sub(1)];
    wiped.extend(superblocks(&listed));
    for block in wiped {
        file.write_all_at(&[0; BLOCK], block * BLOCK as u64).trying(format!("block {block}"))?;
    }
    file.sync_all().trying(disk.display())
}

/// The numbers behind the words of mke2fs.
fn superblocks(listed: &str) -> Vec<u64> {
    let numbers =
        listed.split_once("Superblock backups stored on blocks:").map_or("", |(_, numbers)| numbers);
    numbers.split([',', ' ', '\t', '\n']).filter_map(|number| number.parse().ok()).collect()
}

/// Each sector has its sum; a header in memory and a key that is forgotten with it.
async fn encrypt(reaper: &Reaper, disk: &Path) -> Result<PathBuf> {
    boot::load_modules("crypt");
    let name = disk.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = Path::new("/run/encrypted").join(&name);
    fs::create_dir_all(&folder).trying(folder.display())?;
    let (header, key) = (folder.join("header"), folder.join("key"));
    File::create(&header).and_then(|file| file.set_len(HEADER_BYTES)).trying(header.display())?;
    let mut bytes = [0; 64];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).trying("a key")?;
    fs::write(&key, bytes).trying(key.display())?;
    let common = |action: &str| {
        let mut command = Command::new("cryptsetup");
        command.args(["--batch-mode", "--disable-locks", "--type", "luks2", "--key-file"]).arg(&key);
        command.arg("--header").arg(&header).arg(action).arg(disk);
        command
    };
    let mut format = common("luksFormat");
    format.args(["--cipher", "aes-xts-plain64", "--sector-size", "4096", "--integrity", "hmac-sha256"]);
    format.args(["--integrity-no-wipe", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
    let mut made = run(reaper, &mut format).await;
    if made.is_ok() {
        made = run(reaper, common("open").arg(&name).arg("--integrity-no-journal")).await;
    }
    fs::remove_file(&key).ok();
    made.map(|_| Path::new("/dev/mapper").join(name))
}

/// What a program prints, once it has succeeded.
async fn run(reaper: &Reaper, command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let said = Path::new(SAID).join(RUNS.fetch_add(1, Ordering::Relaxed).to_string());
    fs::create_dir_all(SAID).trying(SAID)?;
    let file = File::create(&said).trying(said.display())?;
    let copy = file.try_clone().trying(said.display())?;
    let since = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(file).stderr(copy).spawn().trying(&program)?;
    let status = reaper.watch(i32::try_from(child.id()).unwrap_or_default(), since).wait().await;
    let text = fs::read(&said).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    fs::remove_file(&said).ok();
    if status == 0 { Ok(text) } else { Err(internal(format!("{program}: status {status}: {}", text.trim()))) }
}

/// Gives everything to a group, and what is made in it later.
pub(crate) fn own(target: &Path, group: u32) -> std::io::Result<()> {
    let meta = fs::symlink_metadata(target)?;
    chown(target, None, Some(group))?;
    if !meta.is_dir() {
        let mode = meta.mode() & 0o7777 | 0o660;
        return fs::set_permissions(target, fs::Permissions::from_mode(mode));
    }
    fs::set_permissions(target, fs::Permissions::from_mode(meta.mode() & 0o7777 | 0o2770))?;
    for entry in fs::read_dir(target)?.flatten().filter(|entry| !entry.path().is_symlink()) {
        own(&entry.path(), group)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn superblocks_are_found_in_what_mke2fs_says() {
        let said =
            "Filesystem UUID: 1\nSuperblock backups stored on blocks: \n\t32768, 98304, \n\t163840\n\n";
        assert_eq!(superblocks(said), [32768, 98304, 163840]);
        assert!(superblocks("a small one").is_empty());
    }

    #[test]
    fn a_group_owns_all_that_is_there_and_what_comes() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        fs::write(dir.path().join("folder/file"), "").unwrap();
        let group = fs::metadata(dir.path()).unwrap().gid();
        own(dir.path(), group).unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
        assert_eq!(
            (mode("") & 0o2770, mode("folder") & 0o2770, mode("folder/file") & 0o660),
            (0o2770, 0o2770, 0o660)
        );
    }
}
