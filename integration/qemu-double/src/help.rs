//! What QEMU answers when it is asked what it is: the wording is QEMU 10's, as far as anyone reads it.

/// The answer to these arguments; None: they start a guest.
pub fn answer(args: &[String]) -> Option<&'static str> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Some(match args[..] {
        ["--version"] => "QEMU emulator version 10.0.2\n",
        ["-machine", "help"] => {
            "Supported machines are:\n\
             s390-ccw-virtio      Virtual s390x machine (version 10.0) (alias of s390-ccw-virtio-10.0)\n\
             none                 empty machine\n"
        }
        ["-object", "help"] => {
            "List of user creatable objects:\n  memory-backend-memfd\n  memory-backend-ram\n  s390-pv-guest\n"
        }
        _ => return None,
    })
}
