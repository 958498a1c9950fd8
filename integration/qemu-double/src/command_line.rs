//! QEMU's command line, split into options, for the programs that replace QEMU in tests.

/// Options with a value, and without.
const WITH: [&str; 20] = [
    "-name",
    "-display",
    "-object",
    "-machine",
    "-cpu",
    "-m",
    "-smp",
    "-kernel",
    "-initrd",
    "-append",
    "-chardev",
    "-mon",
    "-device",
    "-netdev",
    "-add-fd",
    "-blockdev",
    "-action",
    "-sandbox",
    "-vga",
    "-rtc",
];
const WITHOUT: [&str; 5] = ["-nodefaults", "-no-user-config", "-no-reboot", "-nographic", "-S"];

/// Each option with its value; errors have QEMU's wording.
pub fn split(words: &[String]) -> Result<Vec<(String, Option<String>)>, String> {
    let mut all = Vec::new();
    let mut words = words.iter();
    while let Some(name) = words.next() {
        let value = if WITHOUT.contains(&name.as_str()) {
            None
        } else if WITH.contains(&name.as_str()) {
            Some(words.next().ok_or_else(|| format!("{name}: requires an argument"))?.clone())
        } else {
            return Err(format!("{name}: invalid option"));
        };
        all.push((name.clone(), value));
    }
    Ok(all)
}
