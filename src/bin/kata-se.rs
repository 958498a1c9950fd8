//! The node command: a person calls it, containerd never does.

fn main() -> std::process::ExitCode {
    kata_se::node_command()
}
