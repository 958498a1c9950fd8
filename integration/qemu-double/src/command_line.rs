//! The words of QEMU's command line, for those that stand in for it.

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

/// Each option with its value; an error has QEMU's own words for what it does not take.
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
