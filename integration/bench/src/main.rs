//! Prints what the shim costs, beside containerd's own runc shim where the two compare.
//!
//! Four groups: programs on disk; inspecting a sealed image; the shim with doubles for QEMU
//! and the guest, where all time is ours; and containers under a real containerd, in emulation and with
//! runc.

// A program for people: it prints, and a failed assumption ends it.
#![allow(clippy::print_stdout, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod containers;
mod doubles;
mod process;
mod sealed;
mod table;

use table::Table;

fn main() {
    let mut table = Table::new();
    containers::sizes(&mut table);
    sealed::measure(&mut table);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(doubles::measure(&mut table));
    containers::measure(&mut table, &runtime);
    table.verdict();
}
