//! Seals a kernel, an initrd and a command line for machines. See README.md.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use softuv::arguments::Arguments;
use softuv::damage::Damage;
use softuv::header::{self, flag};
use softuv::initrd::{self, Embedded};
use softuv::seal::{Options, Parts, seal};
use softuv::secrets::{self, Secrets};
use softuv::{Result, document, kernel, keys, read_file, report, write_file};

const USAGE: &str = "seal-image --loaders DIR --kernel FILE --host-key FILE... --out FILE

  --loaders DIR          with stage3a.bin and stage3b_reloc.bin
  --kernel FILE          a raw kernel for s390x
  --initrd FILE
  --command-line TEXT    or --command-line-file FILE
  --embed FILE:PATH      a file of the guest, put behind the initrd; more than once
  --host-key FILE        host key document or public key, PEM or DER; more than once
  --wrong-key            a key slot for a machine that does not exist
  --dump-allowed         the guest may be dumped
  --no-encryption        components are signed, not encrypted
  --flag BIT             sets a plaintext control flag; more than once
  --secret-flag BIT      sets a secret control flag; more than once
  --seed TEXT            reproducible keys, for tests only: they are no secret
  --damage KIND          tag slots page content addresses tweaks pages version customer-key
                         header-size encrypted-size no-slots
  --out FILE             replaced atomically";

fn main() -> ExitCode {
    report("seal-image", run())
}

#[derive(Default)]
struct Order {
    loaders: PathBuf,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    command_line: Vec<u8>,
    embedded: Vec<Embedded>,
    documents: Vec<PathBuf>,
    wrong_key: bool,
    flags: u64,
    secret_flags: u64,
    seed: Option<String>,
    damage: Option<Damage>,
    out: PathBuf,
}

fn run() -> Result<()> {
    let Some(order) = order(Arguments::of_process()?)? else { return help() };
    let mut hosts =
        order.documents.iter().map(|path| document::host_key(path)).collect::<Result<Vec<_>>>()?;
    if order.wrong_key {
        let number = secrets::take::<64>(order.seed.as_deref(), "wrong key")?;
        hosts.push(keys::private(&number)?.public_key());
    }
    if hosts.is_empty() {
        return Err("no --host-key: no machine could start this image".into());
    }
    let mut ramdisk = order.initrd.as_deref().map(read_file).transpose()?;
    if !order.embedded.is_empty() {
        initrd::append(ramdisk.get_or_insert_default(), &order.embedded)?;
    }
    let parts = Parts {
        kernel: read_file(&order.kernel)?,
        ramdisk,
        command_line: order.command_line,
        stage3a: read_file(&order.loaders.join("stage3a.bin"))?,
        stage3b: read_file(&order.loaders.join("stage3b_reloc.bin"))?,
    };
    kernel::check(&parts.kernel, &[&parts.command_line[..], &[0]].concat())?;
    let mut options = Options::new(hosts);
    options.flags |= order.flags;
    options.secret_flags = order.secret_flags;
    options.damage = order.damage;
    let image = seal(&parts, &options, &Secrets::new(order.seed.as_deref())?)?;
    replace(&order.out, &image)
}

/// None: `--help`.
fn order(mut words: Arguments) -> Result<Option<Order>> {
    let mut order = Order::default();
    while let Some(name) = words.next_name() {
        match name.as_str() {
            "--help" => return Ok(None),
            "--loaders" => order.loaders = words.path(&name)?,
            "--kernel" => order.kernel = words.path(&name)?,
            "--initrd" => order.initrd = Some(words.path(&name)?),
            "--command-line" => order.command_line = words.value(&name)?.into_bytes(),
            "--command-line-file" => {
                order.command_line = read_file(&words.path(&name)?)?.trim_ascii_end().to_vec()
            }
            "--embed" => order.embedded.push(embedded(&words.value(&name)?)?),
            "--host-key" => order.documents.push(words.path(&name)?),
            "--wrong-key" => order.wrong_key = true,
            "--dump-allowed" => order.flags |= flag(header::DUMP_ALLOWED),
            "--no-encryption" => order.flags |= flag(header::NO_COMPONENT_ENCRYPTION),
            "--flag" => order.flags |= flag(words.bit(&name)?),
            "--secret-flag" => order.secret_flags |= flag(words.bit(&name)?),
            "--seed" => order.seed = Some(words.value(&name)?),
            "--damage" => order.damage = Some(Damage::named(&words.value(&name)?)?),
            "--out" => order.out = words.path(&name)?,
            other => return Err(format!("{other}: unknown option (--help names them)")),
        }
    }
    for (name, path) in [("--loaders", &order.loaders), ("--kernel", &order.kernel), ("--out", &order.out)] {
        if path.as_os_str().is_empty() {
            return Err(format!("{name} is missing"));
        }
    }
    Ok(Some(order))
}

fn embedded(text: &str) -> Result<Embedded> {
    let (file, path) = text.split_once(':').ok_or_else(|| format!("--embed {text}: must be FILE:PATH"))?;
    Ok(Embedded { path: path.to_owned(), content: read_file(Path::new(file))? })
}

/// A pod that has the old file open keeps it unchanged.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    write_file(Path::new(&name), bytes)?;
    std::fs::rename(&name, path).map_err(|e| format!("rename to {}: {e}", path.display()))
}

fn help() -> Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{USAGE}").map_err(|e| e.to_string())
}
