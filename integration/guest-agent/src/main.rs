//! The program: the first process of a guest, or a plain process of the host.

fn main() -> std::process::ExitCode {
    guest_agent::run()
}
