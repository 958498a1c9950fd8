//! The shim: containerd and CRI-O start it, one per pod.

fn main() -> std::process::ExitCode {
    kata_se::shim()
}
