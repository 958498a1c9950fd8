//! QEMU's end (stderr, console, exit status, events) to one explaining line: pure.
